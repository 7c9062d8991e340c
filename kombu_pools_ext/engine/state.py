"""Every decision about a pool, and what it is decided by.

Nothing here blocks, opens, closes or calls anybody: the pool calls it with its lock held, and carries out what was
decided after the lock is free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar

from .auto_reset_event import AutoResetEvent
from .breaker import AT_ONCE, Breaker
from .decision import Decision, Failed, Opened
from .lease import Borrower, Entry, Gate, Lease, Lender, Share
from .openings import Opening, Openings
from .options import PoolOptions
from .stats import Counters, PoolStats
from .waiters import Waiter, WaitQueue
from .weakrefs import Holding, WeakPlaces

__all__ = ["FOREVER", "PoolState"]

T = TypeVar("T")

#: An expiry comes earlier by up to this part of its interval, at random, so that there is no herd.
JITTER = 0.1
FOREVER = float("inf")


class PoolState(Generic[T]):
    """The containers, limit, generation and counters of one pool, and every decision; to be used under the pool's lock.

    :param lender: the pool, as far as leases need it.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        options: PoolOptions,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        lender: Lender,
    ) -> None:
        self.limit = limit
        self.options = options
        self.closed = False
        #: What callers do while the pool is suspended: ``"wait"`` for its end, or ``"fail"``; ``None`` if it is not.
        self.suspended: Literal["fail", "wait"] | None = None
        #: Closed or suspended.
        self.shut = False
        self.generation = 0
        self.counters = Counters()
        #: The one that was used last is at the end.
        self.idle: list[Entry[T]] = []
        #: Entries that were idle, and that the maintenance looks at now; held by its thread.
        self.reserved: WeakPlaces[Entry[T]] = WeakPlaces()
        #: Entries that are being closed; held by the threads that do it.
        self.closing: WeakPlaces[Entry[T]] = WeakPlaces()
        self.openings = Openings()
        self.breaker = Breaker(jitter)
        #: The gates that are shut.
        self.shut_gates: set[Gate] = set()
        #: Who is to be told when something is closed; held by those who wait.
        self.watchers: WeakPlaces[AutoResetEvent] = WeakPlaces()
        #: One object for each ``wait_ready`` that is under way, which opens what ``min_idle`` asks for, and holds it.
        self.pending_ready: WeakPlaces[object] = WeakPlaces()
        self.waiters: WaitQueue[T] = WaitQueue()
        #: All entries that are open, whatever their state: they count, and a forked child has to abandon them.
        self.held: Holding[Entry[T], T] = Holding()
        self.clock = clock
        self.jitter = jitter
        self.lender = lender
        #: How many entries there have been; the number of the next one.
        self.numbers = 0
        self.check_after = options.check_after
        self.keep = options.keep
        #: Whether an entry of the present generation may have to be closed as well when it comes back, because of the
        #: limit, or because nothing is kept. If not, a release does not look for a reason.
        self.retires = not options.keep
        #: Whether another pool has replaced this one: a returned item serves a waiting caller, or is closed.
        self.replaced = False

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Items that the pool answers for, whatever their state."""
        return len(self.held) + len(self.openings)

    @property
    def lent_count(self) -> int:
        """How many are lent."""
        # An entry that is collected leaves these containers one after the other, so it may be less than 0 for a moment.
        return max(0, len(self.held) - len(self.idle) - len(self.reserved) - len(self.closing))

    @property
    def lent(self) -> list[Entry[T]]:
        """The lent entries, by strong references; slow, for what happens seldom."""
        return [entry for entry in self.held.alive() if entry.lender is not None]

    @property
    def max_waiting(self) -> int | None:
        """How many callers may wait; ``None`` is any number."""
        return self.options.waiting_limit(self.limit)

    def describe(self) -> str:
        """The state in words, for a ``repr`` or an error."""
        limit = "unlimited" if self.limit is None else str(self.limit)
        parts = [f"{len(self.idle)} idle", f"{self.lent_count} lent"]
        others = (
            ("opening", self.openings),
            ("reserved", self.reserved),
            ("closing", self.closing),
        )
        parts += [f"{len(container)} {word}" for word, container in others if len(container)]
        state = f"{self.size} of {limit} ({', '.join(parts)}), {len(self.waiters)} waiting"
        if self.breaker.failures:
            state += f", down for {self.clock() - self.breaker.since:.3g} s"
        for gate in self.shut_gates:
            state += f", {gate.reason}"
        if self.suspended:
            state += ", suspended"
        return state + (", closed" if self.closed else "")

    def stats(self, name: str) -> PoolStats:
        """A snapshot."""
        counters = self.counters
        return PoolStats(
            name=name,
            limit=self.limit,
            size=self.size,
            idle=len(self.idle),
            lent=self.lent_count,
            opening=len(self.openings),
            waiting=len(self.waiters),
            acquires=counters.acquires,
            waits=counters.waits,
            timeouts=counters.timeouts,
            refused=counters.refused,
            opened=counters.opened,
            open_failures=counters.open_failures,
            closed=dict(counters.closed),
            seconds_waited=counters.seconds_waited,
            outage=self.clock() - self.breaker.since if self.breaker.failures else None,
            blocked=next((gate.reason for gate in self.shut_gates), None),
            suspended=self.suspended is not None,
        )

    # -- loans ---------------------------------------------------------------------------------------

    def lend(
        self,
        share: Share | None,
        now: float,
        kind: type[Lease[Any]] = Lease,
        *,
        queued: bool = False,
    ) -> Lease[T] | None:
        """Lend the idle entry that was used last: to a caller, unless somebody waits; if *queued*, to a waiter."""
        if not queued:
            self.counters.acquires += 1
            if self.waiters:
                # Nobody is overtaken.
                return None
        if self.shut or (share is not None and not share.has_room()):
            return None
        try:
            entry = self.idle.pop()
        except IndexError:
            return None
        # If this thread is killed from here on, the entry is collected, and its finalizer has it returned.
        entry.lender = self.lender
        entry.loan += 1
        entry.taken_at = now
        # The borrower says who it is once it has the lease.
        entry.code = None
        entry.share = share
        if share is not None:
            share.lent.keep(entry)
        lease: Lease[T] = kind()
        lease.lender = self.lender
        lease.entry = entry
        return lease

    def return_lease(self, lease: Lease[T], broken: str | None) -> Decision[T] | None:
        """End *lease*, if it has not ended before; ``None`` if there is nothing to carry out."""
        entry = lease.entry
        if entry is None or entry.lender is not self.lender:
            return None
        # In this order: whoever has kept the lease must not reach what is another's by then. If this thread is killed
        # in between, the entry is collected, and its finalizer has it returned.
        lease.entry = None
        reason = self._return(entry, broken)
        if reason is not None:
            return self._decided([(entry, reason)])
        return self._decided() if self.waiters else None

    def return_deferred(
        self, entry: Entry[T], loan: int, broken: str | None
    ) -> tuple[Decision[T], Borrower | None]:
        """End loan number *loan* of *entry*, of which a deferred release tells; also, who had borrowed it."""
        if entry.loan != loan or entry.lender is not self.lender:
            # That loan has ended meanwhile, and the entry may be another borrower's by now.
            return Decision(), None
        # If the collector found the entry in a cycle, the weak references to it are gone.
        self.held.keep(entry, entry.item)
        borrower = entry.borrower
        reason = self._return(entry, broken)
        return self._decided([] if reason is None else [(entry, reason)]), borrower

    def _decided(
        self, closings: list[tuple[Entry[T], str]] | None = None, *, lent: int = 0
    ) -> Decision[T]:
        """End a change that may have freed an entry, or capacity."""
        return Decision(self.pump(), closings or [], lent=lent)

    def _return(self, entry: Entry[T], broken: str | None) -> str | None:
        """End the loan of *entry*; the reason for which it must be closed now, or ``None``."""
        if entry.share is not None:
            entry.share.lent.drop(entry)
            entry.share = None
        entry.stack = None
        reason = broken
        if reason is None:
            if self.retires or entry.generation != self.generation:
                reason = self._reason_to_retire(entry)
        elif reason == "broken":
            # What broke this one may have broken the others: a borrower who tries again must not meet them all.
            self.need_checks()
        if reason is None:
            entry.used_at = now = self.clock()
            if not entry.needs_check:
                entry.fresh_until = now + self.check_after
            # Up to here, an entry that is collected is returned by its finalizer.
            entry.lender = None
            self.idle.append(entry)
        else:
            self.begin_closing(entry)
        return reason

    def _reason_to_retire(self, entry: Entry[T]) -> str | None:
        """Why *entry*, which comes back in good order, must not stay."""
        reason = self.reason_to_close(entry)
        if reason is None and not self.keep:
            reason = "not kept"
        if reason in ("drained", "not kept") and self.replaced and self.waiters.next():
            # The returned item works, whereas a new one might not.
            return None
        return reason

    def begin_closing(self, entry: Entry[T]) -> None:
        """Note that *entry* is being closed. It is in no other container: the caller holds it, and has to close it."""
        entry.lender = None
        self.closing.keep(entry)

    def reason_to_close(self, entry: Entry[T]) -> str | None:
        """Why *entry* must not stay."""
        if self.closed:
            return "closed"
        if entry.generation != self.generation:
            return "drained"
        limit = self.limit
        # As `size` counts them, without what is being closed.
        if (
            limit is not None
            and len(self.held) + len(self.openings.under_way) - len(self.closing) > limit
        ):
            return "limit"
        return None

    def need_checks(self) -> None:
        """One was found dead; what killed it may have killed the others: check them, however fresh."""
        for entry in self.held.alive():
            entry.needs_check = True
            entry.fresh_until = 0.0

    # -- waiters -------------------------------------------------------------------------------------

    def enter(
        self, waiter: Waiter[T], unfit: Lease[T] | None = None, why: str | None = None
    ) -> Decision[T]:
        """Put *waiter* into the queue and pump, or say why it is refused.

        :param unfit: what the caller was served already, but cannot use, because of *why*: it is given back in the same
            step, so that the room goes to nobody else, and the caller has not lost its place.
        """
        closings: list[tuple[Entry[T], str]] = []
        entry = None if unfit is None else unfit.entry
        if unfit is not None and entry is not None and entry.lender is self.lender:
            # In the order of return_lease, for its reason.
            unfit.entry = None
            reason = self._return(entry, why)
            closings = [] if reason is None else [(entry, reason)]
        refusal = self._let_in(waiter, first=unfit is not None)
        openings = self.pump() if refusal is None or closings else 0
        return Decision(openings, closings, refusal)

    def _let_in(self, waiter: Waiter[T], *, first: bool) -> str | None:
        if self.shut and (self.closed or self.suspended == "fail" or not waiter.blocking):
            return "closed" if self.closed else "suspended"
        if not waiter.blocking and not self._has_room_for_one_more(waiter.share, first=first):
            return "blocked" if waiter.blocked else "exhausted"
        if self.breaker.failures and not waiter.ignore_outage and self._is_hopeless_for(waiter):
            return "down"
        if not first and self._is_full(waiter.share):
            return "full"
        self.waiters.append(waiter, first=first)
        self.counters.waits += 1
        return None

    def leave(self, waiter: Waiter[T]) -> Decision[T]:
        """Take *waiter* out of the queue, and pump: what was kept for it may serve the next one."""
        self._count_wait(waiter)
        if not self.waiters.remove(waiter):
            return Decision()
        decision = self._decided()
        self.nudge()
        return decision

    def _count_wait(self, waiter: Waiter[T]) -> None:
        if waiter.since is not None:
            self.counters.seconds_waited += self.clock() - waiter.since
            waiter.since = None

    def look_again(
        self, error: Callable[[], Exception], waiter: Waiter[T] | None
    ) -> tuple[Decision[T], int]:
        """Look for what a killed thread has left undone; also, how many openings nobody has taken up.

        :param waiter: the waiter that looks for itself, if one does.
        """
        # Before the pump: what that plans is for other threads, unless none can be started.
        unclaimed = self.openings.unclaimed
        decision = self._decided()
        self.fail_hopeless(error, waiter)
        return decision, unclaimed

    def longest_nap(self, waiter: Waiter[T], now: float, nap: float, check: float) -> float:
        """Seconds that *waiter* may nap before it looks for itself, *nap* at the most.

        Whoever is first in line begins the next probe; while one is under way, it wants to hear of its end within
        *check* seconds.
        """
        retry_at = self.breaker.retry_at
        if not self.breaker.failures or retry_at >= now + nap or self.waiters.next() is not waiter:
            return nap
        return retry_at - now if now < retry_at else check

    def why_unserved(self, waiter: Waiter[T]) -> str:
        """Why *waiter* got nothing until its deadline."""
        if self.suspended:
            return "suspended"
        if waiter.blocked:
            return "blocked"
        return "timeout" if waiter.blocking else "slow"

    def _is_hopeless_for(self, waiter: Waiter[T]) -> bool:
        """Whether a broker that is down leaves *waiter* nothing to wait for."""
        if self.suspended:
            # Nobody asks the broker meanwhile, so nobody knows.
            return False
        now = self.clock()
        under_way = len(self.openings)
        may_probe = not under_way and now >= self.breaker.retry_at
        if may_probe or self.idle or len(self.reserved):
            return False
        if not waiter.waits_for_broker:
            # A blocking waiter waits for the end of the probe that is under way, as if that were its own.
            return not (waiter.blocking and under_way)
        return not self.lent_count and self._outage_lasts(now)

    def _outage_lasts(self, now: float) -> bool:
        """Whether the broker has been away for so long that waiting for it has no point."""
        if self.breaker.failures:
            lasting = now - self.breaker.since
            return not self.breaker.may_pass or lasting >= self.options.outage_patience
        # An opening that neither comes nor fails, such as a name look-up that hangs, is an outage too.
        oldest = self.openings.oldest()
        return oldest is not None and self._hangs_at(now) >= max(oldest, self.breaker.well_at)

    def is_away_for(self, seconds: float) -> bool:
        """Whether nothing is here, and nothing could be opened for *seconds*, or cannot be opened at all."""
        if not (self.breaker.failures or self.openings):
            return False
        if self.lent_count or self.idle or len(self.reserved) or self.suspended:
            return False
        if self.breaker.failures:
            return not self.breaker.may_pass or self.clock() - self.breaker.since >= seconds
        oldest = self.openings.oldest()
        return oldest is not None and self.clock() - oldest >= seconds

    def _hangs_at(self, now: float) -> float:
        """An opening that began then, or earlier, hangs."""
        # Without patience for outages, an opening still has its own time.
        return now - max(self.options.outage_patience, self.options.connect_timeout)

    def fail_hopeless(self, error: Callable[[], Exception], only: Waiter[T] | None = None) -> None:
        """Fail those for whom there is nothing left to wait for, each with an *error*.

        :param only: the waiter that looks for itself, if one does. Each of a crowd does once a second, so it looks at
            the others only when all of them fail.
        """
        # A suspended pool is waited for until its end, whatever is known of the broker.
        nothing = not (self.lent_count or self.idle or len(self.reserved) or self.suspended)
        hopeless = nothing and self._outage_lasts(self.clock())
        if not hopeless and not self.breaker.failures:
            return
        for waiter in list(self.waiters) if hopeless or only is None else [only]:
            if waiter.ended or waiter.ignore_outage:
                continue
            if hopeless or (not waiter.waits_for_broker and self.breaker.failures):
                self._count_wait(waiter)
                waiter.fail(error())
                self.waiters.remove(waiter)

    def _has_room_for_one_more(self, share: Share | None, *, first: bool = False) -> bool:
        """Whether one more can be served, behind those who wait, without anybody giving something back."""
        if self.shut:
            return False
        free = None if self.limit is None else self.limit - self.lent_count
        if first:
            return (free is None or free > 0) and (share is None or share.has_room())
        return self.waiters.has_room_behind(share, free)

    def _is_full(self, share: Share | None) -> bool:
        """Whether as many wait as may; whom an opening will serve, without others' doing, is let in besides."""
        most = self.max_waiting
        if most is None or len(self.waiters) < most:
            return False
        return self.limit is None or not self._has_room_for_one_more(share)

    def count_refusal(self, reason: str, *, waited: bool) -> None:
        """Count a caller that was turned away, or (*waited*) got nothing until its deadline."""
        if waited or reason in ("timeout", "slow"):
            self.counters.timeouts += 1
        else:
            self.counters.refused += 1

    def pump(self) -> int:
        """Serve waiters, in their order, with what is idle; return how many openings to start for the others.

        To be called after every change that frees an entry or capacity: this prevents lost wake-ups.
        """
        if self.shut:
            return 0
        served = False
        while self.waiters:
            waiter = self.waiters.next()
            if waiter is None or not self.idle:
                break
            lease = self.lend(waiter.share, self.clock(), waiter.kind, queued=True)
            if lease is None:
                break
            served = True
            self._count_wait(waiter)
            # Served, then taken out: the other way round, a kill in between would leave it to wait for ever.
            waiter.serve(lease)
            self.waiters.remove(waiter)
        if served:
            self.nudge()
        return self.plan(self.waiters.servable(AT_ONCE)) if self.waiters else 0

    def nudge(self) -> None:
        """Have whoever is first in line now, in an outage, look when the next probe is due.

        It may be in a nap that began before the last opening failed, or while somebody else stood before it.
        """
        if self.breaker.failures and (waiter := self.waiters.next()) is not None:
            waiter.set()

    def plan(self, wanted: int) -> int:
        """Plan up to *wanted* openings, as far as limit and breaker allow; return how many to start."""
        room = wanted if self.limit is None else self.limit - self.size
        if room <= 0:
            return 0
        now = self.clock()
        # What the maintenance looks at comes in a moment, and so does what is under way, unless it hangs.
        coming = len(self.reserved) + self.openings.since(self._hangs_at(now))
        missing = min(wanted - coming, room)
        planned = max(0, min(missing, self.breaker.allows(now) - len(self.openings)))
        for _ in range(planned):
            self.openings.add(Opening(self.generation, now))
        return planned

    # -- openings and closings -----------------------------------------------------------------------

    def leave_openings(self) -> None:
        """Have the first in line carry out what is planned; without anybody in line, forget that."""
        waiter = self.waiters.next()
        if waiter is None:
            self.openings.cancel_unclaimed()
        else:
            waiter.set()

    def opened(self, opening: Opening, item: T, keep_every: float | None) -> Opened[T]:
        """Take in what was opened: for whoever waits, to the idle ones, or to be closed at once.

        :param keep_every: seconds between two looks of the maintenance; ``None`` for none.
        """
        down_since = self.breaker.since
        is_back = self.breaker.succeeded(self.clock())
        entry, reason = self._take_up(opening, item, keep_every)
        return Opened(
            self.pump(),
            [] if reason is None else [(entry, reason)],
            due=min(entry.keep_at, entry.used_at + entry.idle_span, entry.expires_at),
            outage=self.clock() - down_since if is_back else None,
        )

    def _take_up(
        self, opening: Opening, item: T, keep_every: float | None
    ) -> tuple[Entry[T], str | None]:
        known = self.openings.done(opening)
        now = self.clock()
        entry = Entry(
            item,
            number=self.numbers,
            generation=opening.generation,
            now=now,
            expires_at=now + self._shortened(self.options.max_lifetime),
            idle_span=self._shortened(self.options.idle_timeout),
            keep_every=keep_every,
        )
        self.numbers += 1
        entry.fresh_until = now + self.check_after
        self.held.keep(entry, item)
        self.counters.opened += 1
        # One that is unknown was cancelled by close().
        reason = self.reason_to_close(entry) if known else "closed"
        if reason is None and not self.keep and self.waiters.next() is None:
            reason = "not kept"
        (self.idle.append if reason is None else self.begin_closing)(entry)
        return entry, reason

    def opening_failed(
        self,
        opening: Opening,
        cause: BaseException,
        error: Callable[[], Exception],
        *,
        may_pass: bool,
    ) -> Failed[T]:
        """An opening failed: tell those who do not wait for the outage's end.

        :param error: makes the error for one caller.
        :param may_pass: whether a later opening may succeed without anybody's doing.
        """
        self.openings.done(opening)
        self.counters.open_failures += 1
        first = self.breaker.failed(self.clock(), opening.began, cause, may_pass=may_pass)
        self.fail_hopeless(error)
        self.nudge()
        return Failed(self.pump(), first=first)

    def opening_interrupted(self, opening: Opening) -> Decision[T]:
        """The thread of an opening was interrupted, which says nothing of the broker: others go on."""
        self.openings.done(opening)
        return self._decided()

    def closed_one(self, entry: Entry[T], reason: str) -> Decision[T]:
        """*entry* is closed: only now is its capacity free, for until now the broker saw it."""
        self.closing.drop(entry)
        self.held.drop(entry)
        self.counters.closed[reason] += 1
        for gate in list(self.shut_gates):
            gate.open(entry.item)
        self.forget_open_gates()
        for watcher in self.watchers.alive():
            watcher.set()
        return self._decided()

    @property
    def is_over(self) -> bool:
        """Whether the pool is closed, and so is all that it had."""
        return self.closed and not self.held

    def forget_open_gates(self) -> None:
        """Forget those of the shut gates that are open now; to be called after a gate may have been opened."""
        for gate in list(self.shut_gates):
            if gate.reason is None:
                self.shut_gates.discard(gate)

    def begin_closing_idle(self, entries: list[Entry[T]]) -> list[Entry[T]]:
        """Move those of *entries* that are still idle to ``closing``, and return them."""
        retired = []
        for entry in entries:
            # Else it was lent meanwhile.
            with contextlib.suppress(ValueError):
                self.idle.remove(entry)
                self.begin_closing(entry)
                retired.append(entry)
        return retired

    def _shortened(self, seconds: float | None) -> float:
        return FOREVER if seconds is None else seconds * (1.0 - JITTER * self.jitter())

    # -- resize, drain, close, suspend ------------------------------------------------------------------

    def resize(self, limit: int | None, *, force: bool) -> Decision[T]:
        """Set the limit, and close the idle entries that are over it now, the coldest first.

        Below what is lent it is refused without *force*.
        """
        lent = self.lent_count
        if limit is not None and lent > limit and not force:
            return Decision(refusal="in use", lent=lent)
        # First, for whoever is killed in between: what comes back is asked then whether it may stay.
        self.retires = True
        self.limit = limit
        self.retires = not self.keep or (limit is not None and self.size > limit)
        over = 0 if limit is None else max(0, self.size - len(self.closing) - limit)
        return self._decided(self._close_idle(self.idle[:over], "limit"))

    def _close_idle(self, entries: list[Entry[T]], reason: str) -> list[tuple[Entry[T], str]]:
        return [(entry, reason) for entry in self.begin_closing_idle(entries)]

    def resize_share(self, share: Share, limit: int | None) -> Decision[T]:
        """Set the bound of *share*."""
        share.set_limit(limit)
        return self._decided()

    def shut_gate(self, gate: Gate, item: T, reason: str) -> None:
        """Lend nothing to shares with *gate* until *item* opens it, or is closed."""
        # First, for a thread may fork in between: the child opens those that it knows.
        self.shut_gates.add(gate)
        gate.shut(item, reason)

    def open_gate(self, gate: Gate, item: T) -> Decision[T]:
        """*item* opens *gate*."""
        gate.open(item)
        self.forget_open_gates()
        return self._decided()

    def drain(self, reason: str = "drained") -> Decision[T]:
        """Begin a new generation, and close what is idle of the old one."""
        self.generation += 1
        closings = self._close_idle(list(self.idle), reason)
        return Decision(closings=closings, lent=self.older_than(self.generation) - len(closings))

    def stop_keeping(self) -> Decision[T]:
        """Keep nothing any more, at the end of the process; close what is idle."""
        self.keep, self.retires = False, True
        return self.drain("closed")

    def replace(self) -> Decision[T]:
        """Make way for another pool: keep nothing idle any more, and close what is idle."""
        self.replaced = True
        self.keep, self.retires = False, True
        decision = self.drain()
        decision.lent = self.lent_count
        return decision

    def take_in(self, item: T, keep_every: float | None, *, drain: bool) -> Decision[T]:
        """Take in *item*, which a trial has opened, and *drain* before that; close it at once if there is no room."""
        drained = self.drain() if drain else Decision()
        now = self.clock()
        self.breaker.succeeded(now)
        opening = Opening(self.generation, now)
        self.openings.take_up(opening)
        entry, reason = self._take_up(opening, item, keep_every)
        if reason is not None:
            drained.closings.append((entry, reason))
        drained.openings = self.pump()
        return drained

    def revoke_leases(self) -> Decision[T]:
        """End every loan, and close what was lent."""
        revoked: list[tuple[Entry[T], str]] = []
        for entry in self.lent:
            self._return(entry, "closed")
            revoked.append((entry, "closed"))
        return Decision(closings=revoked)

    def close(self, error: Callable[[], Exception]) -> Decision[T]:
        """Refuse everything from now on, fail each waiter with an *error*, and close what is idle."""
        self.closed = self.shut = True
        self._fail(self.waiters, error)
        self.openings.cancel_unclaimed()
        decision = self.drain("closed")
        decision.lent = self.lent_count
        return decision

    def suspend(self, mode: Literal["fail", "wait"], error: Callable[[], Exception]) -> None:
        """Lend nothing and open nothing from now on; fail those who must not wait for the end, each with an *error*.

        :param mode: ``"fail"``: nobody waits; ``"wait"``: those do who wait for what others give back.
        """
        self.suspended = mode
        self.shut = True
        self._fail([one for one in self.waiters if mode == "fail" or not one.blocking], error)
        self.openings.cancel_unclaimed()

    def resume(self) -> Decision[T]:
        """Lend again; an outage from before is forgotten, for nobody has asked the broker meanwhile."""
        if self.suspended:
            self.breaker.begin_anew()
        # In this order: whoever is killed in between leaves a pool that lends.
        self.shut = self.closed
        self.suspended = None
        return self._decided()

    def _fail(self, waiters: Iterable[Waiter[T]], error: Callable[[], Exception]) -> None:
        for waiter in list(waiters):
            if not waiter.ended:
                self._count_wait(waiter)
                waiter.fail(error())
            self.waiters.remove(waiter)

    def older_than(self, generation: int) -> int:
        """How many of the generations before *generation* are not closed yet."""
        old = {entry for entry in self.held.alive() if entry.generation < generation}
        return len(old.difference(self.idle))

    # -- what a borrower, or a caller, asks about -----------------------------------------------------

    def loan_of(self, item: T) -> tuple[Entry[T], int] | None:
        """What stands for the present loan of *item*, and no other; ``None`` if nobody has it."""
        return next(((e, e.loan) for e in self.lent if e.item is item), None)

    def keeps(self, item: T) -> bool:
        """Whether *item* is idle, lent or reserved; not whether it is being closed."""
        places = (*self.idle, *self.lent, *self.reserved.alive())
        return any(entry.item is item for entry in places)

    def missing_for_ready(self) -> int:
        """How many more have to be open until ``min_idle`` are, or one, where none is asked for."""
        wanted = max(1, self.options.min_idle)
        if self.limit is not None:
            wanted = min(wanted, self.limit)
        return max(0, wanted - (len(self.held) - len(self.closing)))

    @property
    def can_renew(self) -> bool:
        """Whether there are open items, and others may be opened."""
        return not self.shut and len(self.held) > len(self.closing)
