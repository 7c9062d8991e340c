"""What was decided under a pool's lock, to be carried out once that is free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .lease import Entry

__all__ = ["Decision", "Failed", "Opened"]

T = TypeVar("T")


@dataclass(slots=True)
class Decision(Generic[T]):
    """What to open and what to close."""

    #: Planned openings that are to be started.
    openings: int = 0
    #: Entries to close, each with the reason; until they are closed, whoever has this holds them.
    closings: list[tuple[Entry[T], str]] = field(default_factory=list)
    #: Why a caller is turned away; ``None`` if it is not.
    refusal: str | None = None
    #: How many were lent when this was decided, of those that it concerns.
    lent: int = 0


@dataclass(slots=True)
class Opened(Decision[T]):
    """An item was opened."""

    #: When it is to be looked after for the first time.
    due: float = 0.0
    #: Seconds that an outage has lasted which it ended; ``None`` if there was none.
    outage: float | None = None


@dataclass(slots=True)
class Failed(Decision[T]):
    """An item could not be opened."""

    #: Whether an outage begins with that.
    first: bool = False
