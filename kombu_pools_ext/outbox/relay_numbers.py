"""What a relay has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RelayNumbers"]


@dataclass
class RelayNumbers:
    """Counters of one relay, since it was made."""

    #: Messages that the broker confirmed.
    delivered: int = 0
    #: Rows that can never be delivered.
    dead: int = 0
    #: Answers of the broker that refused a message.
    refused: int = 0
    #: Messages that were not sent, or got no answer, because the broker was away.
    away: int = 0
    #: Rows that another relay had taken when this one wanted to mark them: its lease had ended.
    lost: int = 0
