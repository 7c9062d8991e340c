"""The states of a row."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["State"]


class State(IntEnum):
    """Where a message of the outbox stands. A row that a relay has claimed is WAITING, too."""

    #: It has to be published.
    WAITING = 0
    #: The broker has confirmed it. Such rows are there only if done rows are kept.
    DONE = 1
    #: It can never be delivered as it is; its reason says why.
    DEAD = 2
