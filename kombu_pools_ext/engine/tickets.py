"""Openings that were planned, and those under way."""

from __future__ import annotations

from collections import deque

from .weakly import Weakly

__all__ = ["Openings", "Ticket"]


class Ticket:
    """One opening: claimed by the thread that carries it out, which is when it begins."""

    __slots__ = ("__weakref__", "began", "generation")

    def __init__(self, generation: int, now: float) -> None:
        self.generation = generation
        self.began = now


class Openings:
    """The tickets of one pool, guarded by its lock."""

    __slots__ = ("_unclaimed", "under_way")

    def __init__(self) -> None:
        #: Every opening that counts against the limit, claimed or not; its thread holds one that was claimed.
        self.under_way: Weakly[Ticket] = Weakly()
        self._unclaimed: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self.under_way)

    @property
    def unclaimed(self) -> int:
        """Tickets that no thread has taken yet."""
        return len(self._unclaimed)

    def oldest(self) -> float | None:
        """When the longest one that a thread is at work on began; ``None`` if there is none."""
        began = (one.began for one in self.under_way.alive() if one not in self._unclaimed)
        return min(began, default=None)

    def since(self, moment: float) -> int:
        """How many of those under way were planned after *moment*."""
        return sum(ticket.began > moment for ticket in self.under_way.alive())

    def add(self, ticket: Ticket) -> None:
        """Plan an opening."""
        self.under_way.keep(ticket)
        self._unclaimed.append(ticket)

    def take_up(self, ticket: Ticket) -> None:
        """Note an opening that its thread has carried out already."""
        self.under_way.keep(ticket)

    def cancel_unclaimed(self) -> None:
        """Forget what was planned and not begun; what was begun ends by itself."""
        while self._unclaimed:
            self.under_way.drop(self._unclaimed.popleft())

    def claim(self, now: float) -> Ticket | None:
        """Take the oldest planned opening, to carry it out from *now* on."""
        if not self._unclaimed:
            return None
        ticket = self._unclaimed.popleft()
        # Whoever planned it may have been interrupted then, and nobody have come since.
        ticket.began = now
        return ticket

    def done(self, ticket: Ticket) -> bool:
        """End an opening; ``False`` if it was cancelled."""
        known = self.under_way.knows(ticket)
        self.under_way.drop(ticket)
        return known
