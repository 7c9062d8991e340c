"""Faults that a test asks for: they begin with the call, and end with :meth:`Fault.end` or with a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

__all__ = ["Fault", "Faults"]


class Fault:
    """A fault that has begun.

    :param end: ends it.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self._end: Callable[[], object] | None = end

    def end(self) -> None:
        """End it. Doing that twice has no effect."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


class Faults:
    """The faults of one broker that are there now."""

    def __init__(self) -> None:
        #: How many of each there are.
        self.down = 0
        self.blocked = 0
        self.losing = 0
        #: Messages that are still to be refused.
        self.to_refuse = 0
        #: Seconds that each answer takes.
        self.delays: list[float] = []

    @property
    def delay(self) -> float:
        """Seconds that an answer takes."""
        return max(self.delays, default=0.0)

    def refuses(self) -> bool:
        """Whether the message that has come is to be refused; it counts as one."""
        if self.to_refuse:
            self.to_refuse -= 1
            return True
        return False
