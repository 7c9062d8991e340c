"""When each pool is to be looked at: the next one is found without asking all the others."""

from __future__ import annotations

import heapq
import itertools
import weakref
from typing import Generic, TypeVar

__all__ = ["Schedule"]

T = TypeVar("T")

#: Outdated times that are kept besides as many again as there are pools, before all are written anew.
SPARE = 64


class Schedule(weakref.WeakKeyDictionary[T, float], Generic[T]):
    """When each pool is due, in seconds of some clock; holds no pool alive. Not safe among threads."""

    def __init__(self) -> None:
        super().__init__()
        #: Each entry, and those that it had before, in a heap: (when, number, pool).
        self._notes: list[tuple[float, int, weakref.ref[T]]] = []
        # Tells two of the same time apart: pools have no order.
        self._numbers = itertools.count()

    def __setitem__(self, pool: T, due: float) -> None:
        super().__setitem__(pool, due)
        heapq.heappush(self._notes, (due, next(self._numbers), weakref.ref(pool)))
        if len(self._notes) > 2 * len(self) + SPARE:
            self.tidy()

    def take(self, now: float) -> list[T]:
        """The pools that are due; each is to be given its next time, or deleted."""
        pools = []
        while self._notes and self._notes[0][0] <= now:
            due, _, reference = heapq.heappop(self._notes)
            pool = reference()
            if pool is not None and self.get(pool) == due and pool not in pools:
                pools.append(pool)
        return pools

    def next(self) -> float | None:
        """When the first one is due; ``None`` without any pool."""
        while self._notes:
            due, _, reference = self._notes[0]
            pool = reference()
            if pool is not None and self.get(pool) == due:
                return due
            heapq.heappop(self._notes)
        return None

    def tidy(self) -> None:
        """Write all notes anew: to be called when a thread that took some may have been killed."""
        self._notes = [(due, next(self._numbers), weakref.ref(pool)) for pool, due in self.items()]
        heapq.heapify(self._notes)
