"""The pool: it takes the lock, and carries out what is decided under it.

``docs/explanation/engine.md`` describes the states and who owns what. :class:`~.state.PoolState` and
:class:`~.expiry.Expiry` decide, under one lock; what was decided is carried out here, with the lock free: no driver,
listener or log handler is ever called inside it.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from . import closing, exit_hooks, fork, maintenance
from .auto_reset_event import AutoResetEvent
from .bounded_lock import BoundedLock
from .checker import Checker
from .decision import Decision
from .errors import ErrorFamily
from .expiry import Expiry
from .interfaces import Driver, Listener
from .lease import Entry, Gate, Lease, Share, ours, outside, stack_of
from .opener import Opener
from .options import PoolOptions
from .refusals import Refusals
from .reports import Reports
from .state import PoolState
from .stats import Drained, PoolStats
from .threads import spawn_thread
from .wait import LOOK_AGAIN, Wait
from .waiters import Waiter

__all__ = ["Pool"]

T = TypeVar("T")
R = TypeVar("R")
D = TypeVar("D", bound=Decision[Any])

#: Reasons for which something is closed in the background, so that its borrower does not wait for the goodbye.
IN_BACKGROUND = ("lifetime", "leftovers", "switched")

_mark = fork.mark
_getframe = sys._getframe
_is_finalizing = sys.is_finalizing


class _ReadyWait:
    """One caller's wait for readiness."""

    __slots__ = ("__weakref__",)


