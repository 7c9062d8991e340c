"""Where no thread can be started a caller opens by itself, and never for longer than it has time."""

from __future__ import annotations

from typing import Any

import pytest

from kombu_pools_ext.engine import Lease
from kombu_pools_ext.engine.errors import PoolTimeout
from kombu_pools_ext.engine.threads import spawn_thread
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import Rig, assert_sound, rig


def unable(limit: int | None, **options: Any) -> Rig:
    tested = rig(limit, **options)
    tested.spawner.able = False
    return tested


def slowly(tested: Rig, seconds: float) -> None:
    """Have the next opening take so long."""
    tested.driver.opening.append(lambda: tested.clock.advance(seconds))


def test_an_opening_has_what_its_caller_has_left() -> None:
    tested = unable(2)
    assert tested.pool.acquire(timeout=0.3).item.alive
    assert tested.pool.acquire().item.alive
    # Who does not wait has what connecting may take.
    assert tested.driver.within == pytest.approx([0.3, tested.pool.options.connect_timeout])


def test_who_waits_without_end_has_no_bound_but_the_drivers() -> None:
    tested = unable(1)
    assert tested.pool.acquire(wait=True).item.alive
    assert tested.driver.within == []


def test_what_is_planned_for_others_is_theirs_when_the_time_is_up() -> None:
    tested = unable(4)
    # Two openings are planned for those who wait before, and their threads are gone.
    tested.spawner.able = True
    others: list[Waiter[Any]] = [tested.ask() for _ in range(2)]
    tested.spawner.queued.clear()
    tested.spawner.able = False
    slowly(tested, 0.4)
    tested.pool.look_again(tested.clock() + 0.3)
    # One was begun within the time; the other one is left, and whoever waits for it has been woken.
    assert tested.driver.within == pytest.approx([0.3])
    assert others[0].lease is not None
    assert others[1].lease is None
    tested.pool.look_again(tested.clock() + 1)
    assert others[1].lease is not None
    assert_sound(tested.pool)


def test_what_nobody_waits_for_any_more_is_not_left_as_an_opening() -> None:
    tested = unable(2, outage_patience=0.0)
    with pytest.raises(PoolTimeout):
        tested.pool.acquire(timeout=0.0)
    assert tested.pool.stats().opening == 0
    assert tested.pool.acquire(timeout=1.0).item.alive


def test_who_gives_back_opens_nothing_for_others() -> None:
    tested = unable(1)
    lease: Lease[Any] = tested.pool.acquire(timeout=1.0)
    waiter = tested.ask()
    tested.driver.within.clear()
    tested.pool.release(lease, broken="broken")
    # Its room is the waiter's, who is to look for itself.
    assert tested.driver.within == []
    assert len(tested.driver.opened) == 1
    waiter.wait(0.0)
    tested.pool.look_again(tested.clock() + 0.5)
    assert waiter.lease is not None
    assert tested.driver.within == pytest.approx([0.5])
    assert_sound(tested.pool)


def test_a_borrower_that_does_the_maintenance_has_no_more_time_for_it() -> None:
    tested = unable(5, min_idle=3)
    tested.pool.acquire(timeout=1.0).end()
    tested.driver.within.clear()
    tested.clock.advance(10.0)
    for _ in range(2):
        slowly(tested, 0.1)
    tested.pool.acquire(timeout=0.5).end()
    assert tested.driver.within
    assert max(tested.driver.within) <= 0.5


def test_the_goodbye_to_what_has_expired_takes_no_longer_than_its_caller_has() -> None:
    tested = unable(1, max_lifetime=60.0)
    tested.pool.acquire(timeout=1.0).end()
    tested.clock.advance(61.0)
    tested.pool.overdue_at = float("inf")
    tested.pool.acquire(timeout=0.25).end()
    assert tested.driver.goodbyes == pytest.approx([0.25])


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_be_started_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def start(self: Any) -> None:
        raise error

    monkeypatch.setattr("threading.Thread.start", start)
    assert not spawn_thread(lambda: None, "any")
