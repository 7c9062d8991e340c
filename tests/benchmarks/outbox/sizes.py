"""How much a run does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SHORT", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How much a run does."""

    #: Rounds of each case.
    rounds: int = 3
    #: What the rows that a relay is to publish are divided by.
    divisor: int = 1
    #: Messages of each contender whose way to the broker is timed.
    messages: int = 250
    #: Transactions of each contender in a round.
    turns: int = 250
    #: Transactions of a thousand messages in a round.
    bulks: int = 10
    #: Rows that wait while others are claimed.
    waiting: int = 10_000_000
    #: Claims that are timed in a round.
    claims: int = 10


FULL = Sizes()
#: A look at whether it works, and no measurement.
SHORT = Sizes(rounds=1, divisor=20, messages=15, turns=15, bulks=1, waiting=100_000, claims=3)
