"""A broker that is down: asked by one, after growing pauses; who waits, who fails, and how it begins again."""

from __future__ import annotations

import logging
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kombu_pools_ext.engine import Pool, Share
from kombu_pools_ext.engine.breaker import AT_ONCE, FIRST_PAUSE, LONGEST_PAUSE, Breaker
from kombu_pools_ext.engine.errors import ConnectTimeout, OpenFailed, PoolTimeout
from kombu_pools_ext.engine.maintenance import NoMaintenance
from kombu_pools_ext.engine.wait import CLAIM_AFTER, LOOK_AGAIN
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import (
    PATIENCE,
    Driver,
    Item,
    Keeper,
    Rig,
    in_thread,
    min_of,
    rig,
    wait_until,
)

#: Seconds that a thread takes to wake and begin, on a machine that has time for it.
MOMENT = 0.03
REFUSED = ConnectionRefusedError("nobody listens")


def down(limit: int | None = 2, **options: Any) -> Rig:
    """A pool whose broker refuses until `tested.driver.opening` is cleared; the longest pauses."""
    tested = rig(limit, jitter=lambda: 1.0, **options)
    tested.driver.opening.extend(OSError(f"refused, {n}") for n in range(10_000))
    return tested


def look(tested: Rig) -> None:
    """What a waiter does when its nap ends, but for carrying out openings in its own thread."""
    with tested.pool.lock:
        openings = tested.pool.state.pump()
        tested.pool.state.fail_hopeless(lambda: tested.pool.refusals.outage(tested.pool.state))
    tested.pool.opener.start(openings)


# -- the breaker by itself ---------------------------------------------------------------------------------------


def test_pauses_grow_to_the_longest() -> None:
    breaker = Breaker(lambda: 1.0)
    pauses = []
    for _ in range(12):
        breaker.failed(100.0, 99.0, REFUSED, may_pass=True)
        pauses.append(breaker.retry_at - 100.0)
    assert pauses[0] == pytest.approx(FIRST_PAUSE)
    assert pauses == sorted(pauses)
    assert pauses[1] == pytest.approx(2 * FIRST_PAUSE)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)


def test_the_jitter_is_full() -> None:
    """Any part of the pause, down to nothing: what began together does not go on together."""
    numbers = iter([0.0, 0.5, 1.0])
    breaker = Breaker(lambda: next(numbers))
    found = []
    for _ in range(3):
        breaker.failed(0.0, 0.0, REFUSED, may_pass=True)
        found.append(breaker.retry_at)
    assert found == pytest.approx([0.0, 0.5 * 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])


def test_many_failures_overflow_nothing() -> None:
    breaker = Breaker(lambda: 1.0)
    for _ in range(5000):
        breaker.failed(0.0, 0.0, REFUSED, may_pass=True)
    assert breaker.retry_at == LONGEST_PAUSE


def test_only_the_first_failure_begins_an_outage_and_only_the_first_success_ends_it() -> None:
    breaker = Breaker(lambda: 1.0)
    assert breaker.failed(5.0, 4.0, REFUSED, may_pass=True)
    assert not breaker.failed(6.0, 5.0, REFUSED, may_pass=True)
    assert breaker.since == 4.0
    assert breaker.succeeded(7.0)
    assert not breaker.succeeded(7.0)
    assert breaker.cause is None


def test_recovery_begins_with_one_opening_at_a_time() -> None:
    breaker = Breaker(lambda: 1.0)
    assert breaker.allows(0.0) == AT_ONCE
    breaker.failed(0.0, 0.0, REFUSED, may_pass=True)
    assert breaker.allows(FIRST_PAUSE / 2) == 0
    assert breaker.allows(FIRST_PAUSE) == 1
    breaker.succeeded(1.0)
    assert breaker.allows(FIRST_PAUSE) == 1
    breaker.succeeded(1.0)
    assert breaker.allows(FIRST_PAUSE) == AT_ONCE


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=40), st.floats(0, 1))
def test_whatever_happens_no_pause_is_longer_than_the_longest(
    steps: list[tuple[bool, float]], jitter: float
) -> None:
    breaker, now = Breaker(lambda: jitter), 0.0
    for well, seconds in steps:
        now += seconds
        if well:
            breaker.succeeded(now)
        else:
            breaker.failed(now, now, REFUSED, may_pass=True)
        assert breaker.allows(now + LONGEST_PAUSE) >= 1
        assert 0 <= breaker.allows(now) <= AT_ONCE