class Pool(Generic[T]):
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
        keeper: maintenance.Maintenance | maintenance.NoMaintenance | None = None,
    ) -> None:
        self.driver = driver
        self.name = name
        self.options = options if options is not None else PoolOptions()
        self.refusals = Refusals(name, errors if errors is not None else ErrorFamily())
        self.reports = Reports(name, listener)
        self.clock = clock
        self.spawn = spawn
        self.keeper = keeper if keeper is not None else maintenance.shared
        self._jitter = jitter
        self._checker = Checker(self)
        self._with_stack = self.options.leak_after is not None
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
        """A fresh lock and an empty state: in the beginning, and in a forked child."""
        self.renew_lock()
        #: Releases deferred where no lock may be taken: (entry, number of the loan, reason or "").
        self.deferred: deque[tuple[Entry[T], int, str]] = deque()
        self.state: PoolState[T] = PoolState(
            limit=limit, options=self.options, clock=self.clock, jitter=self._jitter, lender=self
        )
        self.expiry = Expiry(self.state)
        self.opener: Opener[T] = Opener(self)
        self.state.closed = closed
        self.state.suspended = suspended
        self.state.shut = closed or suspended is not None
        if replaced:
            self.state.replace()
        if exit_hooks.is_uwsgi_master():
            self.state.stop_keeping()
        #: When borrowers begin to do the maintenance thread's work.
        self.overdue_at = float("inf")

    def __del__(self) -> None:
        # Collected: the thread ends if this was the last pool. One whose making was interrupted may have no keeper.
        keeper = getattr(self, "keeper", None)
        if keeper is not None:
            keeper.wake()

    # -- the lock --------------------------------------------------------------------------------------

    def renew_lock(self) -> None:
        """Have a lock that nobody holds."""
        self.lock = BoundedLock(self.refusals.lock_is_held)
        self.owned = self.lock.owned

    def locked(self, decide: Callable[[], R]) -> R:
        """Return what *decide* says under the lock."""
        with self.lock:
            said = decide()
        return said

    def decide(
        self, decide: Callable[[], D], deadline: float | None = None, *, here: bool = False
    ) -> D:
        """Carry out, and return, what *decide* says under the lock; see :meth:`carry_out`."""
        with self.lock:
            decision = decide()
        self.carry_out(decision, deadline, here=here)
        return decision

    def conclude(self, decide: Callable[[], Decision[T]]) -> bool:
        """:meth:`decide` what must not be lost; whether it is done, or left to a thread that can wait for the lock."""
        try:
            self.decide(decide)
        except self.errors.reentered:
            self.spawn(lambda: self.carry_out(self.insist(decide)), "kombu-pools-late")
            return False
        return True

    def insist(self, decide: Callable[[], R]) -> R:
        """:meth:`locked` for a step that must not be lost: it waits for the lock without end."""
        with self.lock.patient:
            said = decide()
        return said

    def _gives_back_what_was_left(self) -> bool:
        """Give the lock back if this thread has it, and is in no decision of this pool; whether it did.

        On Python 3.14 an exception that is thrown into a thread may come between the taking of a lock and the ``with``
        block that gives it back.
        """
        frame = _getframe(1).f_back
        while frame is not None:
            if frame.f_code in _DECIDES and frame.f_locals.get("self") is self:
                return False
            frame = frame.f_back
        while self.owned():
            self.lock.__exit__(None, None, None)
        return True

    def carry_out(
        self, decision: Decision[T], deadline: float | None = None, *, here: bool = False
    ) -> None:
        """Start the openings of *decision*, and close what it says.

        :param deadline: until when the caller has time, by the pool's clock.
        :param here: the caller waits: what no thread can open, it opens itself.
        """
        if here:
            # In this order: two threads at work at once take longer than one after the other.
            self._close(decision, deadline)
        if decision.openings:
            self.opener.start(decision.openings, deadline, here=here)
        if not here:
            self._close(decision, deadline)

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def errors(self) -> ErrorFamily:
        """The classes that it raises."""
        return self.refusals.errors

    @property
    def limit(self) -> int | None:
        """Most items; ``None`` is unlimited. Changed by :meth:`resize`."""
        return self.state.limit

    @property
    def size(self) -> int:
        """Items that the pool answers for, whatever their state."""
        return self.state.size

    @property
    def lent(self) -> int:
        """Items in the hands of borrowers."""
        return self.state.lent_count

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.state.closed

    @property
    def can_renew(self) -> bool:
        """Whether the pool has open items, and may open others."""
        return self.state.can_renew

    def lent_of(self, share: Share) -> int:
        """Items lent with *share*."""
        return len(share.lent)

    def loan_of(self, item: T) -> tuple[Entry[T], int] | None:
        """What stands for the present loan of *item*, and no other; ``None`` if nobody has it."""
        return self.locked(lambda: self.state.loan_of(item))

    def keeps(self, item: T) -> bool:
        """Whether *item* is idle, lent or reserved; not whether it is being closed."""
        return self.locked(lambda: self.state.keeps(item))

    def stats(self) -> PoolStats:
        """A snapshot, taken in one critical section."""
        fork.child_begins()
        return self.locked(lambda: self.state.stats(self.name))

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}: {self.describe()}>"

    def describe(self) -> str:
        """The state in words."""
        return self.state.describe()

    # -- acquire -------------------------------------------------------------------------------------

    def acquire(
        self,
        wait: bool = False,
        timeout: float | None = None,
        share: Share | None = None,
        kind: type[Lease[Any]] = Lease,
        waits_for_broker: bool = True,
    ) -> Any:
        """Lend an item.

        :param wait: wait for one, without end unless there is a *timeout*; a *timeout* implies it.
        :param timeout: seconds for everything together: waiting, opening, checking.
        :param share: count the lease against this share too.
        :param kind: what to lend: :class:`Lease`, or a subclass that is made without arguments.
        :param waits_for_broker: ``False``: wait for what others give back, but not for a broker that is down: raise
            *open_failed* after the first attempt to open, or at once, between the attempts of others.
        :returns: a *kind*.
        :raises Exception: of the pool's :class:`ErrorFamily`: *exhausted*, *timeout*, *full*, *closed*,
            *reentered*, or *open_failed* with the driver's error as its cause.
        """
        if not _mark[0]:
            # Before the lock is touched, which a child may have inherited locked.
            fork.child_begins()
        now = self.clock()
        if self.deferred or now >= self.overdue_at or _is_finalizing():
            self._work_before_lending(now, timeout)
        if self.owned() and not self._gives_back_what_was_left():
            raise self.refusals.interrupted_itself()
        # Closes the race of a borrower and somebody who begins to wait.
        with self.lock:
            lease: Lease[T] | None = self.state.lend(share, now, kind)
        entry = why = None
        if lease is not None:
            entry = lease.entry
            # Most need no check: asked here, for speed.
            if entry is None or now >= entry.fresh_until or now >= entry.expires_at:
                why = self.why_unfit(lease, now)
        if lease is None or why is not None:
            deadline = None if timeout is None else now + timeout
            waiter: Waiter[T] = Waiter(
                share,
                kind,
                blocking=wait or deadline is not None,
                waits_for_broker=waits_for_broker,
            )
            lease = Wait(self, waiter, deadline).until_served(lease, why)
            entry = lease.entry
        # From two frames up: in between is `acquire` of a connection or producer pool, or who uses the engine itself.
        try:
            asking = _getframe(2)
        except ValueError:
            # No line of Python stands for the borrower.
            return lease
        frame = outside(asking) if ours[asking.f_code.co_filename] else asking
        if frame is not None and entry is not None:
            entry.code = frame.f_code
            entry.instruction = frame.f_lasti
            if self._with_stack:
                entry.stack = stack_of(frame)
        return lease

    def _work_before_lending(self, now: float, timeout: float | None) -> None:
        """End deferred releases, and do the maintenance thread's work if that is overdue."""
        if _is_finalizing():
            raise self.refusals.at_the_end()
        self.end_deferred()
        if now < self.overdue_at or self.owned():
            return
        self.overdue_at = now + maintenance.OVERDUE
        # Threads for maintenance and control may be startable by now.
        self.keeper.watch(self)
        self.reports.tell("wanted")
        self.run_maintenance(None if timeout is None else now + timeout)

    def why_unfit(self, lease: Lease[T], now: float) -> str | None:
        """Return why what was lent must not be used but closed, or ``None``."""
        entry = lease.entry
        # None, if the exit handler of the pools has ended it meanwhile.
        return None if entry is None else self._checker.why_unfit(lease, entry, now)

    # -- for those who wait ----------------------------------------------------------------------------

    def leave(self, waiter: Waiter[T], began: float) -> float:
        """Take *waiter*, who has waited since *began*, out of the queue; return the seconds."""
        waited = self.clock() - began
        # Whoever was served was taken out after that, and has nothing to decide: it does not meet its releaser at the
        # lock. Closes the race between a time-out and a hand-over: whoever was served by now, is served.
        if waiter in self.state.waiters and not self.conclude(lambda: self.state.leave(waiter)):
            # Nobody serves it until it is out.
            waiter.error = waiter.error or self.refusals.lock_is_held()
        if self.opener.threadless and self.state.openings.unclaimed:
            # No thread will carry out the openings that this caller had no time for.
            self.opener.leave()
        return waited

    def look_again(self, deadline: float | None = None, waiter: Waiter[T] | None = None) -> None:
        """Pump, and carry out what nobody has taken up: no thread runs, or it was killed.

        :param waiter: the waiter that looks for itself, if one does.
        """
        self.end_deferred()
        decision, unclaimed = self.locked(
            lambda: self.state.look_again(lambda: self.refusals.outage(self.state), waiter)
        )
        self.carry_out(decision, deadline, here=True)
        if unclaimed:
            self.opener.open_all(deadline)

    def refuse(self, reason: str, seconds: float = 0.0) -> Exception:
        """Count a refusal, tell the listener, and return the error.

        :param seconds: how long the caller has waited.
        """
        with self.lock:
            self.state.count_refusal(reason, waited=seconds > 0)
            error = self.refusals.refusal(reason, self.state, seconds)
        if reason in ("exhausted", "full", "timeout"):
            self.reports.tell("exhausted", reason)
        return error

    # -- release -------------------------------------------------------------------------------------

    def release(self, lease: Lease[T], broken: str | None = None) -> None:
        """Take a lease back; a second time it does nothing.

        :param broken: why the item must not be lent again (a key of ``CLOSE_REASONS``); ``None`` if it may.
        :raises Exception: the family's *lease* error if the lease is another pool's.
        """
        if not _mark[0]:
            fork.child_begins()
        entry = lease.entry
        if entry is None or entry.lender is not self:
            self._release_ended(lease)
            return
        loan = entry.loan
        if _is_finalizing() or (self.owned() and not self._gives_back_what_was_left()):
            self._defer(lease, entry, loan, broken)
            return
        try:
            # Closes the race with whoever begins to wait just now, and of two releases of one lease.
            with self.lock:
                decision = self.state.return_lease(lease, broken)
        except self.errors.reentered:
            # Whoever has the lock may wait for this very thread.
            self._defer(lease, entry, loan, broken)
            return
        if decision is not None:
            self.carry_out(decision)

    def _release_ended(self, lease: Lease[T]) -> None:
        """Refuse another pool's lease; let go of what was taken away."""
        if lease.lender is not self:
            raise self.refusals.foreign_lease(lease)
        entry = lease.entry
        if entry is not None and not entry.inherited:
            lease.entry = None
        # A signal handler may have given it back, which nobody has heeded yet. If the lock is held, maintenance will.
        with contextlib.suppress(self.errors.reentered):
            self.end_deferred()

    def _defer(self, lease: Lease[T], entry: Entry[T], loan: int, broken: str | None) -> None:
        """Leave a release to whoever comes next, where the lock must not be waited for.

        This code interrupts the pool itself; or the interpreter ends, and a thread that was stopped may hold the lock.
        """
        # In this order: if this thread is killed in between, the entry is collected, and its finalizer defers this.
        lease.entry = None
        self.deferred.append((entry, entry.loan, broken or ""))
        self.keeper.nudge(self)

    def dropped(self, entry: Entry[T]) -> None:
        """A lease was collected: called by its entry's finalizer, which may only append and nudge."""
        self.deferred.append((entry, entry.loan, "dropped"))
        self.keeper.nudge(self)

    def end_deferred(self) -> None:
        """End the loans whose release was deferred, unless this code interrupts the pool itself.

        Not in an interpreter that ends: a thread that was stopped may hold the lock.
        """
        while self.deferred and not self.owned() and not _is_finalizing():
            # Closes the race of two threads for one of them. It is taken out when it is done: whoever is killed on the
            # way leaves it to the next.
            with self.lock:
                if not self.deferred:
                    return
                entry, loan, reason = self.deferred[0]
                decision, borrower = self.state.return_deferred(entry, loan, reason or None)
                self.deferred.popleft()
            self.carry_out(decision)
            # Now: a log handler that publishes may be waiting for the place that has become free.
            if reason == "dropped" and borrower is not None:
                self.reports.dropped(borrower)

    def lease_error(self, entry: Entry[T] | None) -> Exception:
        """The error for the use of a lease that ended."""
        return self.refusals.lease_ended(entry)

    # -- closing ---------------------------------------------------------------------------------------

    def _close(self, decision: Decision[T], deadline: float | None) -> None:
        for entry, reason in decision.closings:
            if reason in IN_BACKGROUND and self.spawn(
                lambda entry=entry, reason=reason: self.close_entry(entry, reason),  # type: ignore[misc]
                "kombu-pools-close",
            ):
                continue
            left = None if deadline is None else max(0.0, deadline - self.clock())
            self.close_entry(entry, reason, left if left is None else min(left, closing.TOGETHER))

    def close_entry(self, entry: Entry[T], reason: str, timeout: float | None = None) -> None:
        """Close an entry that was moved to ``closing``.

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
            self.conclude(lambda: self.state.closed_one(entry, reason))
            if self.state.is_over:
                # That was the last one of a closed pool: the thread need not wait to find out.
                self.keeper.nudge(self)
        # Now: a log handler that publishes may be waiting for the place that has become free.
        if failed is not None:
            self.reports.failed("closing", failed)
        self.reports.tell("closed", reason)

    def _close_together(self, closings: list[tuple[Entry[T], str]], seconds: float) -> None:
        """Close all of them within *seconds*, because their peers may not answer."""
        closing.close_together(
            [(self, entry, reason) for entry, reason in closings], time.monotonic() + seconds
        )

    # -- maintenance -----------------------------------------------------------------------------------

    def look_after(self, due: float | None = None) -> None:
        """Have the maintenance thread look at the pool, at the latest when something is *due*."""
        if due is None:
            self.keeper.watch(self)
            return
        self.overdue_at = min(self.overdue_at, self.clock() + maintenance.OVERDUE)
        self.keeper.watch(self, due - self.clock())

    def run_maintenance(self, deadline: float | None = None) -> float | None:
        """Do what is due; return the seconds until the next round, or ``None`` if nothing is left to look after.

        Closes what expired, opens what ``min_idle`` asks for, keeps alive what is open, reports leaks and ends deferred
        releases.

        :param deadline: of a borrower who does it in place of the thread, by the pool's clock.
        """
        self.end_deferred()
        due = self.locked(self.expiry.due)
        self.carry_out(Decision(due.openings), deadline, here=True)
        # First what others' lives depend on; the goodbyes, which may take their time, at the end.
        self.keep_idle(due.idle)
        for entry in due.held:
            self._keep_alive(entry, lent=True)
        with self.lock:
            nap = self.expiry.nap()
            self.overdue_at = (
                float("inf") if nap is None else self.clock() + nap + maintenance.OVERDUE
            )
        self.reports.leaks(due.overdue)
        left = (
            closing.TOGETHER if deadline is None else min(closing.TOGETHER, deadline - self.clock())
        )
        self._close_together(due.closings, left)
        return nap

    def keep_idle(self, entries: list[Entry[T]]) -> None:
        """Look after idle *entries*, one at a time: the others stay there for borrowers."""
        for entry in entries:
            if not self.locked(lambda entry=entry: self.expiry.reserve(entry)):  # type: ignore[misc]
                continue
            alive = self._keep_alive(entry, lent=False)
            # Closes the race with everything that happened meanwhile: a drain, a close, somebody who waits.
            self.conclude(lambda entry=entry, alive=alive: self.expiry.put_back(entry, alive))  # type: ignore[misc]

    def _keep_alive(self, entry: Entry[T], *, lent: bool) -> bool:
        try:
            return self.driver.keep_alive(entry.item, lent=lent)
        except Exception as error:
            self.reports.failed("a keep-alive", error)
            return lent

    def reopened(self, item: T, *, broke: bool) -> None:
        """Note that the borrower of *item* has opened it anew: it keeps its place, and is looked after as before.

        :param broke: whether it had to; what broke it may have broken others.
        """
        keep_every = self.driver.keep_alive_every(item)
        # Closes the race with the maintenance, which may be looking for what is due.
        self.locked(lambda: self.expiry.reopened(item, keep_every, broke=broke))
        self.keeper.watch(self)

    def time_left_out(self, seconds: float) -> None:
        """The machine was suspended, or the clock has jumped: nothing expires for that, and all is checked again."""
        self.locked(lambda: self.expiry.skip_time(seconds))

    # -- the limit, suspension and gates -----------------------------------------------------------------

    def resize(self, limit: int | None, *, force: bool = False) -> None:
        """Set the limit.

        :param limit: most items; ``None`` is unlimited.
        :param force: go below what is lent; what is over the limit is closed as it comes back.
        :raises RuntimeError: if more is lent than *limit*, without *force*; nothing has changed then.
        """
        fork.child_begins()
        decision = self.decide(lambda: self.state.resize(limit, force=force))
        if decision.refusal is not None:
            raise self.refusals.in_use(self.state.limit, limit, decision.lent)

    def resize_share(self, share: Share, limit: int | None) -> None:
        """Set the bound of *share*, and wake whoever may go on."""
        fork.child_begins()
        self.decide(lambda: self.state.resize_share(share, limit))

    def suspend(self, mode: Literal["fail", "wait"] = "wait") -> None:
        """Lend and open nothing until :meth:`resume`. ``Pools.suspend`` describes the modes."""
        if mode not in ("fail", "wait"):
            raise ValueError(f"pool {self.name!r}: suspend takes 'fail' or 'wait', not {mode!r}")
        fork.child_begins()
        with self.lock:
            self.state.suspend(mode, lambda: self.refusals.refusal("suspended", self.state))

    def resume(self) -> None:
        """End :meth:`suspend`."""
        fork.child_begins()
        self.decide(self.state.resume)
        self.keeper.nudge(self)
        former, self.suspended_with = self.suspended_with, None
        for one in former or ():
            one.resume()

    def suspend_as(self, former: Pool[T]) -> None:
        """Suspend this pool as *former*, which it replaces, is suspended; :meth:`resume` then ends both."""
        mode = former.state.suspended
        if mode is None or former is self:
            return
        if self.suspended_with is None:
            self.suspended_with = weakref.WeakSet()
        self.suspended_with.add(former)
        self.suspend(mode)

    def shut_gate(self, gate: Gate, item: T, reason: str) -> None:
        """Lend nothing to shares with *gate*, whose borrowers wait, until *item* opens it or is closed.

        :param reason: in a few words, for errors and tables.
        """
        self.locked(lambda: self.state.shut_gate(gate, item, reason))
        # The maintenance looks for the end more often now.
        self.keeper.nudge(self)

    def open_gate(self, gate: Gate, item: T) -> None:
        """End what :meth:`shut_gate` began for *item*."""
        if self.owned():
            # A signal handler, in the middle of this thread's own decision: maintenance, or who waits, does the rest.
            gate.open(item)
            self.keeper.nudge(self)
            return
        self.decide(lambda: self.state.open_gate(gate, item))

    # -- readiness ---------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float) -> None:
        """Wait until ``min_idle`` items are open, and at least one. ``Pools.wait_ready`` says more.

        :raises Exception: the family's *connect_timeout*, caused by the error of the last opening; otherwise as
            :meth:`acquire`.
        """
        deadline = self.clock() + timeout
        leases: list[Lease[T]] = []
        me = _ReadyWait()
        fork.child_begins()
        if _is_finalizing():
            raise self.refusals.at_the_end()
        # What is held here until all are there is not idle: the maintenance would open as many again.
        self.locked(lambda: self.state.pending_ready.keep(me))
        try:
            while self._missing_for_ready():
                # Held until all are there: each is another one.
                waiter: Waiter[T] = Waiter(ignore_outage=True)
                leases.append(Wait(self, waiter, deadline).until_served())
        finally:
            for lease in leases:
                lease.end()
            self.locked(lambda: self.state.pending_ready.drop(me))

    def _missing_for_ready(self) -> int:
        fork.child_begins()
        return self.locked(self.state.missing_for_ready)

    # -- drain, replace and close ------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> Drained:
        """Close all items: idle ones now, lent ones when they come back. ``Pools.drain`` says more."""
        deadline = None if timeout is None else self.clock() + timeout
        return self.begin_drain()(deadline)

    def begin_drain(self) -> Callable[[float | None], Drained]:
        """The first half of :meth:`drain`; returns the second, which takes a deadline, or ``None`` not to wait."""
        fork.child_begins()
        # Together: another drain may begin while this one closes.
        decision, generation = self.locked(lambda: (self.state.drain(), self.state.generation))
        self.carry_out(decision)
        closed, lent = len(decision.closings), decision.lent

        def finish(deadline: float | None) -> Drained:
            left = lent if deadline is None else self.await_returns(generation, deadline)
            return Drained(closed + lent - left, left)

        return finish

    def await_returns(
        self, generation: int, deadline: float, clock: Callable[[], float] | None = None
    ) -> int:
        """Wait until nothing older than *generation* is open; how many still are at the *deadline*.

        :param clock: which the deadline is of, if not the pool's own.
        """
        clock = clock or self.clock
        watcher = AutoResetEvent()
        self.locked(lambda: self.state.watchers.keep(watcher))
        try:
            while True:
                # What was dropped, or given back by a signal handler: nobody else may come by.
                self.end_deferred()
                left = self.locked(lambda: self.state.older_than(generation))
                rest = deadline - clock()
                if not left or rest <= 0:
                    return left
                # Now and then by itself: what a killed thread held goes without a word.
                watcher.wait(min(rest, LOOK_AGAIN))
        finally:
            self.locked(lambda: self.state.watchers.drop(watcher))

    def renew(self, item: T) -> Drained:
        """:meth:`drain`, and take in *item*, which a :class:`.Trial` has opened.

        :returns: how many were closed, and how many are still lent.
        """
        return self._take_in(item, drain=True)

    def take_in(self, item: T) -> None:
        """Take in *item*, which a :class:`.Trial` has opened; close it at once if the pool has no room."""
        self._take_in(item, drain=False)

    def _take_in(self, item: T, *, drain: bool) -> Drained:
        fork.child_begins()
        keep_every = self.driver.keep_alive_every(item)
        decision = self.locked(lambda: self.state.take_in(item, keep_every, drain=drain))
        self.overdue_at = min(self.overdue_at, self.clock() + maintenance.OVERDUE)
        self.carry_out(Decision(decision.openings))
        self.keeper.watch(self)
        self.reports.tell("opened")
        self._close_together(decision.closings, closing.TOGETHER)
        drained = [reason for _, reason in decision.closings if reason == "drained"]
        return Drained(len(drained), decision.lent)

    def replace(self) -> Drained:
        """Make way for another pool: close idle items, and lent ones that come back while nobody waits.

        A caller that still acquires here is served with a new item.

        :returns: how many were closed, and how many are still lent.
        """
        fork.child_begins()
        decision = self.locked(self.state.replace)
        self._close_together(decision.closings, closing.TOGETHER)
        return Drained(len(decision.closings), decision.lent)

    def stop_keeping(self) -> Decision[T]:
        """At the end of the process: keep nothing any more; return what was idle, for the caller to close."""
        return self.locked(self.state.stop_keeping)

    def revoke_leases(self) -> Decision[T]:
        """At the end of the process: end every loan; return what was lent, for the caller to close."""
        return self.locked(self.state.revoke_leases)

    def close(self) -> Drained:
        """Refuse whoever waits and whoever comes; close what is idle, now, and the rest as it comes back."""
        fork.child_begins()
        # To each an error of its own: one, raised in many threads, would gather all their tracebacks.
        decision = self.decide(lambda: self.state.close(self.refusals.closed_while_waiting))
        self.keeper.nudge(self)
        return Drained(len(decision.closings), decision.lent)

    # -- fork ------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Own nothing of what the parent opened: a new lock, empty containers, the same configuration."""
        state = self.state
        # What the collector found in a cycle is not among those that are held any more.
        inherited = list({*state.held.alive(), *(entry for entry, _, _ in self.deferred)})
        self._begin(
            state.limit,
            closed=state.closed,
            suspended=state.suspended,
            replaced=state.replaced,
        )
        for gate in state.shut_gates:
            # The parent's connections are told of its end.
            gate.open_for_all()
        for entry in inherited:
            entry.inherited = True
            entry.lender = None
            if entry.share is not None:
                entry.share.lent.drop(entry)
            try:
                self.driver.abandon(entry.item)
            except Exception as error:
                self.reports.failed("abandoning", error)


#: What takes the lock.
_DECIDES = frozenset(
    one.__code__
    for one in (
        Pool.acquire,
        Pool.decide,
        Pool.end_deferred,
        Pool.insist,
        Pool.locked,
        Pool.release,
        Pool.run_maintenance,
        Pool.suspend,
    )
)
