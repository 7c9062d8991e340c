"""The times by which the coroutines of an event loop give up."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["LoopDeadlines"]


class Timed(Protocol):
    """What is told when its time is up."""

    def time_is_up(self) -> float | None:
        """End; or return the seconds until it is to be told again."""
        ...


class LoopDeadlines:
    """Tells what has no outcome in time. Mostly one timer is enough for all; only for the thread of the loop.

    A timer for each message would cost more than its publish waits: most have their outcome long before.
    """

    __slots__ = ("_due", "_next")

    def __init__(self) -> None:
        self._due: dict[Timed, float] = {}
        #: The time of the next look; the loop alone holds its timer, because that holds the loop.
        self._next = float("inf")

    def add(self, one: Timed, seconds: float) -> None:
        """Tell *one* in so many seconds, unless it is discarded before."""
        loop = asyncio.get_running_loop()
        at = self._due[one] = loop.time() + seconds
        if at < self._next:
            self._next = at
            loop.call_at(at, self._look, at)

    def discard(self, one: Timed) -> None:
        """Forget *one*."""
        self._due.pop(one, None)

    def _look(self, at: float) -> None:
        if at != self._next:
            # Another look came to be earlier, and has seen to the next one.
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        # The loop calls what is due within its clock's resolution, a little early perhaps.
        over = [one for one, until in self._due.items() if until <= now]
        for one in over:
            self.discard(one)
            more = one.time_is_up()
            if more is not None:
                self._due[one] = now + more
        left = self._due.values()
        self._next = min(left) if left else float("inf")
        if left:
            loop.call_at(self._next, self._look, self._next)
