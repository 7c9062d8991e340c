"""The pool: acquire and release, openings and closings.

``docs/explanation/engine.md`` describes the states and who owns what. The :class:`~.ledger.Ledger` decides
under one lock; this module carries out what was decided, with the lock free: no driver, listener or log
handler is ever called inside it.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal, TypeVar, cast

from . import fork, upkeep, ways_out
from .borrowing import unfit_because, wait_for_lease
from .counters import PoolStats
from .driver import Driver, Listener
from .errors import ErrorFamily
from .lease import Entry, Lease, MakeLease, Share, ours, stack_of
from .ledger import Ledger
from .opening import THREAD, open_all
from .operating import Operations
from .options import PoolOptions
from .threads import spawn_thread
from .waiting import Waiter

__all__ = ["Pool"]

T = TypeVar("T")

logger = logging.getLogger("kombu_pools_ext")

_mark = fork.mark
_getframe = sys._getframe


class Pool(Operations[T]):
    """A bounded pool of items that a driver opens.

    :param driver: opens, checks, closes and abandons items.
    :param name: stands in every error and log line; must hold no secret.
    :param limit: most items; ``None`` is unlimited.
    :param options: times and bounds.
    :param errors: the classes to raise.
    :param listener: is told of openings, closings and refusals.
    :param clock: monotonic seconds.
    :param jitter: random numbers from 0 to 1.
    :param spawn: runs a function in a thread, and returns whether it could.
    :param keeper: the maintenance thread; by default the one of the process.
    """

    def __init__(
        self,
        driver: Driver[T],
        *,
        name: str = "pool",
        limit: int | None = None,
        options: PoolOptions | None = None,
        errors: ErrorFamily | None = None,
        listener: Listener | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        spawn: Callable[[Callable[[], None], str], bool] = spawn_thread,
        keeper: upkeep.Upkeep | upkeep.NoUpkeep | None = None,
    ) -> None:
        self.driver = driver
        self.name = name
        self.options = options if options is not None else PoolOptions()
        self.errors = errors if errors is not None else ErrorFamily()
        self._listener = listener
        self.clock = clock
        self._jitter = jitter
        self.check_after = self.options.check_after
        self._with_stack = self.options.leak_after is not None
        self._spawn = spawn
        self.keeper = keeper if keeper is not None else upkeep.shared
        self._begin(limit)
        fork.register(self)

    def _begin(
        self,
        limit: int | None,
        *,
        closed: bool = False,
        suspended: Literal["fail", "wait"] | None = None,
    ) -> None:
        """A fresh lock and an empty ledger: in the beginning, and in a forked child."""
        # Looked up now, not at import: gevent and eventlet may have replaced it.
        self.lock = threading.RLock()
        # Whether code interrupts this thread's own critical section: a signal handler, a finalizer.
        # Every RLock has it, and threading.Condition relies on it; typeshed leaves it out.
        self._owned: Callable[[], bool] = self.lock._is_owned
        #: Loans that ended where no lock may be taken: (entry, number of the loan, reason or "").
        self._inbox: deque[tuple[Entry[T], int, str]] = deque()
        self.ledger: Ledger[T] = Ledger(
            limit=limit, options=self.options, clock=self.clock, jitter=self._jitter, pool=self
        )
        self.ledger.closed = closed
        self.ledger.suspended = suspended
        self.ledger.shut = closed or suspended is not None
        if ways_out.is_uwsgi_master():
            self.ledger.retire()
        #: When borrowers begin to do the maintenance thread's work.
        self.overdue_at = float("inf")

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def limit(self) -> int | None:
        """Most items; ``None`` is unlimited. Changed by :meth:`resize`."""
        return self.ledger.limit

    @property
    def size(self) -> int:
        """Items that the pool answers for, whatever their state."""
        return self.ledger.size

    @property
    def lent(self) -> int:
        """Items in the hands of borrowers."""
        return len(self.ledger.lent)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.ledger.closed

    def stats(self) -> PoolStats:
        """A snapshot, taken in one critical section."""
        fork.child_begins()
        with self.lock:
            return self.ledger.stats(self.name)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}: {self.ledger.describe()}>"

    def describe(self) -> str:
        """The state in words."""
        return self.ledger.describe()

    # -- acquire -------------------------------------------------------------------------------------

    def acquire(
        self,
        wait: bool = False,
        timeout: float | None = None,
        share: Share | None = None,
        make: MakeLease = Lease,
    ) -> Any:
        """Lend an item.

        :param wait: wait for one, without end unless there is a *timeout*; a *timeout* implies it.
        :param timeout: seconds for everything together: waiting, opening, checking.
        :param share: count the lease against this share too.
        :param make: makes the lease.
        :returns: what *make* made, by default a :class:`Lease`.
        :raises Exception: of the pool's :class:`ErrorFamily`: *exhausted*, *timeout*, *full*, *closed*,
            *reentered*, or *open_failed* with the driver's error as its cause.
        """
        if not _mark[0]:
            fork.child_begins()
        if self._inbox:
            self.settle()
        if self._owned():
            raise self.errors.reentered(
                f"pool {self.name!r}: acquire called by a signal handler or finalizer that interrupted the "
                "pool itself; set a flag there, and acquire outside of it"
            )
        now = self.clock()
        if now >= self.overdue_at:
            self.overdue_at = now + upkeep.OVERDUE
            # It may be able to run by now.
            self.keeper.watch(self)
            upkeep.tend(self)
        # Closes the race of two borrowers for one entry.
        with self.lock:
            lease: Any = self.ledger.take_idle(share, now, make)
        entry: Any = None if lease is None else lease._entry
        # What _unfit() would find for a fresh one stands here too, for speed.
        if entry is None or not (
            now - entry.used_at < self.check_after and now < entry.expires_at and not entry.suspect
        ):
            why = None if entry is None else unfit_because(self, cast("Lease[T]", lease), now)
            if entry is None or why is not None:
                deadline = None if timeout is None else now + timeout
                waiter: Waiter[T] = Waiter(share, make, patient=wait or deadline is not None)
                lease = wait_for_lease(self, deadline, waiter, lease, why)
                entry = lease._entry
        # From two frames up: in between is the face of a pool, or whoever uses the engine itself.
        try:
            frame: FrameType | None = _getframe(2)
        except ValueError:
            frame = None
        while frame is not None and ours[frame.f_code.co_filename]:
            frame = frame.f_back
        if frame is not None:
            entry.code = frame.f_code
            entry.instruction = frame.f_lasti
            if self._with_stack:
                entry.stack = stack_of(frame)
        return lease

    # -- release -------------------------------------------------------------------------------------

    def release(self, lease: Lease[T], broken: str | None = None) -> None:
        """Take a lease back; a second time it does nothing.

        :param broken: why the item must not be lent again (a key of ``CLOSE_REASONS``); ``None`` if it may.
        :raises Exception: the family's *lease* error if the lease is another pool's.
        """
        if not _mark[0]:
            # Before the lock is touched, which a child may have inherited locked.
            fork.child_begins()
        if lease._engine is not self:
            raise self.errors.lease(
                f"pool {self.name!r}: cannot release a lease of pool {lease._engine.name!r}; release it there"
            )
        entry = lease._entry
        if entry is None or entry.inherited:
            return
        if self._owned():
            self._inbox.append((entry, lease._loan, broken or ""))
            lease._entry = None
            self.keeper.nudge(self)
            return
        # Closes the race of two releases of one lease: the loan that it is about ends once. The lease forgets
        # its entry after that: should this thread be killed on the way, it brings home what is left.
        with self.lock:
            if entry.loan != lease._loan or entry not in self.ledger.lent:
                lease._entry = None
                return
            reason = self.ledger.take_back(entry, broken)
            lease._entry = None
            openings = self.ledger.pump() if self.ledger.waiters else 0
        if openings:
            self.start_openings(openings)
        if reason is not None:
            self.close_returned(entry, reason)

    def take_back(self, lease: Lease[T], broken: str | None) -> tuple[Entry[T], str] | None:
        """Under the lock: what :meth:`release` does there; what is to be closed now, and why."""
        entry = lease._entry
        if entry is None or entry.loan != lease._loan or entry not in self.ledger.lent:
            return None
        reason = self.ledger.take_back(entry, broken)
        lease._entry = None
        return None if reason is None else (entry, reason)

    def close_returned(self, entry: Entry[T], reason: str) -> None:
        # What is only old is closed in the background: its goodbye is not this borrower's to wait for.
        if reason != "lifetime" or not self._spawn(
            lambda: self.close_entry(entry, reason), "kombu-pools-close"
        ):
            self.close_entry(entry, reason)

    def dropped(self, entry: Entry[T], loan: int) -> None:
        """A lease was collected: called by its finalizer, which may only append and nudge."""
        self._inbox.append((entry, loan, "dropped"))
        self.keeper.nudge(self)

    def settle(self) -> None:
        """Do what the inbox asks for, unless this code interrupts the pool itself."""
        while self._inbox and not self._owned():
            openings, borrower, closing = 0, None, None
            # Closes the race of two threads for one word. It is taken out when it is done: whoever is killed on
            # the way leaves it to the next.
            with self.lock:
                if not self._inbox:
                    return
                entry, loan, reason = self._inbox[0]
                # Else it is a late word: that loan has ended, and the entry may be another borrower's by now.
                if entry.loan == loan and entry in self.ledger.lent:
                    borrower = entry.borrower
                    closing = self.ledger.take_back(entry, reason or None)
                    openings = self.ledger.pump()
                self._inbox.popleft()
            self.start_openings(openings)
            if reason == "dropped" and borrower is not None:
                logger.warning(
                    "pool %r: a lease was dropped without a release, its connection is closed; borrowed at %s",
                    self.name,
                    borrower.details(),
                )
            if closing is not None:
                self.close_entry(entry, closing)

    # -- openings and closings -----------------------------------------------------------------------

    def start_openings(self, count: int) -> None:
        """Carry out *count* planned openings: in threads, or here where none can be started."""
        for _ in range(count):
            if not self.spawn_opener():
                open_all(self)

    def spawn_opener(self) -> bool:
        """Start a thread that carries out planned openings; ``False`` where none can be started."""
        return self._spawn(lambda: open_all(self), THREAD)

    def close_entry(self, entry: Entry[T], reason: str, timeout: float | None = None) -> None:
        """Close an entry that the ledger has moved to ``closing``.

        :param timeout: seconds for its goodbye; ``None`` leaves them to the driver.
        """
        if not _mark[0]:
            # A child that skipped the hooks must not say goodbye on its parent's connection.
            fork.child_begins()
            return
        try:
            broken = reason in ("broken", "dead", "dropped")
            self.driver.close(entry.item, broken=broken, timeout=timeout)
        except Exception as error:
            logger.debug("pool %r: closing failed: %r", self.name, error)
        finally:
            with self.lock:
                self.ledger.closed_one(entry, reason)
                openings = self.ledger.pump()
                over = self.ledger.closed and not self.ledger.held
            self.start_openings(openings)
            if over:
                # That was the last one of a closed pool: the thread need not wait to find out.
                self.keeper.nudge(self)
        self.tell("closed", reason)

    def tell(self, event: str, *args: Any) -> None:
        """Tell the listener; its exceptions are logged."""
        if self._listener is None:
            return
        try:
            getattr(self._listener, event)(*args)
        except Exception:
            logger.exception("pool %r: a listener failed at %r", self.name, event)

    # -- fork ------------------------------------------------------------------------------------------

    def lease_error(self, entry: Entry[T] | None) -> Exception:
        """The error for the use of a lease that ended: released, or (*entry* given) another process's."""
        parent = "belongs to the process that this one was forked from"
        what = "was released" if entry is None else parent
        return self.errors.lease(f"pool {self.name!r}: the lease {what}; acquire a new one")

    def after_fork_in_child(self) -> None:
        """Own nothing of what the parent opened: a new lock, empty containers, the same configuration."""
        inherited = self.ledger.held.alive()
        ledger = self.ledger
        self._begin(ledger.limit, closed=ledger.closed, suspended=ledger.suspended)
        for gate in ledger.shut_gates:
            # The parent's connections are told of its end.
            gate.open_for_all()
        for entry in inherited:
            entry.inherited = True
            if entry.share is not None:
                entry.share.lent.discard(entry)
            try:
                self.driver.abandon(entry.item)
            except Exception as error:
                logger.debug("pool %r: abandoning failed: %r", self.name, error)
