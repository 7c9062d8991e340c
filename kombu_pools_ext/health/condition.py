"""The conditions that an alias can be in."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Condition"]


class Condition(StrEnum):
    """How an alias is, the best first."""

    #: Messages can be published.
    OK = "ok"
    #: They can, but callers wait: all connections are lent.
    DEGRADED = "degraded"
    #: Somebody has suspended the pool.
    SUSPENDED = "suspended"
    #: The broker accepts no messages, because of an alarm for memory or disk. Nothing is wrong with this process.
    BLOCKED = "blocked"
    #: The broker cannot be reached.
    DOWN = "down"

    @property
    def rank(self) -> int:
        """0 is the best; a larger number is a worse condition."""
        return list(Condition).index(self)
