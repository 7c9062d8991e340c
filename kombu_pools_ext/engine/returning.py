"""What comes back: from whoever releases it, or gave it back where no lock may be taken, or let go of it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from . import fork
from .lease import Entry, Lease
from .operating import Operations
from .upkeep import TOGETHER

__all__ = ["Returns"]

T = TypeVar("T")

logger = logging.getLogger("kombu_pools_ext")

#: Reasons for which something is closed in the background.
IN_BACKGROUND = ("lifetime", "leftovers")

_mark = fork.mark


class Returns(Operations[T]):
    """The part of :class:`~.pool.Pool` that takes leases back."""

    if TYPE_CHECKING:
        calm: object | None
        idle: list[Entry[T]]
        inbox: deque[tuple[Entry[T], int, str]]
        _spawn: Callable[[Callable[[], None], str], bool]

    # -- release -------------------------------------------------------------------------------------

    def release(self, lease: Lease[T], broken: str | None = None) -> None:
        """Take a lease back; a second time it does nothing.

        :param broken: why the item must not be lent again (a key of ``CLOSE_REASONS``); ``None`` if it may.
        :raises Exception: the family's *lease* error if the lease is another pool's.
        """
        if not _mark[0]:
            fork.child_begins()
        entry = lease._entry
        if entry is None or entry.engine is not self:
            self._release_ended(lease)
            return
        # Closes the race of two releases of one lease: one of them succeeds here.
        try:
            del lease._claim
        except AttributeError:
            entry = None
            self._release_again(lease)
            return
        calm = self.calm
        share = entry.share
        if (
            calm is None
            or broken is not None
            or entry.outdated
            or not (share is None or share.open)
        ):
            # The lease forgets its entry after that: should this thread be killed on the way, it brings home what is
            # left.
            self.come_home(entry, broken)
            lease._entry = None
            return
        # The short way. In this order: whoever has kept the lease must not reach what is another's by then, and until
        # the entry is idle its end brings it home.
        entry.used_at = self.clock()
        lease._entry = None
        entry.engine = None
        self.idle.append(entry)
        # Closes the race with whoever began to wait, or changed something, since the look at it.
        if self.calm is not calm:
            self._put_right(entry)

    def _release_ended(self, lease: Lease[T]) -> None:
        """Refuse another pool's lease; let go of what was taken away."""
        if lease._engine is not self:
            raise self.errors.lease(
                f"pool {self.name!r}: cannot release a lease of pool {lease._engine.name!r}; release it there"
            )
        entry = lease._entry
        if entry is not None and not entry.inherited:
            lease._entry = None

    def _release_again(self, lease: Lease[T]) -> None:
        """Somebody else is at it, or was killed over it: then this ends it."""
        lease._entry = None
        self.settle()

    def come_home(self, entry: Entry[T], broken: str | None) -> None:
        """End the loan of *entry*, under the lock; by the inbox where that must not be taken."""
        # At the end of the interpreter a thread that was stopped may hold it.
        if self._owned() or sys.is_finalizing():
            self.inbox.append((entry, entry.loan, broken or ""))
            self.disturb()
            return
        # Closes the race with whoever begins to wait just now.
        with self.lock:
            if entry.engine is not self:
                return
            reason = self.ledger.take_back(entry, broken)
            self.ledger.calm_down()
            openings = self.ledger.pump() if self.ledger.waiters else 0
        if openings:
            self.start_openings(openings)
        if reason is not None:
            self.close_returned(entry, reason)

    def _put_right(self, entry: Entry[T]) -> None:
        """Something changed while *entry* was put to the idle ones: decide again where it belongs."""
        if self._owned():
            # A signal handler: what it has interrupted, or upkeep, decides.
            return
        reason = None
        with self.lock:
            # Else somebody has it already, who has come to know of the change.
            with contextlib.suppress(ValueError):
                self.ledger.idle.remove(entry)
                # Else it was recalled, and closed.
                if self.ledger.held.knows(entry) and not self.ledger.closing.knows(entry):
                    reason = self.ledger.take_back(entry, None)
            openings = self.ledger.pump()
        self.start_openings(openings)
        if reason is not None:
            self.close_returned(entry, reason)

    def take_back(self, lease: Lease[T], broken: str | None) -> tuple[Entry[T], str] | None:
        """Under the lock: what :meth:`release` does there; what is to be closed now, and why."""
        entry = lease._entry
        try:
            del lease._claim
        except AttributeError:
            return None
        if entry is None or entry.engine is not self:
            return None
        reason = self.ledger.take_back(entry, broken)
        lease._entry = None
        return None if reason is None else (entry, reason)

    def close_returned(self, entry: Entry[T], reason: str, deadline: float | None = None) -> None:
        """Close what came back and must not be lent again.

        :param deadline: until when the caller has time for a goodbye, by the pool's clock.
        """
        # What is only old, or takes long: its goodbye is not this borrower's to wait for.
        if reason not in IN_BACKGROUND or not self._spawn(
            lambda: self.close_entry(entry, reason), "kombu-pools-close"
        ):
            left = None if deadline is None else max(0.0, deadline - self.clock())
            self.close_entry(entry, reason, left if left is None else min(left, TOGETHER))

    def dropped(self, entry: Entry[T]) -> None:
        """A lease was collected: called by its entry's finalizer, which may only append, disturb and nudge."""
        self.inbox.append((entry, entry.loan, "dropped"))
        self.disturb()

    def disturb(self) -> None:
        """There is a word in the inbox: whoever comes next takes the lock, and heeds it."""
        self.calm = None
        self.keeper.nudge(self)

    def settle(self) -> None:
        """Do what the inbox asks for, unless this code interrupts the pool itself."""
        while self.inbox and not self._owned():
            openings, borrower, closing = 0, None, None
            # Closes the race of two threads for one word. It is taken out when it is done: whoever is killed on
            # the way leaves it to the next.
            with self.lock:
                if not self.inbox:
                    return
                entry, loan, reason = self.inbox[0]
                # Else it is a late word: that loan has ended, and the entry may be another borrower's by now.
                if entry.loan == loan and entry.engine is self:
                    # Its weak places forgot it, if the collector found it in a cycle.
                    self.ledger.held.keep(entry, entry.item)
                    borrower = entry.borrower
                    closing = self.ledger.take_back(entry, reason or None)
                    openings = self.ledger.pump()
                self.inbox.popleft()
            self.start_openings(openings)
            if reason == "dropped" and borrower is not None:
                logger.warning(
                    "pool %r: a lease was dropped without a release, its connection is closed; borrowed at %s",
                    self.name,
                    borrower.details(),
                )
            if closing is not None:
                self.close_entry(entry, closing)
