"""What an operator does to a pool: resize, suspend and resume, drain, close, wait until it is ready."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

from . import aging, fork, upkeep
from .borrowing import LOOK_AGAIN, wait_for_lease
from .counters import Drained
from .lease import Gate, Lease, Share
from .refusals import refusal
from .waiting import Waiter, Watcher

if TYPE_CHECKING:
    from .driver import Driver
    from .errors import ErrorFamily
    from .lease import Entry
    from .ledger import Ledger
    from .options import PoolOptions
    from .upkeep import NoUpkeep, Upkeep

__all__ = ["Operations"]

T = TypeVar("T")


class _Warming:
    """One caller's wait for readiness."""

    __slots__ = ("__weakref__",)


class Operations(Generic[T]):
    """The part of :class:`~.pool.Pool` that borrowers do not use."""

    if TYPE_CHECKING:
        name: str
        options: PoolOptions
        errors: ErrorFamily
        clock: Callable[[], float]
        lock: Any
        ledger: Ledger[T]
        keeper: Upkeep | NoUpkeep
        driver: Driver[T]
        overdue_at: float
        suspended_with: weakref.WeakSet[Any] | None

        def tell(self, event: str, *args: Any) -> None: ...

        def start_openings(self, count: int) -> None: ...

        _owned: Callable[[], bool]

        def settle(self) -> None: ...

        def close_entry(
            self, entry: Entry[T], reason: str, timeout: float | None = None
        ) -> None: ...

        def refuse_at_the_end(self) -> NoReturn: ...

    # -- the limit -------------------------------------------------------------------------------------

    def resize(self, limit: int | None, *, force: bool = False) -> None:
        """Set the limit.

        :param limit: most items; ``None`` is unlimited.
        :param force: go below what is lent; what is over the limit is closed as it comes back.
        :raises RuntimeError: if more is lent than *limit*, without *force*; nothing has changed then.
        """
        fork.child_begins()
        with self.lock:
            # Nobody takes one while they are counted.
            self.ledger.disturb()
            lent = self.ledger.lent_count
            if limit is not None and lent > limit and not force:
                raise RuntimeError(
                    f"pool {self.name!r}: can't shrink pool when in use: was={self.ledger.limit} "
                    f"now={limit}, {lent} lent; pass force=True to close them as they come back"
                )
            over = self.ledger.resize(limit)
            openings = self.ledger.pump()
        self.start_openings(openings)
        for entry in over:
            self.close_entry(entry, "limit")

    def resize_share(self, share: Share, limit: int | None) -> None:
        """Set the bound of *share*, and wake whoever may go on."""
        fork.child_begins()
        with self.lock:
            share.set_limit(limit)
            self.ledger.look_at_shares()
            openings = self.ledger.pump()
        self.start_openings(openings)

    # -- suspend and resume, gates -----------------------------------------------------------------------

    def suspend(self, mode: Literal["fail", "wait"] = "wait") -> None:
        """Lend nothing and open nothing until :meth:`resume`; what is lent comes back as ever.

        :param mode: whoever asks, or waits already, is to ``"wait"`` for the end, until his deadline, or to
            ``"fail"`` at once. Whoever does not wait fails in both.
        :raises ValueError: for another mode.
        """
        if mode not in ("fail", "wait"):
            raise ValueError(f"pool {self.name!r}: suspend takes 'fail' or 'wait', not {mode!r}")
        fork.child_begins()
        with self.lock:
            self.ledger.suspend(mode, lambda: self._refusal("suspended"))

    def resume(self) -> None:
        """End :meth:`suspend`: lend again, first to those who waited meanwhile."""
        fork.child_begins()
        with self.lock:
            self.ledger.resume()
            openings = self.ledger.pump()
        self.start_openings(openings)
        self.keeper.nudge(self)
        former, self.suspended_with = self.suspended_with, None
        for one in former or ():
            one.resume()

    def suspend_as(self, former: Operations[T]) -> None:
        """Suspend this pool as *former*, which it replaces, is suspended; :meth:`resume` then ends both."""
        mode = former.ledger.suspended
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
        with self.lock:
            # First, for a thread may fork in between: the child opens those that it knows.
            self.ledger.shut_gates.add(gate)
            gate.shut(item, reason)
            self.ledger.look_at_shares()
        # Upkeep looks for the end more often now.
        self.keeper.nudge(self)

    def open_gate(self, gate: Gate, item: T) -> None:
        """End what :meth:`shut_gate` began for *item*."""
        if self._owned():
            # A signal handler, in the middle of this thread's own decision: upkeep, or who waits, does the rest.
            gate.open(item)
            self.keeper.nudge(self)
            return
        with self.lock:
            gate.open(item)
            self.ledger.forget_open_gates()
            openings = self.ledger.pump()
        self.start_openings(openings)

    def _refusal(self, reason: str) -> Exception:
        return refusal(reason, self.name, self.ledger, self.errors, 0.0)

    # -- readiness -----------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float) -> None:
        """Return when ``min_idle`` items are open, or one, where none is asked for.

        It waits through an outage, however long that has lasted.

        :param timeout: seconds.
        :raises Exception: the family's *connect_timeout*, with what the last opening failed of as its cause, or as
            for an acquire.
        """
        deadline = self.clock() + timeout
        leases: list[Lease[T]] = []
        me = _Warming()
        fork.child_begins()
        if sys.is_finalizing():
            self.refuse_at_the_end()
        with self.lock:
            # What is held here until all are there is not idle: upkeep would open as many again.
            self.ledger.warming.keep(me)
        try:
            while self._missing():
                # Held until all are there: each is another one.
                waiter: Waiter[T] = Waiter(stubborn=True)
                leases.append(wait_for_lease(self, deadline, waiter))  # type: ignore[arg-type]  # this is a Pool
        finally:
            for lease in leases:
                lease.end()
            with self.lock:
                self.ledger.warming.drop(me)

    def _missing(self) -> int:
        fork.child_begins()
        with self.lock:
            ledger = self.ledger
            wanted = max(1, self.options.min_idle)
            if ledger.limit is not None:
                wanted = min(wanted, ledger.limit)
            there = len(ledger.held) - len(ledger.closing)
        return max(0, wanted - there)

    # -- drain and close -----------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> Drained:
        """Close what is idle, now, and what is lent, when it comes back; the pool stays usable.

        :param timeout: seconds to wait for what is lent; ``None`` is not to wait.
        :returns: how many were closed, and how many are still lent.
        """
        deadline = None if timeout is None else self.clock() + timeout
        return self.begin_drain()(deadline)

    def begin_drain(self) -> Callable[[float | None], Drained]:
        """The first half of :meth:`drain`; returns the second, which takes a deadline, or ``None`` not to wait."""
        fork.child_begins()
        with self.lock:
            entries = self.ledger.drain()
            generation = self.ledger.generation
            lent = self.ledger.older_than(generation) - len(entries)
        for entry in entries:
            self.close_entry(entry, "drained")

        def finish(deadline: float | None) -> Drained:
            left = lent if deadline is None else self.await_returns(generation, deadline)
            return Drained(len(entries) + lent - left, left)

        return finish

    @property
    def can_renew(self) -> bool:
        """Whether the pool has open items, and may open others."""
        ledger = self.ledger
        return not ledger.shut and len(ledger.held) > len(ledger.closing)

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
        with self.lock:
            entries = self.ledger.drain() if drain else []
            lent = self.ledger.older_than(self.ledger.generation) - len(entries)
            entry, reason = self.ledger.take_in(item, keep_every)
            openings = self.ledger.pump()
            self.overdue_at = min(self.overdue_at, self.clock() + upkeep.OVERDUE)
        self.start_openings(openings)
        self.keeper.watch(self)  # type: ignore[arg-type]  # this is a Pool
        self.tell("opened")
        if reason is not None:
            self.close_entry(entry, reason)
        self._close_drained(entries)
        return Drained(len(entries), lent)

    def replace(self) -> Drained:
        """Make way for another pool: close idle items, and lent ones that come back while nobody waits.

        A caller that still acquires here is served with a new item.

        :returns: how many were closed, and how many are still lent.
        """
        fork.child_begins()
        with self.lock:
            entries = self.ledger.replace()
            lent = self.ledger.lent_count
        self._close_drained(entries)
        return Drained(len(entries), lent)

    def _close_drained(self, entries: list[Entry[T]]) -> None:
        """Close all *entries* within the time of one goodbye, because their peer may not answer."""
        closing: list[Any] = [(self, entry, "drained") for entry in entries]
        upkeep.close_together(closing, time.monotonic() + upkeep.TOGETHER)

    def await_returns(
        self, generation: int, deadline: float, clock: Callable[[], float] | None = None
    ) -> int:
        """Wait until nothing older than *generation* is open; how many still are at the *deadline*.

        :param clock: which the deadline is of, if not the pool's own.
        """
        clock = clock or self.clock
        watcher = Watcher()
        with self.lock:
            self.ledger.watchers.keep(watcher)
        try:
            while True:
                # What was dropped, or given back by a signal handler: nobody else may come by.
                self.settle()
                with self.lock:
                    left = self.ledger.older_than(generation)
                rest = deadline - clock()
                if not left or rest <= 0:
                    return left
                # Now and then by itself: what a killed thread held goes without a word.
                watcher.wait(min(rest, LOOK_AGAIN))
        finally:
            with self.lock:
                self.ledger.watchers.drop(watcher)

    def retire(self) -> list[Entry[T]]:
        """At the end of the process: keep nothing any more; return what was idle, for the caller to close."""
        with self.lock:
            entries = self.ledger.retire()
        return entries

    def recall(self) -> list[Entry[T]]:
        """At the end of the process: end every loan; return what was lent, for the caller to close."""
        with self.lock:
            entries = self.ledger.recall()
        return entries

    def close(self) -> Drained:
        """Refuse whoever waits and whoever comes; close what is idle, now, and the rest as it comes back."""
        fork.child_begins()
        words = f"pool {self.name!r}: closed while waiting"
        with self.lock:
            # To each an error of its own: one, raised in many threads, would gather all their tracebacks.
            entries = self.ledger.close(lambda: self.errors.closed(words))
            lent = self.ledger.lent_count
        for entry in entries:
            self.close_entry(entry, "closed")
        self.keeper.nudge(self)
        return Drained(len(entries), lent)

    def time_left_out(self, seconds: float) -> None:
        """The machine was suspended, or the clock has jumped: nothing expires for that, and all is checked again."""
        with self.lock:
            aging.skip_time(self.ledger, seconds)
