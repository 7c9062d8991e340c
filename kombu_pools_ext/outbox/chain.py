"""Rows that a relay publishes one after the other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .row import Row

__all__ = ["Chain"]


@dataclass
class Chain:
    """The rows of one key that a relay has: one is on its way, the others wait behind it.

    A row without a key is a chain by itself.

    :param ends: when the lease ends, in seconds of the monotonic clock.
    """

    ends: float
    rows: deque[Row] = field(default_factory=deque)

    #: What the first was to declare, and whether it was sent without that, because it is there already.
    declare: tuple[Any, ...] = ()
    relies: bool = False

    @property
    def first(self) -> Row:
        """The one that is on its way, or is next."""
        return self.rows[0]
