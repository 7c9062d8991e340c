"""Who waits, for how long, and what ends it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.engine import Pool, PoolOptions, Share
from kombu_pools_ext.engine.checker import MOST_LOOKED_AT, SLOW_CHECK
from kombu_pools_ext.engine.errors import (
    OpenFailed,
    PoolExhausted,
    PoolFull,
    PoolTimeout,
)
from kombu_pools_ext.engine.wait import (
    CLAIM_AFTER,
    LOOK_AGAIN,
    LOOKING,
)
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import PATIENCE, Driver, Item, in_thread, min_of, rig, wait_until

# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_warmest_idle_item_goes_out_first() -> None:
    tested = rig(3)
    items = tested.fill(3)
    leases = [tested.pool.acquire() for _ in range(3)]
    assert [lease.item for lease in leases] == items[::-1]


def test_waiters_are_served_in_the_order_of_their_coming() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    waiters = [tested.ask() for _ in range(5)]
    for served in range(5):
        tested.pool.release(lease)
        assert [waiter.ended for waiter in waiters] == [n <= served for n in range(5)]
        assert waiters[served].lease is not None
        lease = waiters[served].lease


def test_nobody_overtakes_a_waiter() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    first = tested.ask()
    with pytest.raises(PoolExhausted):
        tested.pool.acquire()
    with pytest.raises(PoolTimeout):
        tested.pool.acquire(timeout=0.0)
    tested.pool.release(lease)
    assert first.lease is not None


def test_a_waiter_whose_share_is_used_up_lets_others_pass() -> None:
    tested = rig(2)
    share = Share(1)
    tested.fill(2)
    mine = tested.pool.acquire(share=share)
    blocked = tested.ask(share)
    free = tested.ask()
    assert free.lease is not None
    assert not blocked.ended
    tested.pool.release(mine)
    assert blocked.lease is not None


def test_who_cannot_be_served_does_not_make_others_be_refused() -> None:
    """Five wait for room in their share; there is room for others in the pool, and no need to wait for it."""
    tested = rig(2)
    share = Share(1)
    tested.fill(2)
    mine = tested.pool.acquire(share=share)
    blocked = [tested.ask(share) for _ in range(5)]
    other = tested.pool.acquire()
    assert other.item is not mine.item
    assert not any(waiter.ended for waiter in blocked)


def test_room_that_those_in_front_will_use_is_not_promised_twice() -> None:
    tested = rig(4)
    share = Share(1)
    in_front = tested.ask(share)
    # Its opening is under way, and takes the share's only place.
    with pytest.raises(PoolExhausted):
        tested.pool.acquire(share=share)
    tested.spawner.run()
    assert in_front.lease is not None


# -- what wakes a waiter -----------------------------------------------------------------------------------------------


def a_release(tested: Any, leases: list[Any]) -> None:
    tested.pool.release(leases[0])


def a_broken_return(tested: Any, leases: list[Any]) -> None:
    tested.pool.release(leases[0], broken="broken")


def a_return_from_before_a_drain(tested: Any, leases: list[Any]) -> None:
    tested.pool.drain()
    tested.pool.release(leases[0])


def a_dropped_lease(tested: Any, leases: list[Any]) -> None:
    leases.pop()
    tested.pool.end_deferred()


def a_higher_limit(tested: Any, leases: list[Any]) -> None:
    tested.pool.resize(3)


def no_limit(tested: Any, leases: list[Any]) -> None:
    tested.pool.resize(None)


@pytest.mark.parametrize(
    "event",
    [
        a_release,
        a_broken_return,
        a_return_from_before_a_drain,
        a_dropped_lease,
        a_higher_limit,
        no_limit,
    ],
)
def test_wakes_a_waiter(event: Callable[[Any, list[Any]], None]) -> None:
    tested = rig(2)
    leases = tested.take(2)
    waiter = tested.ask()
    tested.spawner.run()
    assert not waiter.ended
    event(tested, leases)
    tested.spawner.run()
    assert waiter.lease is not None
    assert not waiter.lease.item.ended


@pytest.mark.parametrize("limit", [2, None])
def test_a_wider_share_wakes_a_waiter(limit: int | None) -> None:
    tested = rig(3)
    share = Share(1)
    tested.fill(3)
    mine = tested.pool.acquire(share=share)
    waiter = tested.ask(share)
    assert not waiter.ended
    tested.pool.resize_share(share, limit)
    assert waiter.lease is not None
    assert len(share.lent) == 2
    tested.pool.release(mine)


def test_a_much_wider_share_wakes_all_for_whom_there_is_room() -> None:
    tested = rig(3)
    share = Share(0)
    tested.fill(3)
    waiters = [tested.ask(share) for _ in range(4)]
    assert not any(waiter.ended for waiter in waiters)
    tested.pool.resize_share(share, None)
    assert [waiter.ended for waiter in waiters] == [True, True, True, False]


def test_a_place_given_up_in_the_queue_wakes_who_stood_behind_it() -> None:
    """The first of two in a share has been promised the room; when it leaves, the room is the second's."""
    tested = rig(2)
    share = Share(1)
    tested.fill(1)
    mine = tested.pool.acquire(share=share)
    first, second = tested.ask(share), tested.ask(share)
    tested.pool.leave(first, tested.clock())
    tested.pool.release(mine)
    assert second.lease is not None
    assert first.lease is None


