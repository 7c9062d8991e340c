"""How the outbox stands, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AliasNumbers"]


@dataclass(frozen=True)
class AliasNumbers:
    """How the outbox of one alias stands."""

    alias: str
    #: Rows that have to be published; those that a relay has just claimed are among them.
    waiting: int
    #: Seconds since the oldest of them was written; 0.0 if there is none.
    oldest: float
    #: Rows among them that the broker has refused before.
    refused: int
    #: Rows that can never be delivered.
    dead: int
    #: Rows that were delivered, and are kept.
    done: int