# -- who waits, and who fails --------------------------------------------------------------------------------------


def test_fifty_waiters_cause_one_opening_at_a_time() -> None:
    """Check 13: at most one connect in flight while the broker is down, and a slow start after it."""
    tested = down(100)
    waiters = [tested.ask() for _ in range(50)]
    tested.spawner.run()
    in_flight = []
    for _ in range(200):
        look(tested)
        in_flight.append(len(tested.pool.state.openings))
        tested.spawner.run()
        tested.clock.advance(0.04)
    assert set(in_flight) == {0, 1}
    assert sum(in_flight) < 20
    assert not any(waiter.ended for waiter in waiters)
    tested.driver.opening.clear()
    ramp: list[int] = []
    tested.driver.opening.extend(
        lambda: ramp.append(len(tested.pool.state.openings)) for _ in range(50)
    )
    tested.clock.advance(LONGEST_PAUSE)
    look(tested)
    tested.spawner.run()
    assert ramp[:3] == [1, 1, AT_ONCE]
    assert max(ramp) == AT_ONCE
    assert all(waiter.lease is not None for waiter in waiters)


def test_who_does_not_wait_hears_the_cause_and_costs_no_opening() -> None:
    tested = down(2)
    hasty = tested.ask(blocking=False)
    tested.spawner.run()
    assert isinstance(hasty.error, OpenFailed)
    before = tested.pool.stats().open_failures
    with pytest.raises(OpenFailed, match=r"connection: refused, 0$") as caught:
        tested.pool.acquire()
    assert str(caught.value.__cause__) == "refused, 0"
    stats = tested.pool.stats()
    assert (stats.open_failures, stats.refused) == (before, 1)


def test_who_does_not_wait_is_the_next_probe_once_the_pause_is_over() -> None:
    tested = down(2)
    tested.ask(blocking=False)
    tested.spawner.run()
    tested.driver.opening.clear()
    tested.clock.advance(FIRST_PAUSE)
    tested.spawner.able = False
    assert tested.pool.acquire().item.number == 0


def test_who_does_not_wait_for_the_broker_waits_for_what_is_lent() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    waiter = tested.ask(waits_for_broker=False)
    lease.end()
    assert waiter.lease is not None
    with pytest.raises(PoolTimeout):
        tested.pool.acquire(timeout=0.0, waits_for_broker=False)
    waiter.lease.end()
    again = tested.pool.acquire(timeout=PATIENCE, waits_for_broker=False)
    assert again.item.number == 0
    again.end()


def test_who_does_not_wait_for_the_broker_hears_of_the_failure_beside_a_patient_one() -> None:
    """Also if something is lent that might come back: the caller has pauses of its own."""
    tested = rig(3, jitter=lambda: 1.0)
    tested.take()
    tested.driver.opening.extend(OSError(f"refused, {n}") for n in range(3))
    patient, waiter = tested.ask(), tested.ask(waits_for_broker=False)
    tested.spawner.run_one()
    assert isinstance(waiter.error, OpenFailed)
    assert not patient.ended
    # Between the attempts of others, at once.
    with pytest.raises(OpenFailed, match="refused, "):
        tested.pool.acquire(timeout=PATIENCE, waits_for_broker=False)
    assert tested.clock.now == 1000.0


def test_who_does_not_wait_for_the_broker_hears_of_the_probe_that_is_under_way() -> None:
    tested = down(2)
    tested.ask()
    tested.spawner.run()
    tested.driver.opening.clear()
    tested.clock.advance(LONGEST_PAUSE)
    tested.pool.look_again()
    assert len(tested.pool.state.openings) == 1
    waiter = tested.ask(waits_for_broker=False)
    tested.spawner.run()
    assert waiter.lease is not None