def test_an_expired_item_makes_room_for_a_waiter() -> None:
    tested = rig(1, max_lifetime=10.0)
    tested.fill(1)
    tested.clock.advance(20.0)
    tested.spawner.able = False
    lease = tested.pool.acquire()
    assert lease.item.number == 1
    assert tested.pool.stats().closed == {"lifetime": 1}


# -- a failed opening --------------------------------------------------------------------------------------------------


def test_a_failed_opening_fails_who_does_not_wait_and_the_others_have_the_next_try() -> None:
    tested = rig(1)
    refused = OSError("refused")
    tested.driver.opening.append(refused)
    hasty = tested.ask(blocking=False)
    first, second = tested.ask(), tested.ask()
    tested.spawner.run()
    assert isinstance(hasty.error, OpenFailed)
    assert hasty.error.__cause__ is refused
    assert first.lease is not None
    assert not second.ended
    assert tested.clock.now == 1000.0


def test_who_does_not_wait_gets_the_drivers_error() -> None:
    tested = rig(1)
    tested.spawner.able = False
    tested.driver.opening.append(ConnectionRefusedError("no broker here"))
    with pytest.raises(OpenFailed, match=r"tested.*no broker here") as caught:
        tested.pool.acquire()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    # The next one is served.
    tested.pool.acquire()


def test_a_killed_opening_gives_its_room_back() -> None:
    tested = rig(1)
    tested.spawner.able = False
    tested.driver.opening.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tested.pool.acquire()
    assert tested.pool.size == 0
    tested.pool.acquire()


def test_no_more_than_two_are_opened_at_a_time() -> None:
    tested = rig(10)
    waiters = [tested.ask() for _ in range(5)]
    assert len(tested.spawner.queued) == 2
    assert tested.pool.size == 2
    tested.spawner.run()
    assert all(waiter.lease for waiter in waiters)
    assert len(tested.driver.opened) == 5


def test_an_opening_nobody_waits_for_any_more_leaves_an_idle_item() -> None:
    tested = rig(1)
    waiter = tested.ask()
    tested.pool.leave(waiter, tested.clock())
    tested.spawner.run()
    assert tested.pool.stats().idle == 1


def test_where_no_thread_can_be_started_the_borrower_opens() -> None:
    tested = rig(2)
    tested.spawner.able = False
    first, second = tested.pool.acquire(), tested.pool.acquire(timeout=1.0)
    assert tested.spawner.refused == 2
    assert {first.item.number, second.item.number} == {0, 1}


def test_a_waiter_carries_out_an_opening_that_no_thread_takes_up() -> None:
    """The spawner queues it, and nobody runs the queue: as if the thread had been killed."""
    tested = rig(1)
    assert tested.pool.acquire(wait=True).item.number == 0
    assert len(tested.spawner.queued) == 1


