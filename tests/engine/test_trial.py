"""One item is opened before the others are given up; and another pool takes a pool's place."""

from __future__ import annotations

import threading
import time

import pytest

from kombu_pools_ext.engine.trial import Trial
from tests.engine.fakes import PATIENCE, Rig, assert_sound, in_thread, recover, rig, wait_until

SOON = 0.05


def trial(tested: Rig, timeout: float = PATIENCE) -> Trial[object]:
    return Trial(tested.pool, timeout)  # type: ignore[arg-type]  # of any item


def opened(tested: Rig) -> object:
    one = trial(tested)
    tested.spawner.run()
    return one.result()


def test_the_new_item_is_there_before_the_others_go() -> None:
    tested = rig(3)
    idle, lent = tested.fill(2)
    lease = tested.pool.acquire()
    new = opened(tested)
    assert [item.ended for item in (idle, lent)] == [[], []]
    assert tested.pool.renew(new) == (1, 1)  # type: ignore[arg-type]
    assert tested.pool.stats().idle == 1
    assert tested.pool.acquire().item is new
    tested.pool.release(lease)
    assert tested.pool.stats().closed == {"drained": 2}
    assert tested.listener.events.count(("opened",)) == 3
    assert_sound(tested.pool)


def test_an_opening_that_fails_changes_nothing() -> None:
    tested = rig(2)
    items = tested.fill(2)
    tested.driver.opening.append(PermissionError("no"))
    one = trial(tested)
    tested.spawner.run()
    with pytest.raises(PermissionError, match="no"):
        one.result()
    # No outage either: what is there goes on being lent, and others may be opened.
    stats = tested.pool.stats()
    assert (stats.idle, stats.outage, stats.open_failures) == (2, None, 0)
    assert not any(item.ended for item in items)


def test_an_opening_that_hangs_is_given_up_and_closed_when_it_comes() -> None:
    tested = rig(2)
    tested.fill(1)
    going = threading.Event()
    tested.driver.opening.append(lambda: going.wait(PATIENCE))
    one = trial(tested, SOON)
    with in_thread(tested.spawner.run_one):
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            one.result()
        going.set()
    assert tested.driver.opened[1].ended == ["closed"]
    assert tested.pool.stats().size == 1


def test_where_no_thread_can_run_it_is_opened_at_once() -> None:
    tested = rig(2)
    tested.fill(1)
    tested.spawner.able = False
    one = trial(tested)
    assert len(tested.driver.opened) == 2
    one.abandon()
    one.abandon()
    assert tested.driver.opened[1].ended == ["closed"]


def test_beyond_the_limit_the_new_item_goes_when_all_others_are_lent() -> None:
    tested = rig(1)
    lease = tested.pool.acquire(timeout=0) if tested.fill(1) else None
    assert lease is not None
    new = opened(tested)
    assert tested.pool.renew(new) == (0, 1)  # type: ignore[arg-type]
    assert tested.driver.opened[1].ended == ["closed"]
    tested.pool.release(lease)
    assert tested.pool.stats().closed == {"limit": 1, "drained": 1}
    assert_sound(tested.pool)


def test_at_the_limit_the_new_item_takes_the_place_of_an_idle_one() -> None:
    tested = rig(1)
    tested.fill(1)
    new = opened(tested)
    tested.pool.renew(new)  # type: ignore[arg-type]
    assert tested.pool.stats().size == 1
    assert tested.pool.acquire().item is new


def test_the_new_item_ends_an_outage_and_goes_to_who_waits() -> None:
    tested = rig(2, jitter=lambda: 1.0)
    [lease] = tested.take()
    tested.driver.opening.append(ConnectionError("down"))
    waiter = tested.ask()
    tested.spawner.run()
    assert tested.pool.stats().outage is not None
    new = opened(tested)
    tested.pool.renew(new)  # type: ignore[arg-type]
    assert waiter.lease is not None
    assert waiter.lease.item is new
    assert tested.pool.stats().outage is None
    tested.pool.release(lease)


def test_there_is_nothing_to_lose_in_a_pool_without_items_or_that_is_suspended() -> None:
    tested = rig(2)
    assert not tested.pool.can_renew
    tested.fill(1)
    assert tested.pool.can_renew
    tested.pool.suspend()
    assert not tested.pool.can_renew


def test_silent_peers_do_not_add_up_their_goodbyes() -> None:
    tested = rig(5)
    tested.fill(5)
    new = opened(tested)
    tested.pool.renew(new)  # type: ignore[arg-type]
    # A word to each first; what is left of one second is for all of them.
    assert len(tested.driver.announced) == 5
    assert all(one is not None and one <= 1.0 for one in tested.driver.goodbyes)


# -- another pool takes its place --------------------------------------------------------------------------------


def test_what_comes_back_to_a_replaced_pool_is_for_who_waits_there() -> None:
    tested = rig(2, min_idle=1)
    one, two = tested.take(2)
    waiter = tested.ask()
    assert tested.pool.replace() == (0, 2)
    tested.driver.opening.append(PermissionError("the former password"))
    tested.pool.release(one)
    assert waiter.lease is not None
    # Nobody waits any more.
    tested.pool.release(two)
    tested.pool.release(waiter.lease)
    tested.spawner.run()
    assert tested.pool.stats().closed == {"drained": 2}
    assert len(tested.driver.opened) == 2
    assert_sound(tested.pool)


def test_a_replaced_pool_keeps_nothing_idle_and_serves_who_comes() -> None:
    tested = rig(2, min_idle=2)
    tested.fill(2)
    assert tested.pool.replace() == (2, 0)
    [lease] = tested.take()
    tested.pool.release(lease)
    assert tested.pool.stats().size == 0
    assert tested.pool.stats().closed == {"drained": 2, "not kept": 1}


def test_a_replaced_pool_is_one_in_a_child_too() -> None:
    tested = rig(2)
    tested.fill(1)
    tested.pool.replace()
    tested.pool.after_fork_in_child()
    [lease] = tested.take()
    tested.pool.release(lease)
    assert tested.pool.stats().size == 0


@pytest.mark.threads
def test_renewals_and_borrowers_at_once_lose_nothing() -> None:
    tested = rig(3)
    tested.pool.spawn = lambda work, name: bool(threading.Thread(target=work).start()) or True
    stop = threading.Event()
    failed: list[BaseException] = []

    def borrow() -> None:
        try:
            while not stop.is_set():
                tested.pool.release(tested.pool.acquire(timeout=PATIENCE))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if tested.pool.can_renew:
            tested.pool.renew(trial(tested).result())  # type: ignore[arg-type]
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failed
    wait_until(lambda: tested.pool.stats().opening == 0)
    for lease in recover(tested.pool, 3):
        tested.pool.release(lease)
    wait_until(lambda: len(tested.driver.open_now) == tested.pool.size <= 3)
    assert_sound(tested.pool)
