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
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

from . import fork, upkeep, ways_out
from .borrowing import unfit_because, wait_for_lease
from .counters import PoolStats
from .driver import Driver, Listener
from .errors import ErrorFamily
from .lease import Entry, Lease, Share, ours, outside, stack_of
from .ledger import Ledger
from .opening import THREAD, open_all
from .options import PoolOptions
from .returning import Returns
from .threads import spawn_thread
from .waiting import Waiter

__all__ = ["Pool"]

T = TypeVar("T")

logger = logging.getLogger("kombu_pools_ext")

_mark = fork.mark
_getframe = sys._getframe


class Pool(Returns[T]):
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
        # Seconds without use for which an item is lent without another look; none where the loan itself is noted.
        self._unseen_for = -1.0 if self._with_stack else self.check_after
        self._spawn = spawn
        self.keeper = keeper if keeper is not None else upkeep.shared
        #: The suspended pools that this one has replaced.
        self.suspended_with: weakref.WeakSet[Pool[T]] | None = None
        self._begin(limit)
        fork.register(self)

    def _begin(
        self,
        limit: int | None,
        *,
        closed: bool = False,
        suspended: Literal["fail", "wait"] | None = None,
        replaced: bool = False,
    ) -> None:
        """A fresh lock and an empty ledger: in the beginning, and in a forked child."""
        self.renew_lock()
        #: What the short way goes by; another one after each change that whoever is on it must not miss, and ``None``
        #: as long as everybody has to take the lock.
        self.calm: object | None = None
        #: Loans that ended where no lock may be taken: (entry, number of the loan, reason or "").
        self.inbox: deque[tuple[Entry[T], int, str]] = deque()
        self.ledger: Ledger[T] = Ledger(
            limit=limit, options=self.options, clock=self.clock, jitter=self._jitter, pool=self
        )
        self.idle = self.ledger.idle
        self.ledger.closed = closed
        self.ledger.suspended = suspended
        self.ledger.shut = closed or suspended is not None
        if replaced:
            self.ledger.replace()
        if ways_out.is_uwsgi_master():
            self.ledger.retire()
        #: Whether the latest thread for openings could not be started.
        self.threadless = False
        #: When borrowers begin to do the maintenance thread's work.
        self.overdue_at = float("inf")

    def renew_lock(self) -> None:
        """Have a lock that nobody holds."""
        # Looked up now, not at import: gevent and eventlet may have replaced it.
        self.lock = threading.RLock()
        # Whether code interrupts this thread's own critical section: a signal handler, a finalizer.
        # Every RLock has it, and threading.Condition relies on it; typeshed leaves it out.
        self._owned: Callable[[], bool] = self.lock._is_owned

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
        return self.ledger.lent_count

    def lent_of(self, share: Share) -> int:
        """Items lent with *share*."""
        return self.ledger.lent_of(share)

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
        kind: type[Lease[Any]] = Lease,
    ) -> Any:
        """Lend an item.

        :param wait: wait for one, without end unless there is a *timeout*; a *timeout* implies it.
        :param timeout: seconds for everything together: waiting, opening, checking.
        :param share: count the lease against this share too.
        :param kind: what to lend: :class:`Lease`, or a subclass that is made without arguments.
        :returns: a *kind*.
        :raises Exception: of the pool's :class:`ErrorFamily`: *exhausted*, *timeout*, *full*, *closed*,
            *reentered*, or *open_failed* with the driver's error as its cause.
        """
        # From two frames up: in between is the face of a pool, or whoever uses the engine itself.
        frame: Any
        try:
            frame = _getframe(2)
            code = frame.f_code
            if ours[code.co_filename]:
                frame = outside(frame)
                code = frame.f_code
        except (ValueError, AttributeError):
            # No line of Python stands for the borrower.
            return self._acquire(wait, timeout, share, kind, self.clock(), None, None)
        now = self.clock()
        calm = self.calm
        # The short way, without the lock: docs/explanation/engine.md.
        if (
            calm is not None
            and _mark[0]
            and now < self.overdue_at
            and (share is None or share.open)
        ):
            try:
                entry = self.idle.pop()
            except IndexError:
                pass
            else:
                # Should this thread be killed from here on, the entry dies with it, and its end brings it home.
                entry.engine = self
                entry.share = share
                # Closes the race with whoever began to wait, or changed something, since the look at it.
                if self.calm is calm:
                    entry.loan += 1
                    entry.code = code
                    entry.instruction = frame.f_lasti
                    lease: Any = kind()
                    lease._engine = self
                    lease._entry = entry
                    lease._claim = True
                    # What unfit_because() would find for a fresh one.
                    if (
                        now - entry.used_at < self._unseen_for
                        and now < entry.expires_at
                        and not entry.suspect
                    ):
                        return lease
                    entry.taken_at = now
                    return self._acquire(wait, timeout, share, kind, now, frame, lease)
                self.come_home(entry, None)
        return self._acquire(wait, timeout, share, kind, now, frame, None)

    def _acquire(
        self,
        wait: bool,
        timeout: float | None,
        share: Share | None,
        kind: type[Lease[Any]],
        now: float,
        frame: FrameType | None,
        lease: Lease[T] | None,
    ) -> Lease[T]:
        """The long way of :meth:`acquire`, or what is left of it for a *lease* that has to be looked at."""
        if lease is None:
            lease = self._take_idle(share, now, kind, timeout)
        why = None if lease is None else unfit_because(self, lease, now)
        if lease is None or why is not None:
            deadline = None if timeout is None else now + timeout
            waiter: Waiter[T] = Waiter(share, kind, patient=wait or deadline is not None)
            lease = wait_for_lease(self, deadline, waiter, lease, why)
        entry = lease._entry
        if frame is not None and entry is not None:
            entry.code = frame.f_code
            entry.instruction = frame.f_lasti
            if self._with_stack:
                entry.stack = stack_of(frame)
        return lease

    def _take_idle(
        self, share: Share | None, now: float, kind: type[Lease[Any]], timeout: float | None
    ) -> Lease[T] | None:
        """Do overdue work within *timeout*, then lend an idle item under the lock."""
        if not _mark[0]:
            # Before the lock is touched, which a child may have inherited locked.
            fork.child_begins()
        if sys.is_finalizing():
            self.refuse_at_the_end()
        if self.inbox:
            self.settle()
        if self._owned():
            raise self.errors.reentered(
                f"pool {self.name!r}: acquire called by a signal handler or finalizer that interrupted the "
                "pool itself; set a flag there, and acquire outside of it"
            )
        if now >= self.overdue_at:
            self.overdue_at = now + upkeep.OVERDUE
            # Threads for maintenance and control may be startable by now.
            self.keeper.watch(self)
            self.tell("wanted")
            upkeep.tend(self, None if timeout is None else now + timeout)
        # Closes the race of a borrower and somebody who begins to wait.
        with self.lock:
            lease = self.ledger.take_idle(share, now, kind)
        return lease

    def refuse_at_the_end(self) -> NoReturn:
        """Raise what there is to say in an interpreter that ends: nothing comes back, and nothing can be opened."""
        raise self.errors.closed(
            f"pool {self.name!r}: the interpreter is ending, and nothing can be opened any more; "
            "publish in an exit handler (atexit), which comes before that"
        )

    # -- openings and closings -----------------------------------------------------------------------

    def start_openings(
        self, count: int, deadline: float | None = None, *, here: bool = False
    ) -> None:
        """Carry out *count* planned openings in threads.

        If none can be started, this caller carries them out if *here*; otherwise a waiting caller does.

        :param deadline: when this caller has to stop.
        """
        for _ in range(count):
            if self.spawn_opener():
                continue
            if here:
                open_all(self, deadline)
            else:
                self.leave_openings()
            return

    def leave_openings(self) -> None:
        """Have the first waiting caller carry out the planned openings, within its own time-out."""
        with self.lock:
            waiter = self.ledger.waiters.next()
            if waiter is None:
                self.ledger.openings.cancel_unclaimed()
            else:
                waiter.nudge()

    def spawn(self, work: Callable[[], None], name: str) -> bool:
        """Run *work* in a thread; ``False`` where none can be started."""
        return self._spawn(work, name)

    def spawn_opener(self) -> bool:
        """Start a thread that carries out planned openings; ``False`` where none can be started."""
        self.threadless = not self._spawn(lambda: open_all(self), THREAD)
        return not self.threadless

    def close_entry(self, entry: Entry[T], reason: str, timeout: float | None = None) -> None:
        """Close an entry that the ledger has moved to ``closing``.

        :param timeout: seconds for its goodbye; ``None`` leaves them to the driver.
        """
        if not _mark[0]:
            # A child that skipped the hooks must not say goodbye on its parent's connection.
            fork.child_begins()
            return
        failed: Exception | None = None
        try:
            broken = reason in ("broken", "dead", "dropped")
            self.driver.close(entry.item, broken=broken, timeout=timeout)
        except Exception as error:
            failed = error
        finally:
            with self.lock:
                self.ledger.closed_one(entry, reason)
                openings = self.ledger.pump()
                over = self.ledger.closed and not self.ledger.held
            self.start_openings(openings)
            if over:
                # That was the last one of a closed pool: the thread need not wait to find out.
                self.keeper.nudge(self)
        # Now: a log handler that publishes may be waiting for the place that has become free.
        if failed is not None:
            logger.debug("pool %r: closing failed: %r", self.name, failed)
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
        if entry is None:
            what = "was released; acquire a new one"
        elif entry.inherited:
            what = "belongs to the process that this one was forked from; acquire a new one"
        else:
            what = "was taken back by the exit handler of the pools: the interpreter is ending"
        return self.errors.lease(f"pool {self.name!r}: the lease {what}")

    def after_fork_in_child(self) -> None:
        """Own nothing of what the parent opened: a new lock, empty containers, the same configuration."""
        inherited = self.ledger.held.alive()
        ledger = self.ledger
        self._begin(
            ledger.limit,
            closed=ledger.closed,
            suspended=ledger.suspended,
            replaced=ledger.replaced,
        )
        for gate in ledger.shut_gates:
            # The parent's connections are told of its end.
            gate.open_for_all()
        for entry in inherited:
            entry.inherited = True
            entry.engine = None
            if entry.share is not None:
                entry.share.lent.drop(entry)
            try:
                self.driver.abandon(entry.item)
            except Exception as error:
                logger.debug("pool %r: abandoning failed: %r", self.name, error)
