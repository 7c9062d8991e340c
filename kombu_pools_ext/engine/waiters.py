"""Those who wait, in order, and how they are served."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from .auto_reset_event import AutoResetEvent
from .lease import Lease, Share

__all__ = ["WaitQueue", "Waiter"]

T = TypeVar("T")


class Waiter(AutoResetEvent, Generic[T]):
    """One blocked ``acquire``.

    Another thread sets the event after it has set an outcome, or to have the waiter look for itself. ``lease`` and
    ``error`` are written under the pool's lock, before the event is set.

    :param blocking: waits for what others give back, and for a broker that is down; ``False``: for an opening only.
    :param waits_for_broker: ``False``: a blocking one waits for what others give back, but not for a broker that is
        down.
    :param ignore_outage: waits for a broker that is down until its own deadline, however long the outage has lasted.
    """

    __slots__ = (
        *("error", "kind", "lease", "blocking", "share", "ignore_outage"),
        *("since", "waits_for_broker"),
    )

    def __init__(
        self,
        share: Share | None = None,
        kind: type[Lease[Any]] = Lease,
        *,
        blocking: bool = True,
        ignore_outage: bool = False,
        waits_for_broker: bool = True,
    ) -> None:
        super().__init__()
        self.share = share
        self.kind = kind
        self.blocking = blocking
        self.ignore_outage = ignore_outage
        self.waits_for_broker = blocking and waits_for_broker
        #: Since when its caller waits; ``None`` once that has been counted.
        self.since: float | None = None
        self.lease: Lease[T] | None = None
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return self.lease is not None or self.error is not None

    @property
    def blocked(self) -> str | None:
        """Why the gate of its share is shut, if it is."""
        return None if self.share is None else self.share.blocked

    def again(self) -> Waiter[T]:
        """Return a new waiter with the same parameters: what this one was served cannot be used."""
        return Waiter(
            self.share,
            self.kind,
            blocking=self.blocking,
            ignore_outage=self.ignore_outage,
            waits_for_broker=self.waits_for_broker,
        )

    def serve(self, lease: Lease[T]) -> None:
        """Hand a lease over."""
        self.lease = lease
        self.set()

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        self.error = error
        self.set()


class WaitQueue(OrderedDict[Waiter[T], None]):
    """Waiters in the order of their coming; leaving from the middle is O(1). Guarded by the pool's lock.

    A dict itself, so that asking whether anybody waits costs nothing: every loan and every return asks.
    """

    __slots__ = ()

    def append(self, waiter: Waiter[T], *, first: bool = False) -> None:
        """Queue up: at the end, or (*first*) where a waiter stood who was served something dead."""
        self[waiter] = None
        if first:
            self.move_to_end(waiter, last=False)

    def remove(self, waiter: Waiter[T]) -> bool:
        """Leave the queue; whether the waiter was still in it."""
        if waiter not in self:
            return False
        del self[waiter]
        return True

    def next(self) -> Waiter[T] | None:
        """Who is to be served next: the first whose share has room."""
        for waiter in self:
            # Served already, and still here: whoever served it was interrupted before it was taken out.
            if waiter.ended:
                continue
            if waiter.share is None or waiter.share.has_room():
                return waiter
        return None

    def servable(self, at_most: int) -> int:
        """How many could be served now, counted up to *at_most*."""
        return self._simulate_serving(at_most)[0]

    def has_room_behind(self, share: Share | None, items: int | None) -> bool:
        """Whether *items* would do for all who wait and can be served, and for one more with *share*."""
        served, room = self._simulate_serving(len(self) if items is None else items)
        if items is not None and served >= items:
            return False
        if share is None:
            return True
        if share.blocked:
            return False
        left = room.get(share, share.room)
        return left is None or left > 0

    def _simulate_serving(self, at_most: int) -> tuple[int, dict[Share, int]]:
        """Return how many waiters *at_most* items would serve, and the room that would be left in their shares."""
        room: dict[Share, int] = {}
        count = 0
        for waiter in self:
            if count >= at_most:
                break
            if waiter.ended:
                continue
            share = waiter.share
            if share is not None and share.blocked:
                continue
            if share is not None and (left := room.get(share, share.room)) is not None:
                if left <= 0:
                    continue
                room[share] = left - 1
            count += 1
        return count, room
