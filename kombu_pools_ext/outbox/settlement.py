"""What has become of a relay's rows since it told the database last."""

from __future__ import annotations

from dataclasses import dataclass, field

from .row import Row

__all__ = ["GivenBack", "Settlement"]


@dataclass(frozen=True)
class GivenBack:
    """Rows that were not delivered, and are to be tried again.

    :param seconds: from when on.
    :param reason: why they were not; ``None`` leaves the reason of the rows as it is.
    :param is_refused: whether the broker has refused them, which is counted.
    """

    ids: tuple[int, ...]
    seconds: float
    reason: str | None = None
    is_refused: bool = False


@dataclass
class Settlement:
    """Rows and their fates; one transaction tells them all."""

    done: list[int] = field(default_factory=list)
    #: With the reason.
    dead: list[tuple[Row, str]] = field(default_factory=list)
    given_back: list[GivenBack] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.done or self.dead or self.given_back)

    @property
    def count(self) -> int:
        """How many rows it tells of."""
        return len(self.done) + len(self.dead) + sum(len(one.ids) for one in self.given_back)