def test_who_was_served_something_dead_still_does_not_wait_for_the_broker() -> None:
    tested = rig(1, check_after=0.0)
    (item,) = tested.fill(1)
    item.alive = False
    tested.driver.opening.append(OSError("refused"))
    tested.spawner.able = False
    with pytest.raises(OpenFailed, match="refused"):
        tested.pool.acquire(timeout=PATIENCE, waits_for_broker=False)
    assert tested.clock.now == 1000.0


def test_an_old_outage_fails_all_who_wait_and_whoever_comes_at_once() -> None:
    tested = down(2, outage_patience=10.0)
    first = tested.ask()
    tested.spawner.run()
    tested.clock.advance(9.0)
    look(tested)
    tested.spawner.run()
    second = tested.ask()
    assert not first.ended
    tested.clock.advance(1.5)
    look(tested)
    for waiter in (first, second):
        assert isinstance(waiter.error, OpenFailed)
        assert "refused, 1" in str(waiter.error)
    tested.spawner.run()
    assert first.error is not second.error
    with pytest.raises(OpenFailed, match=r"tried 3 times in 10\.5 s"):
        tested.pool.acquire(timeout=PATIENCE)
    assert tested.pool.stats().outage == pytest.approx(10.5)


def test_as_long_as_something_is_lent_it_is_worth_waiting_for() -> None:
    tested = rig(2, jitter=lambda: 1.0, outage_patience=1.0)
    (lease,) = tested.take()
    tested.driver.opening.extend(OSError("refused") for _ in range(100))
    waiter = tested.ask()
    tested.spawner.run()
    tested.clock.advance(60.0)
    look(tested)
    tested.spawner.run()
    assert not waiter.ended
    lease.end()
    assert waiter.lease is not None
    # And when what was lent comes back broken, there is nothing left.
    behind = tested.ask()
    waiter.lease.end("broken")
    tested.clock.advance(LONGEST_PAUSE)
    look(tested)
    tested.spawner.run()
    assert isinstance(behind.error, OpenFailed)


def test_what_will_not_pass_by_itself_is_not_waited_for() -> None:
    """A wrong password: everybody hears of it at once."""
    tested = rig(2, jitter=lambda: 1.0)
    tested.driver.opening.append(PermissionError("wrong password"))
    waiters = [tested.ask() for _ in range(3)]
    tested.spawner.run_one()
    for waiter in waiters:
        assert isinstance(waiter.error, OpenFailed)
        assert "wrong password" in str(waiter.error)


def test_without_patience_a_broker_that_is_down_is_not_waited_for() -> None:
    tested = down(2, outage_patience=0.0)
    waiter = tested.ask()
    tested.spawner.run()
    assert isinstance(waiter.error, OpenFailed)


def test_an_opening_that_never_ends_is_an_outage_too() -> None:
    """A name look-up that hangs fails nothing; whoever waits without end must not wait for it."""
    tested = rig(2, outage_patience=10.0)
    waiter = tested.ask()
    # Claimed by a thread that hangs: it is no longer to be taken up.
    claimed = tested.pool.state.openings.claim(tested.clock.now)
    assert claimed is not None
    tested.clock.advance(9.9)
    look(tested)
    assert not waiter.ended
    tested.clock.advance(0.2)
    look(tested)
    assert isinstance(waiter.error, OpenFailed)
    assert "has not ended for 10.1 s; does the name look-up hang?" in str(waiter.error)
    assert isinstance(waiter.error.__cause__, TimeoutError)


def test_an_opening_that_hangs_keeps_nobody_from_another_one() -> None:
    tested = rig(3, outage_patience=10.0)
    waiter = tested.ask()
    hanging = tested.pool.state.openings.claim(tested.clock())
    assert hanging is not None
    tested.clock.advance(9.9)
    look(tested)
    assert len(tested.pool.state.openings) == 1
    tested.clock.advance(0.1)
    look(tested)
    assert len(tested.pool.state.openings) == 2
    assert isinstance(waiter.error, OpenFailed)
    tested.spawner.run()
    assert tested.pool.acquire().item.number == 0