def test_a_spike_is_met_with_two_more_items_than_were_there() -> None:
    """50 requests of 2 ms each meet 5 idle items, and openings that take 150 ms: those 5 serve them sooner."""
    tested = rig(50)
    tested.fill(5)
    waiters = [tested.ask() for _ in range(50)]
    served = [w for w in waiters if w.lease]
    # The openings take 75 times as long as a request, so they end after all of the requests.
    while served:
        tested.clock.advance(0.002)
        for waiter in served:
            assert waiter.lease is not None
            tested.pool.release(waiter.lease)
            waiters.remove(waiter)
        served = [w for w in waiters if w.lease]
    assert not waiters
    assert tested.clock.now < 1000.150
    tested.spawner.run()
    assert len(tested.driver.opened) <= 7
    assert tested.pool.size <= 7


# -- checks before a loan ----------------------------------------------------------------------------------------------


def test_a_fresh_item_is_not_checked_and_a_stale_one_is() -> None:
    tested = rig(1, check_after=0.5)
    tested.fill(1)
    tested.clock.advance(0.4)
    tested.pool.release(tested.pool.acquire())
    assert not tested.driver.checked
    tested.clock.advance(0.5)
    tested.pool.acquire()
    assert len(tested.driver.checked) == 1


def test_one_dead_all_suspect_and_the_next_is_tried_at_once() -> None:
    tested = rig(3, check_after=10.0)
    first, second, third = tested.fill(3)
    tested.clock.advance(11.0)
    tested.pool.release(tested.pool.acquire())
    assert tested.driver.checked == [third]
    lent = tested.pool.acquire()
    assert lent.item is third
    # Found dead: the others are checked, however fresh they are, the lent one too when it is back.
    tested.driver.checking.append(lambda: False)
    (second_entry,) = [e for e in tested.pool.state.idle if e.item is second]
    (first_entry,) = [e for e in tested.pool.state.idle if e.item is first]
    first_entry.used_at = second_entry.used_at
    got = tested.pool.acquire()
    assert got.item is first
    assert second.ended == ["broken"]
    assert tested.clock.now == 1011.0
    assert tested.driver.checked == [third, second, first]
    tested.pool.release(lent)
    again = tested.pool.acquire()
    assert again.item is third
    assert tested.driver.checked == [third, second, first, third]
    # A look was not enough: those after the first had to answer.
    assert tested.driver.proved == [first, third]
    # Alive is alive: it is not asked again.
    tested.pool.release(again)
    tested.pool.acquire()
    assert len(tested.driver.checked) == 4
    assert tested.pool.stats().closed == {"dead": 1}


def test_after_one_broke_in_use_the_others_have_to_answer_before_they_are_lent() -> None:
    tested = rig(3, check_after=3600.0)
    first, second, third = tested.fill(3)
    second.alive = False
    tested.pool.release(tested.pool.acquire(), broken="broken")
    assert tested.pool.acquire().item is first
    assert tested.driver.proved == [second, first]
    assert tested.pool.stats().closed == {"broken": 1, "dead": 1}
    assert third.ended == second.ended == ["broken"]


def test_after_one_broke_in_use_what_is_lent_at_that_time_has_to_answer_when_it_is_lent_again() -> (
    None
):
    tested = rig(2, check_after=3600.0)
    broken, other = tested.take(2)
    item = other.item
    tested.pool.release(broken, broken="broken")
    tested.pool.release(other)
    assert not tested.driver.proved
    assert tested.pool.acquire().item is item
    assert tested.driver.proved == [item]


def test_one_that_does_not_answer_condemns_all_that_have_yet_to() -> None:
    tested = rig(4, check_after=3600.0)
    first, second, third, fourth = tested.fill(4)
    lent = tested.pool.acquire()
    assert lent.item is fourth
    tested.pool.release(tested.pool.acquire(), broken="broken")

    def silent() -> bool:
        tested.clock.advance(SLOW_CHECK)
        return False

    tested.driver.checking.append(silent)
    tested.spawner.able = False
    # The borrower waits for one of them, not for each.
    assert tested.pool.acquire().item.number == 4
    assert tested.driver.proved == [second]
    assert first.ended == second.ended == third.ended == ["broken"]
    # The lent one is its borrower's.
    assert not fourth.ended


