"""What a pool has done so far, and a picture of what it does now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["CLOSE_REASONS", "Counters", "Drained", "PoolNumbers", "PoolStats"]

#: Why an item was closed.
CLOSE_REASONS: Mapping[str, str] = {
    "broken": "it failed in use, or its use was interrupted",
    "dead": "it was found dead when it was checked before a loan",
    "dropped": "its lease was collected without a release",
    "idle": "it was unused for longer than the idle time-out",
    "lifetime": "it reached its maximum lifetime",
    "limit": "the limit was lowered",
    "drained": "the pool was reset",
    "closed": "the pool was closed",
    "replaced": "its borrower asked for a replacement",
    "leftovers": "its borrower left behind what takes longer to end than a new connection to open",
    "switched": "its borrower connected it to another broker, or with other settings",
    "not kept": "the pool keeps nothing idle",
}


@dataclass
class Counters:
    """Totals since the pool was made, or since the fork; written under the pool's lock."""

    acquires: int = 0
    waits: int = 0
    timeouts: int = 0
    refused: int = 0
    opened: int = 0
    open_failures: int = 0
    seconds_waited: float = 0.0
    closed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class PoolNumbers:
    """A pool's numbers now, and its totals. ``size`` counts what the broker may see: also what is closing."""

    #: Most connections; ``None`` is unlimited.
    limit: int | None
    #: Connections the pool answers for: idle, lent, opening, being checked or closed.
    size: int
    idle: int
    lent: int
    opening: int
    #: Callers blocked in ``acquire`` now.
    waiting: int
    #: Calls of ``acquire`` so far, refused ones included.
    acquires: int
    #: Calls of ``acquire`` so far that had to wait.
    waits: int
    #: Calls of ``acquire`` so far that ended with nothing after their time-out.
    timeouts: int
    #: Calls of ``acquire`` so far that were turned away at once.
    refused: int
    opened: int
    open_failures: int
    #: Closed so far, by reason (see ``CLOSE_REASONS``).
    closed: Mapping[str, int]
    #: Seconds that callers have spent waiting, in total.
    seconds_waited: float
    #: Seconds since the first of the openings that failed in a row began; ``None`` if the last one succeeded.
    outage: float | None = None
    #: Why nothing is lent for publishing; ``None`` if it is.
    blocked: str | None = None
    #: Whether the pool was suspended.
    suspended: bool = False


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class PoolStats(PoolNumbers, _Named):
    """A consistent snapshot of a pool, with its name as the first field."""


class Drained(NamedTuple):
    """What a drain did."""

    #: Closed now.
    closed: int
    #: Lent now; to be closed when they come back.
    lent: int