def test_after_a_success_the_one_that_hangs_is_no_outage() -> None:
    tested = rig(3, outage_patience=10.0)
    first, second = tested.ask(), tested.ask()
    hanging = tested.pool.state.openings.claim(tested.clock())
    tested.clock.advance(9.0)
    tested.spawner.run()
    assert first.lease is not None
    first.lease.end("broken")
    tested.clock.advance(2.0)
    # It hangs, and another was fine a moment ago.
    look(tested)
    assert not second.ended
    tested.clock.advance(10.0)
    look(tested)
    assert isinstance(second.error, OpenFailed)
    assert hanging is not None


def test_without_patience_an_opening_still_has_its_time() -> None:
    tested = rig(2, outage_patience=0.0, connect_timeout=5.0)
    waiter = tested.ask()
    hanging = tested.pool.state.openings.claim(tested.clock())
    assert hanging is not None
    tested.clock.advance(4.9)
    look(tested)
    assert not waiter.ended


def test_the_next_probe_is_left_to_an_openers_thread() -> None:
    """In its own, a look-up that hangs would not heed the waiter's deadline."""
    tested = down(2)
    tested.ask()
    tested.spawner.run()
    tested.clock.advance(LONGEST_PAUSE)
    tested.pool.look_again()
    assert (len(tested.spawner.queued), tested.pool.state.openings.unclaimed) == (1, 1)
    # That one was killed before it began: now nobody else will.
    tested.spawner.queued.clear()
    tested.pool.look_again()
    assert tested.pool.state.openings.unclaimed == 0
    assert tested.pool.stats().open_failures == 2


def test_an_opening_that_nobody_began_is_no_outage() -> None:
    """Whoever planned it was interrupted before a thread was started; the next to come begins it, much later."""
    tested = rig(2, outage_patience=10.0)
    with tested.pool.lock:
        tested.pool.state.plan(1)
    tested.clock.advance(60)
    waiter = tested.ask()
    tested.pool.look_again()
    assert waiter.lease is not None


def test_a_deadline_within_an_outage_tells_the_cause() -> None:
    tested = down(2)
    tested.ask(blocking=False)
    tested.spawner.run()
    with pytest.raises(ConnectTimeout, match="refused, 0") as caught:
        tested.pool.acquire(timeout=0.0)
    assert isinstance(caught.value, PoolTimeout)
    assert str(caught.value.__cause__) == "refused, 0"


@pytest.mark.threads
def test_whoever_waits_is_the_prober_and_needs_no_other_thread() -> None:
    """On the real clock: the first in line tries again after each pause, and is served when the broker is back."""
    tested = rig(2)
    tested.pool.clock = tested.pool.state.clock = time.monotonic
    tested.driver.opening.extend(OSError("refused") for _ in range(4))
    tested.spawner.able = False
    with in_thread(lambda: tested.pool.acquire(timeout=PATIENCE)) as outcome:
        wait_until(lambda: outcome.value is not None)
    assert tested.pool.stats().open_failures == 4


@pytest.mark.timing
@pytest.mark.threads
@pytest.mark.parametrize("lasting", [0.0, 0.3], ids=["refused at once", "after a while"])
def test_after_a_failed_opening_the_next_in_line_tries_within_50_ms(lasting: float) -> None:
    """Check 6, with the longest of the pauses that full jitter may choose; the failed one is told, or goes on."""

    def failed_and_tried_again() -> float:
        driver, pool = Driver(), None
        failed: list[float] = []
        again: list[float] = []

        def fail() -> None:
            time.sleep(lasting)
            failed.append(time.monotonic())
            raise OSError("refused")

        driver.opening.extend([fail, lambda: again.append(time.monotonic())])
        pool = Pool(driver, limit=1, jitter=lambda: 1.0, keeper=NoMaintenance())
        with in_thread(lambda: pool.acquire(timeout=PATIENCE).end()) as first:
            # Counted, for an opening that is refused at once nobody may see.
            wait_until(lambda: pool.stats().waits == 1)
            with in_thread(lambda: pool.acquire(timeout=PATIENCE).end()) as second:
                pass
        assert first.error is second.error is None
        pool.close()
        return again[0] - failed[0]

    # On a machine that is busy, one of a few.
    took = min_of(failed_and_tried_again, enough=FIRST_PAUSE + MOMENT)
    assert FIRST_PAUSE <= took <= FIRST_PAUSE + MOMENT