def test_what_interrupts_a_check_reaches_the_borrower_and_costs_that_item() -> None:
    tested = rig(2, check_after=0.0)
    first, second = tested.fill(2)
    tested.driver.checking.append(TimeoutError("an alarm of the application's"))
    with pytest.raises(TimeoutError, match="an alarm"):
        tested.pool.acquire()
    assert second.ended == ["broken"]
    assert tested.pool.acquire().item is first
    assert tested.pool.lent == 1


def test_those_that_are_seen_to_be_gone_go_with_the_first_that_is_found_dead() -> None:
    tested = rig(4, check_after=0.0)
    first, second, third, fourth = tested.fill(4)
    fourth.alive = False
    first.gone = third.gone = True
    assert tested.pool.acquire().item is second
    assert tested.driver.checked == [fourth, second]
    assert first.ended == third.ended == fourth.ended == ["broken"]
    assert tested.pool.stats().closed == {"dead": 3}
    assert tested.pool.size == 1


def test_who_borrows_one_of_them_meanwhile_finds_out_himself() -> None:
    tested = rig(2, check_after=0.0)
    first, second = tested.fill(2)
    second.alive = False
    first.gone = True
    theirs = []

    def look(item: Item) -> bool:
        theirs.append(tested.pool.acquire())
        return True

    tested.driver.is_hung_up = look  # type: ignore[method-assign]
    tested.spawner.able = False
    ours = tested.pool.acquire()
    assert theirs[0].item is first
    assert ours.item not in (first, second)
    assert not first.ended


def test_a_look_that_fails_leaves_it_to_the_check() -> None:
    tested = rig(2, check_after=0.0)
    first, second = tested.fill(2)
    second.alive = False
    tested.driver.is_hung_up = lambda item: item.nothing  # type: ignore[attr-defined,method-assign]
    assert tested.pool.acquire().item is first


def test_of_many_only_the_next_are_looked_at() -> None:
    tested = rig(MOST_LOOKED_AT + 9, check_after=0.0)
    items = tested.fill(MOST_LOOKED_AT + 9)
    items[-1].alive = False
    tested.pool.acquire()
    assert [*tested.driver.looked_at] == items[-1 - MOST_LOOKED_AT : -1]


def test_when_all_are_dead_a_new_one_is_opened_at_once() -> None:
    tested = rig(3, check_after=0.0)
    for item in tested.fill(3):
        item.alive = False
    tested.spawner.able = False
    assert tested.pool.acquire().item.number == 3
    assert tested.pool.stats().closed == {"dead": 3}


def test_who_was_served_something_dead_keeps_its_place_before_those_who_wait() -> None:
    tested = rig(1, check_after=0.0)
    (item,) = tested.fill(1)
    item.alive = False
    behind = []

    def another_comes() -> bool:
        behind.append(tested.ask())
        return False

    tested.driver.checking.append(another_comes)
    tested.spawner.able = False
    # Not even one who does not wait is sent away for somebody who came later.
    lease = tested.pool.acquire()
    assert lease.item.number == 1
    assert not behind[0].ended
    tested.pool.release(lease)
    assert behind[0].lease is not None


def test_a_check_that_is_interrupted_discards_the_item() -> None:
    tested = rig(1, check_after=0.0)
    (item,) = tested.fill(1)
    tested.driver.checking.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tested.pool.acquire()
    assert item.ended == ["broken"]
    assert tested.pool.stats().closed == {"broken": 1}
    assert tested.pool.size == 0


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.timing
def test_the_timeout_holds_while_the_driver_hangs() -> None:

    def took() -> float:
        driver, hang = Driver(), threading.Event()
        driver.opening.append(lambda: hang.wait(2 * PATIENCE))
        pool: Pool[Item] = Pool(driver, limit=1)
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)
        seconds = time.monotonic() - began
        hang.set()
        # And what it opened in the end is not lost.
        wait_until(lambda: pool.stats().idle == 1)
        pool.close()
        return seconds

    assert 0.2 <= min_of(took, enough=1.0) < 1.0


