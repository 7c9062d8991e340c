"""Openings that were planned, and those under way."""

from __future__ import annotations

from collections import deque

from .weakrefs import WeakPlaces

__all__ = ["Opening", "Openings"]


class Opening:
    """One opening: claimed by the thread that carries it out, which is when it begins."""

    __slots__ = ("__weakref__", "began", "generation")

    def __init__(self, generation: int, now: float) -> None:
        self.generation = generation
        self.began = now


class Openings:
    """The openings of one pool, guarded by its lock."""

    __slots__ = ("_unclaimed", "under_way")

    def __init__(self) -> None:
        #: Every opening that counts against the limit, claimed or not; its thread holds one that was claimed.
        self.under_way: WeakPlaces[Opening] = WeakPlaces()
        self._unclaimed: deque[Opening] = deque()

    def __len__(self) -> int:
        return len(self.under_way)

    @property
    def unclaimed(self) -> int:
        """Planned openings that no thread has taken yet."""
        return len(self._unclaimed)

    def oldest(self) -> float | None:
        """When the longest one that a thread is at work on began; ``None`` if there is none."""
        began = (one.began for one in self.under_way.alive() if one not in self._unclaimed)
        return min(began, default=None)

    def since(self, moment: float) -> int:
        """How many of those under way were planned after *moment*."""
        return sum(opening.began > moment for opening in self.under_way.alive())

    def add(self, opening: Opening) -> None:
        """Plan an opening."""
        self.under_way.keep(opening)
        self._unclaimed.append(opening)

    def take_up(self, opening: Opening) -> None:
        """Note an opening that its thread has carried out already."""
        self.under_way.keep(opening)

    def cancel_unclaimed(self) -> None:
        """Forget what was planned and not begun; what was begun ends by itself."""
        while self._unclaimed:
            self.under_way.drop(self._unclaimed.popleft())

    def claim(self, now: float) -> Opening | None:
        """Take the oldest planned opening, to carry it out from *now* on."""
        if not self._unclaimed:
            return None
        opening = self._unclaimed.popleft()
        # Whoever planned it may have been interrupted then, and nobody have come since.
        opening.began = now
        return opening

    def done(self, opening: Opening) -> bool:
        """End an opening; ``False`` if it was cancelled."""
        known = self.under_way.knows(opening)
        self.under_way.drop(opening)
        return known