@pytest.mark.timing
@pytest.mark.threads
@pytest.mark.parametrize("how", ["gives up", "is served"])
def test_whoever_moves_up_in_line_is_the_next_prober(how: str) -> None:
    """Who was first leaves in the middle of a pause: the one behind him naps, and does not oversleep."""

    def late() -> float:
        tested = rig(2, jitter=lambda: 1.0)
        tested.pool.clock = tested.pool.state.clock = time.monotonic
        (lease,) = tested.take()
        # The pauses: 50, 100 and 200 ms.
        tested.driver.opening.extend(OSError("refused") for _ in range(3))
        first = tested.ask()
        opened: list[float] = []
        with in_thread(lambda: tested.pool.acquire(timeout=PATIENCE)) as second:
            wait_until(lambda: tested.pool.stats().waiting == 2)

            def refused() -> bool:
                look(tested)
                tested.spawner.run()
                return tested.pool.stats().open_failures == 3

            wait_until(refused)
            due = tested.pool.state.breaker.retry_at
            # From here on in the waiter's own thread, when it is due.
            tested.spawner.able = False
            tested.driver.opening.append(lambda: opened.append(time.monotonic()))
            if how == "is served":
                lease.end()
            else:
                tested.pool.leave(first, time.monotonic())
        assert (first.lease is not None) is (how == "is served")
        assert second.error is None
        return opened[0] - due

    assert min_of(late, enough=MOMENT) < MOMENT


def test_an_interrupted_opening_says_nothing_of_the_broker() -> None:
    tested = rig(2)
    tested.spawner.able = False
    tested.driver.opening.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tested.pool.acquire()
    assert tested.pool.stats().outage is None
    tested.pool.acquire()


def test_maintenance_keeps_trying_for_min_idle_before_there_was_a_connection() -> None:
    tested = down(2, min_idle=1)
    tested.pool.run_maintenance()
    tested.spawner.run()
    tested.driver.opening.clear()
    nap = tested.pool.run_maintenance()
    assert nap is not None
    tested.clock.advance(nap)
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert tested.pool.stats().idle == 1


# -- what is told ------------------------------------------------------------------------------------------------


def test_the_log_tells_the_beginning_and_the_end_of_an_outage_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tested = down(2)
    tested.ask()
    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        for _ in range(5):
            tested.spawner.run()
            tested.clock.advance(LONGEST_PAUSE)
            look(tested)
        tested.driver.opening.clear()
        tested.spawner.run()
    begins, ends = (record.getMessage() for record in caplog.records)
    assert begins == "pool 'tested': cannot open a connection, trying again: OSError('refused, 0')"
    assert ends == "pool 'tested': connected again, after 10 s"


def test_the_repr_tells_the_outage() -> None:
    tested = down(2)
    tested.ask()
    tested.spawner.run()
    tested.clock.advance(1.5)
    assert (
        repr(tested.pool) == "<Pool 'tested': 0 of 2 (0 idle, 0 lent), 1 waiting, down for 1.5 s>"
    )


def test_the_error_of_an_outage_keeps_no_frames() -> None:
    tested = down(2)
    tested.ask(blocking=False)
    tested.spawner.run()
    assert tested.pool.state.breaker.cause is not None
    assert tested.pool.state.breaker.cause.__traceback__ is None


def test_the_causes_of_an_error_keep_no_frames_either() -> None:
    tested = rig(1)
    deep, error = KeyError("deep"), OSError()
    error.__cause__ = deep
    try:
        raise deep
    except KeyError:
        assert deep.__traceback__ is not None
    tested.driver.opening.append(error)
    tested.ask(blocking=False)
    tested.spawner.run()
    assert deep.__traceback__ is None
    # An error without words is told by its name.
    with tested.pool.lock:
        assert str(tested.pool.refusals.outage(tested.pool.state)).endswith(
            "cannot open a connection: OSError"
        )


def test_two_who_do_not_wait_may_come_at_once_while_all_is_well() -> None:
    tested = rig(2)
    tested.ask(blocking=False)
    tested.ask(blocking=False)
    assert len(tested.pool.state.openings) == 2


