"""What maintenance does for what is open: keep-alives, idle and lent, and time that nobody lived through."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from functools import partial

import pytest

from kombu_pools_ext.engine import Gate, Pool, PoolOptions, closing, maintenance
from kombu_pools_ext.engine.breaker import FIRST_PAUSE, LONGEST_PAUSE
from kombu_pools_ext.engine.closing import close_together
from kombu_pools_ext.engine.expiry import EARLY
from kombu_pools_ext.engine.maintenance import Maintenance
from kombu_pools_ext.engine.schedule import SPARE, Schedule
from tests.engine.fakes import (
    PATIENCE,
    Driver,
    Item,
    Rig,
    assert_sound,
    in_thread,
    rig,
    wait_until,
)
from tests.engine.steps import Killed, Steps

EVERY = 20.0


def kept(limit: int | None = 3, **options: float) -> Rig:
    tested = rig(limit, **options)
    tested.driver.keep_every = EVERY
    return tested


# -- keep-alives ---------------------------------------------------------------------------------------------------


def test_idle_items_are_kept_alive_when_they_are_due() -> None:
    tested = kept()
    items = tested.fill(2)
    tested.pool.run_maintenance()
    assert not tested.driver.kept
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert tested.driver.kept == [(item, False) for item in items]
    tested.clock.advance(EVERY / 2)
    tested.pool.run_maintenance()
    assert len(tested.driver.kept) == 2


def test_lent_items_are_kept_alive_too_and_told_apart() -> None:
    tested = kept()
    (lease,) = tested.take()
    for _ in range(3):
        tested.clock.advance(EVERY)
        tested.pool.run_maintenance()
    assert tested.driver.kept == [(lease.item, True)] * 3
    assert not lease.ended


def test_what_its_borrower_opens_anew_is_kept_alive_as_it_asks() -> None:
    tested = rig(3, idle_timeout=None, leak_after=None)
    lease, other = tested.take(2)
    assert tested.pool.run_maintenance() == float("inf")
    tested.driver.keep_every = EVERY
    tested.pool.reopened(lease.item, broke=True)
    assert tested.pool.run_maintenance() == EVERY
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert tested.driver.kept == [(lease.item, True)]
    # What broke this one may have broken the other.
    assert (lease.entry.needs_check, other.entry.needs_check) == (False, True)


def test_what_is_opened_anew_without_need_makes_nothing_suspect() -> None:
    tested = kept()
    lease, other = tested.take(2)
    tested.pool.reopened(lease.item, broke=False)
    assert not other.entry.needs_check


def test_a_loan_is_told_from_the_one_before_and_from_none() -> None:
    tested = kept()
    (lease,) = tested.take()
    item = lease.item
    first = tested.pool.loan_of(item)
    assert first is not None
    assert tested.pool.loan_of(item) == first
    lease.end()
    assert tested.pool.loan_of(item) is None
    (again,) = tested.take()
    assert again.item is item
    assert tested.pool.loan_of(item) not in (None, first)


def test_what_asks_for_no_keep_alives_gets_none() -> None:
    tested = rig(3)
    tested.fill(2)
    tested.clock.advance(EVERY * 10)
    tested.pool.run_maintenance()
    assert not tested.driver.kept


def test_the_next_round_comes_in_time_for_the_next_keep_alive() -> None:
    tested = kept(idle_timeout=None, leak_after=None)  # type: ignore[arg-type]
    (lease,) = tested.take()
    assert tested.pool.run_maintenance() == EVERY
    lease.end()
    tested.clock.advance(15.0)
    assert tested.pool.run_maintenance() == EVERY - 15.0


def test_an_idle_item_found_dead_is_closed_and_makes_the_others_suspect() -> None:
    tested = kept()
    dead, other = tested.fill(2)
    dead.alive = False
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert dead.ended == ["broken"]
    assert tested.pool.stats().closed == {"dead": 1}
    tested.clock.advance(0.1)
    tested.driver.checked.clear()
    tested.pool.acquire()
    assert tested.driver.checked == [other]


def test_a_lent_item_is_its_borrowers_to_judge() -> None:
    tested = kept()
    (lease,) = tested.take()
    tested.driver.keeping.append(OSError("cannot send"))
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert not lease.ended
    assert tested.pool.lent == 1


def test_a_keep_alive_that_fails_on_an_idle_item_means_dead() -> None:
    tested = kept()
    (item,) = tested.fill(1)
    tested.driver.keeping.append(OSError("cannot send"))
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert item.ended == ["broken"]


def test_the_order_of_the_idle_ones_stays() -> None:
    tested = kept()
    leases = tested.take(3)
    for lease in leases:
        tested.clock.advance(1.0)
        lease.end()
    before = list(tested.pool.state.idle)
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert list(tested.pool.state.idle) == before


def test_one_at_a_time_is_away_and_nobody_opens_another_for_it() -> None:
    tested = kept(5)
    items = tested.fill(2)
    seen = []

    def meanwhile() -> bool:
        seen.append((len(tested.pool.state.reserved), tested.pool.stats().size))
        if len(seen) == 2:
            # The other one is there for whoever asks; the one that is away comes back in a moment.
            assert tested.pool.acquire().item is items[0]
            waiting.append(tested.ask())
            assert not tested.spawner.queued
        return True

    waiting = []  # type: ignore[var-annotated]
    tested.driver.keeping.extend([meanwhile, meanwhile])
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert seen == [(1, 2), (1, 2)]
    assert waiting[0].lease.item is items[1]
    assert_sound(tested.pool)


@pytest.mark.parametrize(
    "happens, reason",
    [("drain", "drained"), ("close", "closed")],
)
def test_what_happens_to_the_pool_meanwhile_holds_for_what_is_away(
    happens: str, reason: str
) -> None:
    tested = kept()
    (item,) = tested.fill(1)
    tested.driver.keeping.append(lambda: getattr(tested.pool, happens)())
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert item.ended == ["closed"]
    assert tested.pool.stats().closed == {reason: 1}
    assert tested.pool.size == 0


def test_a_lower_limit_meanwhile_holds_for_what_is_away() -> None:
    tested = kept(2)
    tested.fill(2)
    tested.driver.keeping.append(lambda: tested.pool.resize(1))
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert tested.pool.size == 1


def test_a_thread_killed_in_a_keep_alive_takes_no_capacity_with_it() -> None:
    tested = kept(1)
    tested.fill(1)
    tested.driver.keeping.append(KeyboardInterrupt())
    tested.clock.advance(EVERY)
    with pytest.raises(KeyboardInterrupt):
        tested.pool.run_maintenance()
    assert tested.pool.size == 0
    tested.take(1)


def test_what_was_lent_meanwhile_is_not_taken_away() -> None:
    tested = kept(2)
    first, _ = tested.fill(2)
    leases = []

    def lend_the_other() -> bool:
        leases.append(tested.pool.acquire())
        return True

    tested.driver.keeping.append(lend_the_other)
    tested.pool.run_maintenance()
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert tested.driver.kept == [(first, False)]
    assert tested.pool.stats().idle == 1


# -- goodbyes ------------------------------------------------------------------------------------------------------


def test_goodbyes_are_said_to_all_before_any_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of real time, which a busy machine may take.
    monkeypatch.setattr(closing, "TOGETHER", PATIENCE)
    tested = rig(3, idle_timeout=10.0)
    items = tested.fill(3)
    announced: list[int] = []
    tested.driver.closing.append(lambda: announced.append(len(tested.driver.announced)))
    tested.clock.advance(20.0)
    tested.pool.run_maintenance()
    assert announced == [3]
    assert [item.ended for item in items] == [["closed"]] * 3


def test_when_the_time_for_goodbyes_is_up_the_rest_are_closed_without() -> None:
    tested = rig(2)
    tested.fill(2)
    with tested.pool.lock:
        entries = tested.pool.state.begin_closing_idle(list(tested.pool.state.idle))
    close_together([(tested.pool, entry, "closed") for entry in entries], deadline=0.0)
    assert [broken for _, broken in tested.driver.closed] == [True, True]
    assert tested.driver.goodbyes == [0.0, 0.0]
    assert tested.pool.size == 0


# -- time ----------------------------------------------------------------------------------------------------------


def test_a_clock_jump_expires_nothing_and_everything_is_checked_again() -> None:
    """Check 26."""
    tested = kept(5, idle_timeout=300.0, max_lifetime=1800.0)
    items = tested.fill(3)
    (lent,) = tested.take(1)
    tested.clock.advance(7200.0)
    tested.pool.time_left_out(7200.0)
    tested.pool.run_maintenance()
    assert not any(item.ended for item in items)
    tested.pool.check_after = 1e9
    lent.end()
    tested.driver.checked.clear()
    leases = [tested.pool.acquire() for _ in range(3)]
    for lease in leases:
        assert lease.item in tested.driver.checked
    # And their time goes on from where it was: what is left of it ends, and not at once.
    tested.clock.advance(1600.0)
    for lease in leases:
        lease.end()
    tested.pool.run_maintenance()
    assert not any(item.ended for item in items)
    tested.clock.advance(201.0)
    tested.pool.run_maintenance()
    assert tested.pool.stats().closed == {"lifetime": 3}


def test_after_a_clock_jump_expiry_is_spread_as_before() -> None:
    jitters = iter([0.0, 0.25, 0.5, 0.75] * 10)
    tested = rig(4, max_lifetime=1000.0, idle_timeout=None, jitter=lambda: next(jitters))  # type: ignore[arg-type]
    tested.fill(4)
    tested.clock.advance(5000.0)
    tested.pool.time_left_out(5000.0)
    deaths = []
    for _ in range(200):
        tested.clock.advance(10.0)
        before = tested.pool.size
        tested.pool.run_maintenance()
        deaths += [tested.clock.now] * (before - tested.pool.size)
    assert len(deaths) == 4
    assert max(deaths) - min(deaths) >= 0.05 * 1000.0


def test_an_idle_item_is_kept_alive_at_once_after_a_jump() -> None:
    tested = kept()
    (item,) = tested.fill(1)
    # The machine was away, the clock has not moved.
    tested.pool.time_left_out(0.0)
    tested.pool.run_maintenance()
    assert tested.driver.kept == [(item, False)]


def test_what_was_kept_alive_is_due_again_an_interval_later() -> None:
    tested = kept()
    (item,) = tested.fill(1)
    for _ in range(3):
        tested.clock.advance(EVERY)
        tested.pool.run_maintenance()
    assert tested.driver.kept == [(item, False)] * 3


def test_what_needs_no_keep_alives_is_read_while_a_gate_is_shut() -> None:
    tested = rig(2)
    (item,) = tested.fill(1)
    tested.pool.shut_gate(Gate(), item, "short of memory")
    tested.pool.run_maintenance()
    assert tested.driver.kept == [(item, False)]
    assert tested.pool.stats().idle == 1


def test_room_for_who_waits_is_used_before_the_dead_one_is_closed() -> None:
    tested = kept(2)
    (item,) = tested.fill(1)
    item.alive = False
    waiting = []

    def ask() -> None:
        waiting.append(tested.ask())
        assert not tested.spawner.queued

    tested.driver.keeping.append(ask)
    tested.driver.closing.append(lambda: waiting.append(len(tested.spawner.queued)))
    tested.clock.advance(EVERY)
    tested.pool.run_maintenance()
    assert waiting[1] == 1


def test_min_idle_that_is_there_needs_no_looks() -> None:
    tested = rig(3, min_idle=1, idle_timeout=None, max_lifetime=None)
    (item,) = tested.fill(1)
    assert tested.pool.run_maintenance() == float("inf")
    tested.pool.suspend()
    entry = tested.pool.state.idle.pop()
    entry.lender = tested.pool
    assert tested.pool.run_maintenance() == float("inf")
    assert not item.ended


def test_min_idle_is_asked_for_when_the_next_probe_may_begin() -> None:
    tested = rig(3, min_idle=1, jitter=lambda: 1.0)
    tested.driver.opening.extend(OSError("refused") for _ in range(6))
    for _ in range(6):
        tested.pool.run_maintenance()
        tested.spawner.run()
        tested.clock.advance(LONGEST_PAUSE)
    tested.clock.advance(-LONGEST_PAUSE)
    assert tested.pool.run_maintenance() == pytest.approx(FIRST_PAUSE * 2**5)


def test_a_round_naps_until_something_is_due() -> None:
    keeper, tested = Maintenance(), kept(idle_timeout=None)  # type: ignore[arg-type]
    tested.fill(1)
    keeper._due[tested.pool] = 0.0
    for _ in range(2):
        nap = keeper._round(everything=False)
        assert nap is not None
        assert EVERY / 2 < nap <= EVERY


@pytest.mark.threads
def test_the_thread_is_not_woken_for_what_can_wait_until_its_next_round(
    keeper: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()
    driver.keep_every = EVERY
    pool = Pool(driver, limit=2, keeper=keeper)
    lease = pool.acquire(timeout=PATIENCE)
    wait_until(lambda: keeper._due.get(pool, 0.0) and keeper._due[pool] <= time.monotonic() + EVERY)
    due = keeper._due[pool]
    woken: list[tuple[float, float]] = []
    monkeypatch.setattr(keeper, "woke", lambda *late: woken.append(late))
    later = pool.acquire(timeout=PATIENCE)
    keeper.watch(pool, due - time.monotonic() + 1.0)
    assert keeper._bell.empty
    assert (woken, keeper._due[pool]) == ([], due)
    keeper.watch(pool, due - time.monotonic() - 1.0)
    wait_until(lambda: woken)
    lease.end()
    later.end()
    pool.close()


def test_the_seconds_of_a_suspended_machine_are_those_that_the_clock_leaves_out() -> None:
    assert maintenance._seconds_suspended() + 1.0 >= 0.0
    assert maintenance._seconds_suspended() < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_jump_begins_no_keep_alives_where_there_are_none() -> None:
    tested = rig(2)
    tested.fill(1)
    tested.pool.time_left_out(3600.0)
    tested.pool.run_maintenance()
    assert not tested.driver.kept


@pytest.mark.threads
@pytest.mark.parametrize("late, suspended", [(3600.0, 0.0), (0.0, 3600.0)])
def test_a_machine_that_stood_still_is_noticed(
    keeper: Maintenance, late: float, suspended: float, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(Driver(), limit=2, options=PoolOptions(), keeper=keeper)
    pool.acquire(timeout=PATIENCE).end()
    # Its opener has it watched after it has handed the item over.
    wait_until(lambda: pool in keeper._due)
    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        keeper.woke(0.5, 0.5)
        assert not any(entry.needs_check for entry in pool.state.idle)
        keeper.woke(late, suspended)
    assert all(entry.needs_check for entry in pool.state.idle)
    assert [record.getMessage() for record in caplog.records] == [
        "maintenance was held up for 3600 s: every connection is checked before it is used"
    ]
    pool.close()


@pytest.mark.threads
def test_what_is_opened_while_the_thread_naps_is_kept_in_time(keeper: Maintenance) -> None:
    """The thread meant to wake in a minute; the new one is due in a moment."""
    driver = Driver()
    pool = Pool(driver, limit=2, options=PoolOptions(), keeper=keeper)
    first = pool.acquire(timeout=PATIENCE)
    driver.keep_every = 0.05
    with in_thread(lambda: pool.acquire(timeout=PATIENCE)) as second:
        pass
    wait_until(lambda: (second.value.item, True) in driver.kept)
    first.end()
    second.value.end()
    wait_until(lambda: (driver.opened[1], False) in driver.kept)
    pool.close()


@pytest.mark.threads
def test_what_is_opened_while_its_pool_is_tended_is_kept_in_time(keeper: Maintenance) -> None:
    """The thread has just found that nothing will be due for long."""
    driver = Driver()
    pool = Pool(driver, limit=2, options=PoolOptions(idle_timeout=0.05), keeper=keeper)
    opened = []

    def meanwhile() -> None:
        driver.keep_every = 0.05
        opened.append(pool.acquire(timeout=PATIENCE))

    driver.closing.append(meanwhile)
    pool.acquire(timeout=PATIENCE).end()
    wait_until(lambda: bool(opened) and (opened[0].item, True) in driver.kept)
    opened[0].end()
    pool.close()


@pytest.mark.threads
def test_a_thread_killed_as_it_begins_maintenance_leaves_that_to_the_next() -> None:
    def kill() -> None:
        raise Killed

    for at in range(1, 1000):
        keeper = Maintenance()
        pool = Pool(Driver(), limit=1, options=PoolOptions(idle_timeout=None), keeper=keeper)
        steps = Steps(kill, at)
        try:
            steps(lambda keeper=keeper, pool=pool: keeper.watch(pool))
        except Killed:
            pass
        keeper.watch(pool)
        wait_until(lambda keeper=keeper, pool=pool: pool not in keeper._due)  # type: ignore[misc]
        wait_until(lambda keeper=keeper: keeper._running is None)  # type: ignore[misc]
        if not steps.happened:
            break
    assert at > 5


def test_a_goodbye_has_the_time_that_is_left() -> None:
    tested = rig(1)
    tested.fill(1)
    with tested.pool.lock:
        entries = tested.pool.state.begin_closing_idle(list(tested.pool.state.idle))
    deadline = time.monotonic() + PATIENCE
    close_together([(tested.pool, entry, "closed") for entry in entries], deadline)
    (seconds,) = tested.driver.goodbyes
    assert seconds is not None
    assert 0.0 < seconds <= PATIENCE


def test_the_last_of_min_idle_outlives_idleness() -> None:
    tested = rig(2, min_idle=1, idle_timeout=10.0)
    tested.fill(1)
    tested.clock.advance(20.0)
    tested.pool.run_maintenance()
    assert not tested.driver.closed


def test_one_that_was_looked_at_goes_back_to_its_place() -> None:
    tested = kept()
    for lease in tested.take(3):
        tested.clock.advance(1.0)
        lease.end()
    before = list(tested.pool.state.idle)
    for entry in before:
        tested.pool.keep_idle([entry])
        assert list(tested.pool.state.idle) == before


def test_what_is_lent_is_kept_alive_once_an_interval() -> None:
    tested = kept()
    (lease,) = tested.take()
    tested.pool.run_maintenance()
    assert not tested.driver.kept
    tested.clock.advance(EVERY)
    for _ in range(2):
        tested.pool.run_maintenance()
    assert tested.driver.kept == [(lease.item, True)]


# -- many --------------------------------------------------------------------------------------------------------------


def test_those_that_are_next_are_kept_with_the_first_that_is_due() -> None:
    tested = kept()
    clock = tested.clock
    leases = []
    for pause in (EVERY * EARLY / 2, EVERY / 2):
        leases += tested.take()
        clock.advance(pause)
    leases += tested.take()
    for lease in leases:
        lease.end()
    clock.advance(EVERY - EVERY * EARLY / 2 - EVERY / 2)
    tested.pool.run_maintenance()
    first, second, third = (item for item in tested.driver.opened)
    assert [item for item, _ in tested.driver.kept] == [first, second]
    clock.advance(EVERY / 2 + EVERY * EARLY / 2)
    tested.pool.run_maintenance()
    assert [item for item, _ in tested.driver.kept] == [first, second, third]


def test_an_agenda_gives_what_is_due_and_knows_what_is_next() -> None:
    agenda = Schedule()
    pools = [rig(1).pool for _ in range(5)]
    for at, pool in enumerate(pools):
        agenda[pool] = float(at)
    agenda[pools[0]] = 9.0
    assert agenda.next() == 1.0
    del agenda[pools[1]]
    assert agenda.take(3.0) == [pools[2], pools[3]]
    assert agenda.next() == 4.0
    # Whoever took them was killed.
    agenda.tidy()
    assert agenda.take(3.0) == [pools[2], pools[3]]
    del pool
    gone = weakref.ref(pools.pop())
    gc.collect()
    assert gone() is None
    assert agenda.next() == 9.0
    assert agenda.take(10.0) == [pools[0]]
    assert agenda.next() is None


def test_an_agenda_does_not_grow_with_its_changes() -> None:
    agenda, pool = Schedule(), rig(1).pool
    for at in range(10_000):
        agenda[pool] = 100.0 + at
    assert len(agenda._notes) <= 2 + SPARE
    assert agenda.take(99_999.0) == [pool]


@pytest.mark.threads
def test_a_nudge_for_one_pool_has_the_others_left_alone(keeper: Maintenance) -> None:
    looked: list[Pool[Item]] = []
    pools = [Pool(Driver(), limit=2, options=PoolOptions(), keeper=keeper) for _ in range(3)]
    for pool in pools:
        pool.acquire(timeout=PATIENCE).end()
    wait_until(lambda: all(keeper._due.get(pool, 0.0) > 0.0 for pool in pools))
    for pool in pools:
        pool.end_deferred = partial(looked.append, pool)  # type: ignore[method-assign]
    keeper.nudge(pools[1])
    wait_until(lambda: looked)
    keeper.nudge(pools[2])
    wait_until(lambda: len(looked) > 1)
    assert looked == [pools[1], pools[2]]
    for pool in pools:
        del pool.end_deferred
        pool.close()
