"""Whatever happens, in whatever order: the pool stays within its limit, and nobody waits who could be served."""

from __future__ import annotations

import gc
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kombu_pools_ext.engine import Gate, Lease, Share
from kombu_pools_ext.engine.breaker import AT_ONCE
from kombu_pools_ext.engine.errors import PoolError
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import Item, rig

choices = st.integers(0, 1000)
PATIENCE_WITH_OUTAGES = 10.0


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        limit=st.sampled_from([None, 1, 2, 3, 5]),
        share=st.sampled_from([None, 1, 2]),
        min_idle=st.sampled_from([0, 0, 2]),
        keep=st.sampled_from([True, True, True, False]),
    )
    def build(self, limit: int | None, share: int | None, min_idle: int, keep: bool) -> None:
        self.rig = rig(
            limit,
            min_idle=min_idle,
            keep=keep,
            idle_timeout=100.0,
            max_lifetime=1000.0,
            check_after=0.5,
            max_waiting=1000,
        )
        self.pool = self.rig.pool
        self.state = self.pool.state
        self.gate = Gate()
        self.share = Share(share, self.gate)
        self.rig.driver.keep_every = 30.0
        #: In the order in which they came: who has not been served or sent away.
        self.waiting: list[Waiter[Item]] = []
        self.leases: list[Lease[Item]] = []
        self.lent_before: set[int] = set()
        #: How far the size may be above the limit: it was so when the limit was lowered, and can only shrink.
        self.excess = 0
        self.ended_forever: list[Lease[Item]] = []

    # -- waiting ----------------------------------------------------------------------------------------

    @rule(with_share=st.booleans())
    def ask(self, with_share: bool) -> None:
        waiter: Waiter[Item] = Waiter(self.share if with_share else None)
        refusal = self.rig.queue_up(waiter)
        if refusal is None:
            self.waiting.append(waiter)
        elif refusal == "down":
            assert self.outage_is_old()
            assert not self.state.lent
        elif refusal == "suspended":
            assert self.state.suspended == "fail"
        else:
            assert refusal == "closed"
            assert self.pool.closed
        self.collect()

    def outage_is_old(self) -> bool:
        breaker = self.state.breaker
        return bool(breaker.failures) and self.rig.clock() - breaker.since >= PATIENCE_WITH_OUTAGES

    @rule()
    def take_what_is_idle(self) -> None:
        """The way of an `acquire` that does not wait."""
        fits = bool(self.state.idle) and not self.state.waiters and not self.state.shut
        # An acquire closes what was idle for too long as well, where maintenance is overdue.
        expired = fits and any(
            self.rig.clock() >= min(one.expires_at, one.used_at + one.idle_span)
            for one in self.state.idle
        )
        dead = fits and not self.state.idle[-1].item.alive
        if not fits or expired or dead:
            return
        self.leases.append(self.pool.acquire())

    @rule()
    def take_what_is_idle_with_a_share(self) -> None:
        idle = bool(self.state.idle) and not self.state.waiters and not self.state.shut
        soon = self.rig.clock() + 0.5
        fresh = idle and all(
            one.item.alive and soon < min(one.expires_at, one.used_at + one.idle_span)
            for one in self.state.idle
        )
        limit = self.share.limit
        full = limit is not None and self.pool.lent_of(self.share) >= limit
        if not fresh or full or self.gate.reason is not None:
            return
        self.leases.append(self.pool.acquire(share=self.share))

    @precondition(lambda self: self.waiting)
    @rule(which=choices)
    def give_up(self, which: int) -> None:
        waiter = self.waiting.pop(which % len(self.waiting))
        self.pool.leave(waiter, self.rig.clock())
        assert not waiter.ended
        self.collect()

    def collect(self) -> None:
        """Who has an outcome by now: in order, among those with the same claim."""
        still: list[Waiter[Item]] = []
        for waiter in self.waiting:
            if not waiter.ended:
                still.append(waiter)
                continue
            assert all(earlier.share is not waiter.share for earlier in still), "overtaken"
            assert waiter.lease is None or waiter.error is None
            if waiter.lease is not None:
                self.leases.append(waiter.lease)
                waiter.lease = None
        self.waiting = still

    # -- openings ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.rig.spawner.queued)
    @rule()
    def opening_ends(self) -> None:
        self.rig.spawner.run_one()
        self.collect()

    @precondition(lambda self: self.rig.spawner.queued)
    @rule()
    def opening_fails(self) -> None:
        self.rig.driver.opening.append(OSError("refused"))
        before = list(self.waiting)
        self.rig.spawner.run_one()
        self.rig.driver.opening.clear()
        failed = [waiter for waiter in before if waiter.error is not None]
        # They wait for the end of the outage: all, or, when it has lasted too long, none.
        if failed:
            assert failed == before
            assert self.outage_is_old()
        self.collect()

    # -- leases -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.leases)
    @rule(which=choices, broken=st.sampled_from([None, None, "broken"]))
    def release(self, which: int, broken: str | None) -> None:
        lease = self.leases.pop(which % len(self.leases))
        self.pool.release(lease, broken=broken)
        assert lease.ended
        self.ended_forever.append(lease)
        self.collect()

    @precondition(lambda self: self.ended_forever)
    @rule(which=choices)
    def release_again(self, which: int) -> None:
        before = self.pool.stats()
        self.pool.release(self.ended_forever[which % len(self.ended_forever)])
        assert self.pool.stats() == before

    @precondition(lambda self: self.leases)
    @rule(which=choices)
    def drop(self, which: int) -> None:
        item = self.leases.pop(which % len(self.leases)).item
        gc.collect(0)
        self.pool.end_deferred()
        assert item.ended == ["broken"]
        self.collect()

    @rule(which=choices, gone=st.booleans())
    def idle_item_dies(self, which: int, gone: bool) -> None:
        if self.state.idle:
            item = self.state.idle[which % len(self.state.idle)].item
            item.alive, item.gone = False, gone

    # -- everything else --------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 60.0, 120.0, 900.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)

    @rule(mode=st.sampled_from(["fail", "wait"]))
    def suspend(self, mode: Literal["fail", "wait"]) -> None:
        if self.pool.closed:
            return
        self.pool.suspend(mode)
        if mode == "fail":
            assert all(waiter.error is not None for waiter in self.waiting)
        self.rig.spawner.run()
        self.collect()

    @rule()
    def resume(self) -> None:
        self.pool.resume()
        self.collect()

    @rule(shut=st.booleans())
    def gate(self, shut: bool) -> None:
        items = self.rig.driver.open_now
        if shut and items:
            self.pool.shut_gate(self.gate, items[0], "the broker is short of memory")
        else:
            for item in items:
                self.pool.open_gate(self.gate, item)
            assert self.gate.reason is None
        self.collect()

    @rule(seconds=st.sampled_from([10.0, 5000.0]))
    def machine_sleeps(self, seconds: float) -> None:
        """Nothing expires for that, and everything is checked before it is used."""
        self.pool.run_maintenance()
        self.collect()
        before = [entry for entry in self.state.idle if entry.item.alive]
        self.rig.clock.advance(seconds)
        self.pool.time_left_out(seconds)
        self.pool.run_maintenance()
        self.collect()
        after = [*self.state.idle, *self.state.lent]
        assert all(entry in after for entry in before)
        assert all(entry.needs_check for entry in before)

    @rule()
    def maintenance(self) -> None:
        self.pool.run_maintenance()
        self.collect()
        now = self.rig.clock()
        assert not any(entry.expires_at <= now for entry in self.state.idle)

    @rule(limit=st.sampled_from([None, 1, 2, 3, 5]), force=st.booleans())
    def resize(self, limit: int | None, force: bool) -> None:
        before = self.pool.stats()
        try:
            self.pool.resize(limit, force=force)
        except RuntimeError:
            assert not force
            assert limit is not None
            assert before.lent > limit
            assert self.pool.stats() == before
            return
        self.excess = 0 if limit is None else max(0, self.pool.size - limit)
        self.collect()

    @rule(limit=st.sampled_from([None, 0, 1, 2, 3]))
    def resize_share(self, limit: int | None) -> None:
        self.pool.resize_share(self.share, limit)
        self.collect()

    @rule()
    def drain(self) -> None:
        idle = [entry.item for entry in self.state.idle]
        lent = len(self.leases)
        assert self.pool.drain() == (len(idle), lent)
        assert all(item.ended for item in idle)
        self.collect()

    @rule()
    def fork(self) -> None:
        """What the child does with what it inherited."""
        open_items = self.rig.driver.open_now
        self.pool.after_fork_in_child()
        self.state = self.pool.state
        self.rig.spawner.queued.clear()
        # The parent's threads are not there.
        self.waiting.clear()
        assert all(item.ended == ["abandoned"] for item in open_items)
        for lease in self.leases:
            assert lease.ended
            self.pool.release(lease)
        self.leases.clear()
        assert self.pool.size == 0
        assert not self.pool.lent_of(self.share)
        self.excess = 0

    @rule(sure=st.integers(0, 9))
    def close(self, sure: int) -> None:
        if sure:
            return
        self.pool.close()
        assert all(waiter.error is not None for waiter in self.waiting)
        self.collect()
        with pytest.raises(PoolError):
            self.pool.acquire(timeout=1.0)

    # -- what always holds --------------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        limit = self.state.limit
        if limit is not None:
            excess = max(0, self.pool.size - limit)
            assert excess <= self.excess
            self.excess = excess
        # Nothing closes in the background here, so what is open is idle or lent.
        assert len(self.rig.driver.open_now) == len(self.state.idle) + len(self.state.lent)
        assert len(self.state.openings) == len(self.rig.spawner.queued) or self.state.shut
        assert not self.state.closing
        assert not len(self.state.reserved)
        stats = self.pool.stats()
        assert stats.size == self.pool.size
        assert stats.opened - sum(stats.closed.values()) == stats.idle + stats.lent

    @invariant()
    def what_is_not_kept_is_not_idle(self) -> None:
        assert self.pool.options.keep or not self.state.idle

    @invariant()
    def each_entry_is_in_one_place(self) -> None:
        places = [*self.state.idle, *self.state.lent]
        assert len(places) == len(set(places))
        assert set(places) == set(self.state.held.alive())
        assert all(not entry.item.ended for entry in places)

    @invariant()
    def each_item_is_lent_once(self) -> None:
        held = [lease.item for lease in self.leases]
        assert len(held) == len(set(held))
        assert {entry.item for entry in self.state.lent} == set(held)
        shared = {entry for entry in self.state.lent if entry.share is self.share}
        assert self.pool.lent_of(self.share) == len(shared)
        assert set(self.share.lent.alive()) == shared

    @invariant()
    def nobody_waits_who_could_be_served(self) -> None:
        assert [*self.state.waiters] == self.waiting
        room = self.share.limit
        left = None if room is None else max(0, room - self.pool.lent_of(self.share))
        alone = sum(waiter.share is None for waiter in self.waiting)
        shared = len(self.waiting) - alone
        if self.gate.reason is not None:
            left = 0
        servable = alone + (shared if left is None else min(left, shared))
        if not servable or self.state.shut:
            return
        assert not self.state.idle
        limit = self.state.limit
        full = limit is not None and self.pool.size >= limit
        at_once = self.state.breaker.allows(self.rig.clock())
        assert full or len(self.state.openings) >= min(servable, at_once)

    @invariant()
    def a_broker_that_is_down_is_asked_by_one(self) -> None:
        assert len(self.state.openings) <= AT_ONCE

    def teardown(self) -> None:
        pool: Any = getattr(self, "pool", None)
        if pool is None:
            return
        pool.close()
        for lease in self.leases:
            pool.release(lease)
        self.rig.spawner.run()
        assert not self.rig.driver.open_now
        assert pool.size == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