def test_who_does_not_wait_hears_the_cause_while_another_probes() -> None:
    tested = down(2)
    tested.ask()
    tested.spawner.run()
    tested.clock.advance(FIRST_PAUSE)
    look(tested)
    assert len(tested.pool.state.openings) == 1
    assert tested.queue_up(Waiter(blocking=False)) == "down"


def test_what_is_idle_is_worth_waiting_for() -> None:
    """Its share is used up, and the broker has been away for long: the idle one is there all the same."""
    tested = rig(3, jitter=lambda: 1.0, outage_patience=0.0)
    share = Share(1)
    waiter = tested.ask(share)
    tested.spawner.run()
    tested.fill(1)
    behind = tested.ask(share)
    tested.driver.opening.append(OSError("refused"))
    tested.take(1)
    tested.ask()
    tested.spawner.run()
    assert waiter.lease is not None
    assert tested.pool.state.breaker.failures
    waiter.lease.end()
    assert behind.lease is not None


def test_a_waiter_gives_up_by_itself() -> None:
    tested = down(2, outage_patience=1.0)
    waiter = tested.ask()
    tested.spawner.run()
    tested.clock.advance(1.0)
    tested.pool.look_again()
    assert isinstance(waiter.error, OpenFailed)


def test_a_failed_opening_has_min_idle_watched() -> None:
    for min_idle in (0, 1):
        keeper = Keeper()
        tested = down(2, min_idle=min_idle, keeper=keeper)
        tested.ask()
        tested.spawner.run()
        assert len(keeper.watched) == min_idle


def test_the_first_in_line_naps_until_the_next_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = down(2)
    tested.ask(blocking=False)
    tested.spawner.run()
    naps: list[float] = []

    def nap(waiter: Waiter[Item], seconds: float) -> None:
        naps.append(seconds)
        tested.clock.advance(seconds)

    monkeypatch.setattr(Waiter, "wait", nap)
    # The first probe of its own fails, another's does not end.
    tested.driver.opening.clear()
    tested.driver.opening.append(OSError("still refused"))
    tested.spawner.able = False
    assert tested.pool.acquire(timeout=PATIENCE).item.number == 0
    assert naps == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE])


def test_while_a_probe_is_under_way_the_first_in_line_wants_to_hear_of_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tested = down(2)
    tested.ask(blocking=False)
    tested.spawner.run()
    tested.clock.advance(FIRST_PAUSE)
    first = tested.ask()
    hanging = tested.pool.state.openings.claim(tested.clock())
    assert hanging is not None
    naps: list[float] = []

    def nap(waiter: Waiter[Item], seconds: float) -> None:
        naps.append(seconds)
        tested.clock.advance(seconds)

    monkeypatch.setattr(Waiter, "wait", nap)
    with pytest.raises(ConnectTimeout):
        tested.pool.acquire(timeout=3.0)
    # It is behind.
    assert naps == pytest.approx([CLAIM_AFTER, LOOK_AGAIN, LOOK_AGAIN, 1.0 - CLAIM_AFTER])
    tested.pool.leave(first, 0.0)
    naps.clear()
    with pytest.raises(ConnectTimeout):
        tested.pool.acquire(timeout=4.5 * CLAIM_AFTER)
    assert naps == pytest.approx([CLAIM_AFTER] * 4 + [CLAIM_AFTER / 2])


def test_in_an_old_outage_nobody_queues_up_while_one_probes() -> None:
    tested = down(2, outage_patience=1.0)
    tested.ask()
    tested.spawner.run()
    assert tested.queue_up(Waiter()) is None
    tested.clock.advance(1.0)
    look(tested)
    tested.spawner.run()
    assert tested.queue_up(Waiter()) == "down"
    with tested.pool.lock:
        assert "(tried 2 times in 1 s)" in str(tested.pool.refusals.outage(tested.pool.state))


def test_what_maintenance_looks_at_is_worth_waiting_for() -> None:
    tested = rig(3, jitter=lambda: 1.0, outage_patience=0.0)
    tested.fill(1)
    (entry,) = tested.pool.state.idle
    assert tested.pool.expiry.reserve(entry)
    tested.driver.opening.append(OSError("refused"))
    waiters = [tested.ask(), tested.ask()]
    tested.spawner.run()
    assert tested.pool.state.breaker.failures
    assert not any(waiter.ended for waiter in waiters)