def test_who_does_not_wait_is_refused_at_once_when_everything_is_lent() -> None:
    tested = rig(2)
    held = tested.take(2)
    with pytest.raises(PoolExhausted, match="2 of 2"):
        tested.pool.acquire()
    assert not any(lease.ended for lease in held)
    assert tested.clock.now == 1000.0
    assert tested.listener.events[-1] == ("exhausted", "exhausted")


def test_who_does_not_wait_is_refused_when_its_share_is_used_up() -> None:
    tested = rig(2)
    share = Share(1)
    tested.fill(2)
    held = tested.pool.acquire(share=share)
    with pytest.raises(PoolExhausted):
        tested.pool.acquire(share=share)
    tested.pool.acquire()
    assert not held.ended


def test_who_does_not_wait_waits_for_an_opening_when_there_is_room() -> None:
    driver, hang = Driver(), threading.Event()
    driver.opening.append(lambda: hang.wait(PATIENCE))
    pool: Pool[Item] = Pool(driver, limit=1)
    with in_thread(pool.acquire) as acquired:
        wait_until(lambda: pool.stats().waiting == 1)
        hang.set()
    assert acquired.value.item.number == 0
    pool.release(acquired.value)
    pool.close()


@pytest.mark.timing
def test_who_does_not_wait_waits_for_no_longer_than_the_connect_timeout() -> None:

    def took() -> float:
        driver, hang = Driver(), threading.Event()
        driver.opening.append(lambda: hang.wait(2 * PATIENCE))
        pool: Pool[Item] = Pool(driver, limit=1, options=PoolOptions(connect_timeout=0.1))
        began = time.monotonic()
        with pytest.raises(
            OpenFailed, match=r"no connection within CONNECT_TIMEOUT=0\.1 s"
        ) as told:
            pool.acquire()
        seconds = time.monotonic() - began
        assert isinstance(told.value.__cause__, TimeoutError)
        hang.set()
        pool.close()
        return seconds

    assert 0.1 <= min_of(took, enough=1.0) < 1.0


def test_a_timeout_of_nothing_takes_what_is_there_and_waits_for_nothing() -> None:
    tested = rig(1)
    tested.fill(1)
    lease = tested.pool.acquire(timeout=0.0)
    with pytest.raises(PoolTimeout, match="raise LIMIT"):
        tested.pool.acquire(timeout=0.0)
    tested.pool.release(lease)


def test_waiting_without_end_ends_with_a_release() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=1)
    lease = pool.acquire()
    with in_thread(lambda: pool.acquire(wait=True)) as acquired:
        wait_until(lambda: pool.stats().waiting == 1)
        pool.release(lease)
    assert acquired.value.item.number == 0
    pool.release(acquired.value)
    pool.close()


def test_the_error_of_a_waiter_holds_none_of_its_frames_in_a_cycle() -> None:
    tested = rig(1)
    tested.spawner.able = False
    tested.driver.opening.append(OSError("refused"))
    gc.collect()
    before = {id(thing) for thing in gc.get_objects()}
    gc.disable()
    try:
        with pytest.raises(OpenFailed) as caught:
            tested.pool.acquire()
        caught.value.__traceback__ = None
        del caught
        found = [w for w in gc.get_objects() if type(w) is Waiter and id(w) not in before]
    finally:
        gc.enable()
    assert not found


# -- how many ----------------------------------------------------------------------------------------------------------


def test_beyond_max_waiting_a_caller_is_refused_at_once() -> None:
    tested = rig(1, max_waiting=2)
    held = tested.take(1)
    tested.ask()
    tested.ask()
    with pytest.raises(PoolFull, match="because of max_waiting=2 in the pool's PoolOptions; raise"):
        tested.pool.acquire(wait=True)
    with pytest.raises(PoolFull):
        tested.pool.acquire(timeout=5.0)
    assert tested.clock.now == 1000.0
    assert tested.pool.stats().waiting == 2
    assert not held[0].ended
    assert tested.listener.events[-1] == ("exhausted", "full")


