"""Every decision about a pool.

Nothing here blocks, opens, closes or calls anybody: the pool calls it with its lock held, and carries out
what it decided after the lock is free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from .breaker import AT_ONCE
from .lease import Entry, Share
from .loans import Loans
from .tickets import Ticket
from .waiting import Waiter

__all__ = ["FOREVER", "Ledger"]

T = TypeVar("T")

#: An expiry comes earlier by up to this part of its interval, at random, so that there is no herd.
JITTER = 0.1
FOREVER = float("inf")


class Ledger(Loans[T]):
    """Who waits, what is opened and what is closed."""

    # -- waiters -------------------------------------------------------------------------------------

    def enqueue(self, waiter: Waiter[T], *, first: bool) -> str | None:
        """Let *waiter* in, or say why not.

        :param first: the caller was served already, but something dead; it has not lost its place.
        """
        if self.shut and (self.closed or self.suspended == "fail" or not waiter.patient):
            return "closed" if self.closed else "suspended"
        if not waiter.patient and not self._has_room_for_one_more(waiter.share, first=first):
            return "blocked" if waiter.blocked else "exhausted"
        if self.breaker.failures and not waiter.stubborn and self._is_hopeless_for(waiter):
            return "down"
        if not first and self._is_full(waiter.share):
            return "full"
        # Before the look at what is idle: who gives back after that look comes by the lock, and finds this waiter.
        self.disturb()
        self.waiters.append(waiter, first=first)
        self.counters.waits += 1
        return None

    def _is_hopeless_for(self, waiter: Waiter[T]) -> bool:
        """Whether a broker that is down leaves *waiter* nothing to wait for."""
        if self.suspended:
            # Nobody asks the broker meanwhile, so nobody knows.
            return False
        now = self.clock()
        may_probe = not len(self.openings) and now >= self.breaker.retry_at
        if may_probe or self.idle or len(self.reserved):
            return False
        return not waiter.patient or (not self.lent_count and self.is_out_of_patience(now))

    def is_out_of_patience(self, now: float) -> bool:
        """Whether the broker has been away for so long that waiting for it has no point."""
        if self.breaker.failures:
            lasting = now - self.breaker.since
            return not self.breaker.may_pass or lasting >= self.options.outage_patience
        # An opening that neither comes nor fails, such as a name look-up that hangs, is an outage too.
        oldest = self.openings.oldest()
        return oldest is not None and self._hangs_at(now) >= max(oldest, self.breaker.well_at)

    def _hangs_at(self, now: float) -> float:
        """An opening that began then, or earlier, hangs."""
        # Without patience for outages, an opening still has its own time.
        return now - max(self.options.outage_patience, self.options.connect_timeout)

    def give_up(self, error: Callable[[], Exception]) -> None:
        """Fail those for whom there is nothing left to wait for, each with an *error*."""
        # A suspended pool is waited for until its end, whatever is known of the broker.
        nothing = not (self.lent_count or self.idle or len(self.reserved) or self.suspended)
        hopeless = nothing and self.is_out_of_patience(self.clock())
        for waiter in list(self.waiters):
            if waiter.settled or waiter.stubborn:
                continue
            if hopeless or (not waiter.patient and self.breaker.failures):
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
        """Serve whoever waits, as far as it goes; return how many openings to start.

        To be called after every change that frees an entry or capacity: the one rule against lost wake-ups.
        """
        if self.shut:
            return 0
        served = False
        while self.waiters:
            waiter = self.waiters.next()
            if waiter is None or not self.idle:
                break
            lease = self._lend(waiter.share, self.clock(), waiter.kind)
            if lease is None:
                break
            served = True
            # Served, then taken out: the other way round, a kill in between would leave it to wait for ever.
            waiter.serve(lease)
            self.waiters.remove(waiter)
        if served:
            self.nudge()
        return self.plan(self.waiters.servable(AT_ONCE)) if self.waiters else 0

    def nudge(self) -> None:
        """Have whoever is first in line now, in an outage, look when the next probe is due.

        He may be in a nap that began before the last opening failed, or while somebody else stood before him.
        """
        if self.breaker.failures and (waiter := self.waiters.next()) is not None:
            waiter.nudge()

    def plan(self, wanted: int) -> int:
        """Plan up to *wanted* openings, as far as limit and breaker allow; return how many to start."""
        room = wanted if self.limit is None else self.limit - self.size
        if room <= 0:
            return 0
        now = self.clock()
        # What upkeep is looking at comes in a moment, and so does what is under way, unless it hangs.
        coming = len(self.reserved) + self.openings.since(self._hangs_at(now))
        missing = min(wanted - coming, room)
        planned = max(0, min(missing, self.breaker.allows(now) - len(self.openings)))
        for _ in range(planned):
            self.openings.add(Ticket(self.generation, now))
        return planned

    # -- openings and closings -----------------------------------------------------------------------

    def opened(
        self, ticket: Ticket, item: T, keep_every: float | None
    ) -> tuple[Entry[T], str | None]:
        """Take in what was opened; the reason for which it must be closed at once, or ``None``.

        :param keep_every: seconds between two looks of upkeep; ``None`` for none.
        """
        known = self.openings.done(ticket)
        now = self.clock()
        entry = Entry(
            item,
            number=self.numbers,
            generation=ticket.generation,
            now=now,
            expires_at=now + self._shortened(self.options.max_lifetime),
            idle_span=self._shortened(self.options.idle_timeout),
            keep_every=keep_every,
        )
        self.numbers += 1
        entry.outdated = ticket.generation != self.generation
        self.held.keep(entry, item)
        self.counters.opened += 1
        # A ticket that is unknown was cancelled by close().
        reason = self.reason_to_close(entry) if known else "closed"
        if reason is None and not self.keep and self.waiters.next() is None:
            reason = "not kept"
        (self.idle.append if reason is None else self.begin_closing)(entry)
        return entry, reason

    def failed(
        self,
        ticket: Ticket,
        cause: BaseException,
        error: Callable[[], Exception],
        *,
        may_pass: bool,
    ) -> bool:
        """An opening failed: tell those who do not wait for the outage's end; whether this begins one.

        :param error: makes the error for one caller.
        :param may_pass: whether a later opening may succeed without anybody's doing.
        """
        self.openings.done(ticket)
        self.counters.open_failures += 1
        begins = self.breaker.failed(self.clock(), ticket.began, cause, may_pass=may_pass)
        self.give_up(error)
        self.nudge()
        return begins

    def closed_one(self, entry: Entry[T], reason: str) -> None:
        """*entry* is closed: only now is its capacity free, for until now the broker saw it."""
        self.closing.drop(entry)
        self.held.drop(entry)
        self.counters.closed[reason] += 1
        for gate in list(self.shut_gates):
            gate.open(entry.item)
        self.forget_open_gates()
        for watcher in self.watchers.alive():
            watcher.ring()

    def forget_open_gates(self) -> None:
        """To be called after a gate may have been opened."""
        for gate in list(self.shut_gates):
            if gate.reason is None:
                self.shut_gates.discard(gate)

    def retire_idle(self, entries: list[Entry[T]]) -> list[Entry[T]]:
        """Move those of *entries* that are still idle to ``closing``, and return them."""
        retired = []
        for entry in entries:
            # Else it was lent meanwhile.
            with contextlib.suppress(ValueError):
                self.idle.remove(entry)
                self.begin_closing(entry)
                retired.append(entry)
        return retired

    # -- resize, drain, close, suspend ------------------------------------------------------------------

    def _shortened(self, seconds: float | None) -> float:
        return FOREVER if seconds is None else seconds * (1.0 - JITTER * self.jitter())

    def resize(self, limit: int | None) -> list[Entry[T]]:
        """Set the limit; return the idle entries that are over it now, to be closed, the coldest first."""
        self.limit = limit
        self.look_at_shares()
        if limit is None:
            return []
        self.shrunk = True
        over = max(0, self.size - len(self.closing) - limit)
        return self.retire_idle(list(self.idle)[:over])

    def drain(self) -> list[Entry[T]]:
        """Begin a new generation; return the idle entries of the old one, to be closed."""
        self.disturb()
        self.generation += 1
        for entry in self.held.alive():
            entry.outdated = True
        return self.retire_idle(list(self.idle))

    def retire(self) -> list[Entry[T]]:
        """Keep nothing any more, at the end of the process; return the idle entries, to be closed."""
        self.keep = False
        return self.drain()

    def replace(self) -> list[Entry[T]]:
        """Make way for another pool: keep nothing idle any more; return the idle entries, to be closed."""
        self.replaced = True
        return self.retire()

    def take_in(self, item: T, keep_every: float | None) -> tuple[Entry[T], str | None]:
        """Take in *item*, which a trial has opened; see :meth:`opened`."""
        now = self.clock()
        self.breaker.succeeded(now)
        ticket = Ticket(self.generation, now)
        self.openings.take_up(ticket)
        entry, reason = self.opened(ticket, item, keep_every)
        if (
            reason is None
            and self.limit is not None
            and self.size - len(self.closing) > self.limit
            and self.retire_idle([entry])
        ):
            reason = "limit"
        return entry, reason

    def recall(self) -> list[Entry[T]]:
        """End every loan; return what was lent, to be closed."""
        self.disturb()
        recalled = self.lent
        for entry in recalled:
            self.take_back(entry, "closed")
        return recalled

    def close(self, error: Callable[[], Exception]) -> list[Entry[T]]:
        """Refuse everything from now on, fail each waiter with an *error*; return the idle entries to close."""
        self.disturb()
        self.closed = self.shut = True
        self._fail(self.waiters, error)
        self.openings.cancel_unclaimed()
        return self.drain()

    def suspend(self, mode: Literal["fail", "wait"], error: Callable[[], Exception]) -> None:
        """Lend nothing and open nothing from now on; fail those who must not wait for the end, each with an *error*.

        :param mode: ``"fail"``: nobody waits; ``"wait"``: those do who wait for what others give back.
        """
        self.disturb()
        self.suspended = mode
        self.shut = True
        self._fail([one for one in self.waiters if mode == "fail" or not one.patient], error)
        self.openings.cancel_unclaimed()

    def resume(self) -> None:
        """Lend again; an outage from before is forgotten, for nobody has asked the broker meanwhile."""
        if self.suspended:
            self.breaker.begin_anew()
        # In this order: whoever is killed in between leaves a pool that lends.
        self.shut = self.closed
        self.suspended = None

    def _fail(self, waiters: Iterable[Waiter[T]], error: Callable[[], Exception]) -> None:
        for waiter in list(waiters):
            if not waiter.settled:
                waiter.fail(error())
            self.waiters.remove(waiter)

    def older_than(self, generation: int) -> int:
        """How many of the generations before *generation* are not closed yet."""
        old = {entry for entry in self.held.alive() if entry.generation < generation}
        return len(old.difference(self.idle))
