"""What a relay of the outbox tells of one alias."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_COUNTED", "RelayReport"]

#: Rows that are counted at most, so that a look at a table of millions stays cheap.
MOST_COUNTED = 10_000


@dataclass
class RelayReport:
    """How the outbox of an alias stands, as a relay in this process has seen it last."""

    #: Messages that this relay has brought to the broker.
    delivered: int = 0
    #: Messages a second, between its last two looks.
    rate: float = 0.0
    #: Rows that wait; :data:`MOST_COUNTED` if there are more.
    rows: int = 0
    #: Seconds since the oldest of those that are counted was written.
    lag: float = 0.0
    #: Rows that are dead; :data:`MOST_COUNTED` if there are more.
    dead: int = 0