def test_any_number_may_wait_by_default() -> None:
    tested = rig(1)
    tested.take()
    waiting = [tested.ask() for _ in range(1000)]
    assert tested.pool.stats().waiting == len(waiting)
    assert tested.pool.stats().refused == 0


def test_a_bound_for_each_item_follows_the_limit() -> None:
    tested = rig(2, waiting_per_item=10)
    held = tested.take(2)
    for _ in range(20):
        tested.ask()
    with pytest.raises(PoolFull):
        tested.pool.acquire(wait=True)
    tested.pool.resize(3)
    tested.ask()
    assert len(held) == tested.pool.lent
    tested.pool.resize(None)
    for _ in range(50):
        tested.ask()


@pytest.mark.parametrize(
    "options, told",
    [
        ({"max_waiting": 2}, "because of MAX_WAITING=2; raise that or LIMIT"),
        (
            {"waiting_per_item": 2},
            "because of MAX_WAITING, which is 2 by default, 2 for each connection of LIMIT; raise",
        ),
    ],
)
def test_the_pool_of_an_alias_names_the_setting_that_refuses(
    options: dict[str, int], told: str
) -> None:
    tested = rig(1, from_settings=True, **options)
    tested.take()
    tested.ask()
    tested.ask()
    with pytest.raises(PoolFull, match=told):
        tested.pool.acquire(wait=True)


@pytest.mark.parametrize("down", [False, True])
def test_what_a_waiter_looks_at_does_not_grow_with_the_crowd(
    monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    """Each of 1,000 waiters looks for itself once a second: at all others, that would keep a processor busy."""
    looked_at: list[Waiter[Item]] = []
    counted = property(
        lambda waiter: (
            looked_at.append(waiter) or waiter.lease is not None or waiter.error is not None
        )
    )
    monkeypatch.setattr(Waiter, "ended", counted)
    costs = []
    for crowd in (10, 200):
        tested = rig(1, outage_patience=3600.0, jitter=lambda: 1.0)
        if down:
            tested.driver.opening.append(OSError("refused"))
            tested.ask()
            tested.spawner.run()
        else:
            tested.take()
        waiting = [tested.ask() for _ in range(crowd)]
        looked_at.clear()
        for waiter in waiting[:10]:
            tested.pool.look_again(None, waiter)
        costs.append(len(looked_at))
    assert costs[0] == costs[1]


def test_max_waiting_is_about_those_who_wait_for_others() -> None:
    """With nobody allowed to wait for a return, the pool still opens what the limit allows."""
    tested = rig(2, max_waiting=0)
    first, second = tested.ask(), tested.ask()
    with pytest.raises(PoolFull):
        tested.pool.acquire(timeout=1.0)
    tested.spawner.run()
    assert first.lease
    assert second.lease
    with pytest.raises(PoolFull):
        tested.pool.acquire(timeout=1.0)


def test_an_unlimited_pool_still_bounds_those_who_wait() -> None:
    tested = rig(None, max_waiting=3)
    for _ in range(3):
        tested.ask()
    with pytest.raises(PoolFull):
        tested.pool.acquire(timeout=1.0)


def test_only_the_first_of_many_look_for_themselves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = rig(1, max_waiting=100)
    tested.take()
    naps: list[float] = []

    def nap(waiter: Waiter[Item], seconds: float) -> None:
        naps.append(seconds)
        tested.clock.advance(seconds)

    monkeypatch.setattr(Waiter, "wait", nap)
    for others, first in ((LOOKING - 1, CLAIM_AFTER), (LOOKING, LOOK_AGAIN)):
        waiting = [tested.ask() for _ in range(others)]
        naps.clear()
        with pytest.raises(PoolTimeout):
            tested.pool.acquire(timeout=LOOK_AGAIN)
        assert naps[0] == first
        for waiter in waiting:
            tested.pool.leave(waiter, 0.0)
