"""Expiry, `min_idle`, leaks, and the thread that sees to them."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref

import pytest

from kombu_pools_ext.engine import Pool, PoolOptions
from kombu_pools_ext.engine.maintenance import LONGEST_NAP, OVERDUE, Maintenance
from tests.engine.fakes import PATIENCE, Driver, Item, rig, wait_until

# -- expiry ------------------------------------------------------------------------------------------------------------


def test_what_is_idle_for_too_long_is_closed() -> None:
    tested = rig(2, idle_timeout=10.0)
    cold, warm = tested.fill(2)
    tested.clock.advance(6.0)
    tested.pool.release(tested.pool.acquire())
    tested.clock.advance(5.0)
    tested.pool.run_maintenance()
    assert cold.ended == ["closed"]
    assert not warm.ended
    assert tested.pool.stats().closed == {"idle": 1}


def test_what_lives_too_long_is_closed_when_it_is_idle() -> None:
    tested = rig(1, max_lifetime=10.0, idle_timeout=None)
    (lease,) = tested.take()
    item = lease.item
    tested.clock.advance(11.0)
    tested.pool.run_maintenance()
    assert not item.ended
    tested.pool.release(lease)
    tested.pool.run_maintenance()
    assert item.ended == ["closed"]
    assert tested.pool.stats().closed == {"lifetime": 1}


def test_nothing_expires_where_nothing_may() -> None:
    tested = rig(1, max_lifetime=None, idle_timeout=None)
    (item,) = tested.fill(1)
    tested.clock.advance(1e9)
    tested.pool.run_maintenance()
    assert not item.ended


def test_an_expired_item_is_not_lent_and_its_goodbye_keeps_nobody_waiting() -> None:
    tested = rig(2, max_lifetime=10.0)
    (old,) = tested.fill(1)
    # A thread sees to the rest.
    tested.pool.overdue_at = float("inf")
    tested.clock.advance(11.0)
    lease = tested.pool.acquire()
    assert lease.item is not old
    assert not old.ended
    assert tested.pool.size == 2
    tested.spawner.run()
    assert old.ended == ["closed"]
    assert tested.pool.size == 1


@pytest.mark.parametrize("kind", ["max_lifetime", "idle_timeout"])
def test_what_was_opened_together_does_not_expire_together(kind: str) -> None:
    randomly = random.Random(7)
    spans = {"max_lifetime": None, "idle_timeout": None, kind: 1000.0}
    tested = rig(100, jitter=randomly.random, **spans)
    tested.fill(100)
    opened_at = tested.clock.now
    gone: list[float] = []
    while tested.pool.size:
        tested.clock.advance(1.0)
        before = tested.pool.size
        tested.pool.run_maintenance()
        gone += [tested.clock.now - opened_at] * (before - tested.pool.size)
        assert tested.clock.now < 2100.0
    assert len(gone) == 100
    assert max(gone) - min(gone) >= 0.05 * 1000.0
    # Earlier by a tenth at most, and not later.
    assert min(gone) >= 900.0
    assert max(gone) <= 1001.0


# -- min_idle ----------------------------------------------------------------------------------------------------------


def test_min_idle_is_opened_two_at_a_time_and_kept_open() -> None:
    tested = rig(5, min_idle=3, idle_timeout=10.0)
    tested.pool.run_maintenance()
    assert len(tested.spawner.queued) == 2
    tested.spawner.run()
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert tested.pool.stats().idle == 3
    # It outlives the idle time-out; what is over it does not.
    tested.pool.release(tested.pool.acquire())
    tested.take(4)
    tested.pool.end_deferred()
    tested.fill(4)
    tested.clock.advance(11.0)
    tested.pool.run_maintenance()
    assert tested.pool.stats().idle == 3


def test_min_idle_is_refilled_after_a_lifetime_ends() -> None:
    tested = rig(2, min_idle=1, max_lifetime=10.0)
    tested.pool.run_maintenance()
    tested.spawner.run()
    tested.clock.advance(11.0)
    tested.pool.run_maintenance()
    tested.spawner.run()
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert [item.number for item in tested.driver.open_now] == [1]


def test_min_idle_stays_within_the_limit() -> None:
    tested = rig(2, min_idle=5)
    for _ in range(5):
        tested.pool.run_maintenance()
        tested.spawner.run()
    assert tested.pool.size == 2


def test_failing_openings_for_min_idle_do_not_storm() -> None:
    tested = rig(2, min_idle=1, jitter=lambda: 1.0)
    tested.driver.opening.extend(OSError("refused") for _ in range(1000))
    attempts = 0
    for _ in range(100):
        nap = tested.pool.run_maintenance()
        assert nap is not None
        attempts += len(tested.spawner.queued)
        tested.spawner.run()
        tested.clock.advance(0.1)
    # In ten seconds, after pauses of 0.05, 0.1, 0.2, 0.4, 0.8, 1.6 s, and then of 2 s.
    assert 7 <= attempts <= 10
    assert tested.pool.stats().open_failures == attempts


def test_min_idle_comes_back_when_the_broker_does() -> None:
    tested = rig(2, min_idle=1)
    tested.driver.opening.append(OSError("refused"))
    tested.pool.run_maintenance()
    tested.spawner.run()
    tested.clock.advance(1.0)
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert tested.pool.stats().idle == 1


def test_a_failed_opening_of_min_idle_does_not_keep_a_caller_from_trying() -> None:
    tested = rig(2, min_idle=1)
    tested.driver.opening.append(OSError("refused"))
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert len(tested.take()) == 1


# -- leaks -------------------------------------------------------------------------------------------------------------


def test_a_lease_held_for_too_long_is_reported_once_with_its_borrowers_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tested = rig(1, leak_after=60.0)
    tested.fill(1)

    def face() -> object:
        return tested.pool.acquire()

    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        lease = face()
        tested.clock.advance(59.0)
        tested.pool.run_maintenance()
        assert not caplog.records
        tested.clock.advance(2.0)
        tested.pool.run_maintenance()
        tested.pool.run_maintenance()
        (record,) = caplog.records
        message = record.getMessage()
        assert "a lease has been held for 61.0 s (LEAK_AFTER)" in message
        assert "in test_a_lease_held_for_too_long" in message
        # The whole stack, the borrower's line last.
        assert message.rstrip().endswith("lease = face()")
        # The next loan is another.
        lease.end()  # type: ignore[attr-defined]
        lease = face()
        tested.clock.advance(61.0)
        tested.pool.run_maintenance()
        assert len(caplog.records) == 2


def test_time_in_which_the_machine_stood_still_is_not_counted_as_a_leak(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tested = rig(1, leak_after=60.0)
    lease = tested.pool.acquire()
    tested.clock.advance(30.0)
    # The machine sleeps for an hour, in which nobody could release anything.
    tested.clock.advance(3600.0)
    tested.pool.time_left_out(3600.0)
    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        tested.pool.run_maintenance()
        assert not caplog.records
        tested.clock.advance(31.0)
        tested.pool.run_maintenance()
    (record,) = caplog.records
    assert "a lease has been held for 61.0 s (LEAK_AFTER)" in record.getMessage()
    lease.end()


def test_leaks_are_not_looked_for_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    tested = rig(1)
    (lease,) = tested.take()
    tested.clock.advance(1e6)
    tested.pool.run_maintenance()
    assert not caplog.records
    assert not lease.ended


# -- where no thread runs ----------------------------------------------------------------------------------------------


def test_borrowers_do_what_is_overdue_where_no_thread_runs() -> None:
    tested = rig(3, idle_timeout=10.0)
    cold, _, warm = tested.fill(3)
    for _ in range(4):
        tested.clock.advance(2.0)
        tested.pool.release(tested.pool.acquire())
    assert tested.pool.size == 3
    tested.clock.advance(10.0 + OVERDUE)
    lease = tested.pool.acquire()
    assert cold.ended == ["closed"]
    # What was due is done before the loan, so it may have been this one too; one round has seen to all.
    assert tested.pool.stats().closed["idle"] >= 2
    tested.pool.release(lease)
    assert warm.number == 2


def test_borrowers_do_not_do_what_the_thread_is_about_to_do() -> None:
    tested = rig(2, idle_timeout=10.0, check_after=1e9)
    cold, _ = tested.fill(2)
    tested.pool.run_maintenance()
    tested.clock.advance(4.9)
    tested.pool.release(tested.pool.acquire())
    # The next round is due within 5 s; it is overdue another 5 s later.
    tested.clock.advance(5.0)
    tested.pool.release(tested.pool.acquire())
    assert not cold.ended
    tested.clock.advance(1.0)
    tested.pool.release(tested.pool.acquire())
    assert cold.ended


# -- the thread --------------------------------------------------------------------------------------------------------


def pool_with(keeper: Maintenance, **options: float) -> tuple[Pool[Item], Driver]:
    driver = Driver()
    return Pool(driver, limit=2, options=PoolOptions(**options), keeper=keeper), driver  # type: ignore[arg-type]


def test_the_thread_begins_with_the_first_item_and_ends_with_the_last(keeper: Maintenance) -> None:
    pool, driver = pool_with(keeper)
    assert not keeper._running
    lease = pool.acquire(timeout=PATIENCE)
    wait_until(lambda: keeper._running)
    pool.release(lease)
    pool.close()
    wait_until(lambda: not keeper._running)
    assert driver.opened[0].ended == ["closed"]


def test_the_thread_begins_anew_when_it_is_needed_again(keeper: Maintenance) -> None:
    pool, driver = pool_with(keeper, idle_timeout=0.01)
    for _ in range(3):
        pool.release(pool.acquire(timeout=PATIENCE))
        wait_until(lambda: not pool.size)
        keeper.nudge()
        wait_until(lambda: not keeper._running)
    assert [item.ended for item in driver.opened] == [["closed"]] * 3


def test_the_thread_opens_min_idle_before_the_first_acquire(keeper: Maintenance) -> None:
    pool, _ = pool_with(keeper, min_idle=2)
    assert pool.size == 0
    pool.keeper.watch(pool)
    wait_until(lambda: pool.stats().idle == 2)
    pool.close()


def test_the_thread_goes_on_after_a_pool_whose_maintenance_fails(
    keeper: Maintenance, caplog: pytest.LogCaptureFixture
) -> None:
    failing, _ = pool_with(keeper)
    lease = failing.acquire(timeout=PATIENCE)
    failing.state.begin_closing_idle = lambda entries: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    keeper.nudge()
    wait_until(lambda: any("maintenance failed" in r.getMessage() for r in caplog.records))
    other, driver = pool_with(keeper, idle_timeout=0.01)
    other.release(other.acquire(timeout=PATIENCE))
    wait_until(lambda: bool(driver.closed))
    del failing.state.begin_closing_idle
    failing.release(lease)
    failing.close()
    other.close()


def test_a_pool_that_nobody_holds_is_collected_though_it_has_idle_items(
    keeper: Maintenance,
) -> None:
    pool, _ = pool_with(keeper)
    pool.release(pool.acquire(timeout=PATIENCE))
    wait_until(lambda: keeper._running)
    gone = weakref.ref(pool)
    del pool

    def collected() -> bool:
        gc.collect()
        return gone() is None

    # The opener's thread may hold it for a moment longer.
    wait_until(collected)


def test_a_nudge_wakes_the_thread_from_its_nap(keeper: Maintenance) -> None:
    assert LONGEST_NAP > PATIENCE
    pool, driver = pool_with(keeper)
    lease = pool.acquire(timeout=PATIENCE)
    # It has had its look, and naps for longer than the test's patience.
    wait_until(lambda: keeper._due.get(pool, 0.0) > 0.0)
    del lease
    wait_until(lambda: bool(driver.closed))
    pool.close()


@pytest.mark.threads
def test_without_threads_there_is_no_maintenance_thread_and_no_harm(
    keeper: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool, _ = pool_with(keeper)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", cannot_start)
        lease = pool.acquire()
        assert not keeper._running
    pool.release(lease)
    pool.keeper.watch(pool)
    wait_until(lambda: keeper._running)
    pool.close()
