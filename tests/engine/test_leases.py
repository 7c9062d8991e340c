"""A lease ends once, however it ends."""

from __future__ import annotations

import _thread
import gc
import logging
from itertools import islice
from typing import Any

import pytest

from kombu_pools_ext.engine import Lease, Pool, Share
from kombu_pools_ext.engine.errors import LeaseError, PoolClosed, PoolExhausted, PoolReentered
from tests.engine.fakes import PATIENCE, Driver, Item, in_thread, rig, wait_until

# -- released ----------------------------------------------------------------------------------------------------------


def test_a_second_release_changes_nothing() -> None:
    tested = rig(2)
    (lease,) = tested.take()
    tested.pool.release(lease)
    before = tested.pool.stats()
    tested.pool.release(lease)
    lease.end()
    assert tested.pool.stats() == before


def test_a_second_release_does_not_end_the_next_borrowers_lease() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    tested.pool.release(lease)
    second = tested.pool.acquire()
    assert second.item.number == 0
    tested.pool.release(lease)
    tested.pool.release(lease, broken="broken")
    assert not second.ended
    with pytest.raises(PoolExhausted):
        tested.pool.acquire()
    assert not second.item.ended


def test_a_lease_of_another_pool_is_refused_and_stays_what_it_is() -> None:
    tested, other = rig(1), rig(1)
    (lease,) = tested.take()
    before = tested.pool.stats(), other.pool.stats()
    with pytest.raises(LeaseError, match="cannot release a lease of pool 'tested'"):
        other.pool.release(lease)
    assert (tested.pool.stats(), other.pool.stats()) == before
    assert not lease.ended


def test_a_lease_given_back_after_a_close_is_closed_with_it() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    item = lease.item
    tested.pool.close()
    assert not item.ended
    tested.pool.release(lease)
    tested.pool.release(lease)
    assert item.ended == ["closed"]
    assert tested.pool.size == 0


def test_the_item_of_an_ended_lease_cannot_be_had() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    assert lease.item.number == 0
    assert repr(lease) == "<Lease of pool 'tested': <Item 0>>"
    tested.pool.release(lease)
    assert lease.ended
    assert repr(lease) == "<Lease of pool 'tested': ended>"
    with pytest.raises(LeaseError, match="was released; acquire a new one"):
        _ = lease.item


@pytest.mark.parametrize("reason", ["broken", "replaced"])
def test_what_broke_is_closed_and_not_lent_again(reason: str) -> None:
    tested = rig(1)
    (lease,) = tested.take()
    item = lease.item
    lease.end(reason)
    assert item.ended == ["broken" if reason == "broken" else "closed"]
    assert tested.pool.stats().closed == {reason: 1}
    assert tested.pool.size == 0


def test_a_pool_that_keeps_nothing_closes_what_comes_back() -> None:
    tested = rig(1, keep=False)
    (lease,) = tested.take()
    item = lease.item
    tested.pool.release(lease)
    assert item.ended == ["closed"]
    assert tested.pool.stats().closed == {"not kept": 1}


def test_a_pool_that_keeps_nothing_closes_what_nobody_waits_for_any_more() -> None:
    tested = rig(1, keep=False)
    waiter = tested.ask()
    tested.pool.leave(waiter, tested.clock())
    tested.spawner.run()
    assert tested.pool.size == 0
    assert tested.pool.stats().closed == {"not kept": 1}


def test_a_failing_close_still_frees_the_room() -> None:
    tested = rig(1)
    tested.driver.closing.append(OSError("broken pipe"))
    (lease,) = tested.take()
    lease.end("broken")
    assert tested.pool.size == 0
    assert len(tested.take()) == 1


def test_what_is_being_closed_still_counts_against_the_limit() -> None:
    """The broker sees it until it is closed."""
    tested = rig(1)
    (lease,) = tested.take()
    sizes: list[tuple[int, str]] = []
    waiter: list[Any] = []

    def look() -> None:
        waiter.append(tested.ask())
        sizes.append((tested.pool.size, repr(tested.pool)))

    tested.driver.closing.append(look)
    lease.end("broken")
    assert sizes == [(1, "<Pool 'tested': 1 of 1 (0 idle, 0 lent, 1 closing), 1 waiting>")]
    tested.spawner.run()
    assert waiter[0].lease.item.number == 1


# -- dropped -----------------------------------------------------------------------------------------------------------


def borrow_and_forget(pool: Pool[Item]) -> int:
    """Returns the line that borrows."""
    pool_acquire = pool.acquire
    lease = pool_acquire()  # this line
    assert not lease.ended
    return borrow_and_forget.__code__.co_firstlineno + 3


def test_a_dropped_lease_comes_back_as_room_and_names_its_borrower(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tested = rig(1)
    (item,) = tested.fill(1)

    def face() -> int:
        return borrow_and_forget(tested.pool)

    face()
    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        tested.pool.end_deferred()
    assert item.ended == ["broken"]
    assert tested.pool.stats().closed == {"dropped": 1}
    assert len(tested.take()) == 1
    (record,) = caplog.records
    assert "dropped without a release" in record.getMessage()
    # One frame is a pool's face, or whoever uses the engine itself: the borrower is the next one out.
    assert f"{__file__}:" in record.getMessage()
    assert "in test_a_dropped_lease_comes_back" in record.getMessage()


def test_a_log_handler_that_hears_of_a_dropped_lease_has_its_place() -> None:
    tested = rig(1)
    tested.fill(1)
    borrow_and_forget(tested.pool)
    taken: list[int] = []

    class Publishing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lease = tested.pool.acquire(timeout=1.0)
            taken.append(lease.item.number)
            lease.end()

    handler = Publishing()
    logger = logging.getLogger("kombu_pools_ext")
    logger.addHandler(handler)
    try:
        tested.pool.end_deferred()
    finally:
        logger.removeHandler(handler)
    assert taken == [1]


def test_a_dropped_lease_serves_who_waits() -> None:
    tested = rig(1)
    leases = tested.take()
    waiter = tested.ask()
    leases.clear()
    tested.pool.end_deferred()
    tested.spawner.run()
    assert waiter.lease is not None


def test_a_dropped_lease_gives_its_share_back() -> None:
    tested = rig(2)
    tested.fill(1)
    share = Share(1)
    lease = tested.pool.acquire(share=share)
    assert not share.has_room()
    del lease
    tested.pool.end_deferred()
    assert share.has_room()


def test_a_late_word_about_a_lease_that_was_released_changes_nothing() -> None:
    """The lease was released, and lent again: what its finalizer has to say is about the past."""
    tested = rig(1)
    (lease,) = tested.take()
    entry = lease.entry
    assert entry is not None
    loan = entry.loan
    assert loan == 1
    tested.pool.release(lease)
    second = tested.pool.acquire()
    tested.pool.deferred.append((entry, loan, "dropped"))
    tested.pool.end_deferred()
    assert not second.ended
    assert not second.item.ended
    assert tested.pool.lent == 1


class Cycle:
    """Holds a lease, and itself: only the garbage collector ends it."""

    def __init__(self, lease: Lease[Any]) -> None:
        self.lease = lease
        self.itself = self


@pytest.mark.parametrize("step", ["clock", "jitter", "share"])
def test_a_lease_in_a_cycle_collected_inside_the_critical_section_comes_home(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The collector may run in any allocation: also in one that is made under the pool's own lock."""
    inside: list[bool] = []

    def collect() -> None:
        if armed:
            armed.clear()
            inside.append(bool(tested.pool.owned()))
            gc.collect()

    def jitter() -> float:
        if step == "jitter":
            collect()
        return 0.0

    def clock() -> float:
        if step == "clock" and tested.pool.owned():
            collect()
        return tested.clock.now

    class Asked(Share):
        def has_room(self) -> bool:
            if step == "share":
                collect()
            return super().has_room()

    armed: list[bool] = []
    tested = rig(3, jitter=jitter)
    tested.pool.clock = tested.pool.state.clock = clock
    gc.disable()
    try:
        (dropped, other) = tested.take(2)
        item = dropped.item
        cycle = Cycle(dropped)
        del dropped
        del cycle
        armed.append(True)
        if step == "clock":
            tested.pool.release(other)
        elif step == "jitter":
            tested.take()
        else:
            tested.pool.release(other)
            other = tested.pool.acquire(share=Asked(1))
    finally:
        gc.enable()
    assert inside == [True]
    assert not item.ended
    # Whoever comes by next settles it.
    with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
        tested.pool.end_deferred()
    assert item.ended == ["broken"]
    tested.pool.release(other)
    assert len(tested.take(3)) == 3


def test_a_lease_in_a_cycle_counts_until_it_is_closed() -> None:
    tested = rig(2)
    cycle = Cycle(tested.take().pop())
    sizes: list[int] = []
    tested.driver.closing.append(lambda: sizes.append(tested.pool.size))
    del cycle
    gc.collect()
    tested.pool.end_deferred()
    assert sizes == [1]
    assert tested.pool.size == 0


def test_the_maintenance_thread_takes_a_dropped_lease_home_with_nobody_coming_by() -> None:
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    item = lease.item
    with in_thread(lambda: pool.acquire(wait=True)) as acquired:
        wait_until(lambda: pool.stats().waiting == 1)
        del lease
    assert item.ended == ["broken"]
    assert acquired.value.item.number == 1
    pool.release(acquired.value)
    pool.close()


# -- inside the pool's own critical section ----------------------------------------------------------------------------


def test_a_release_inside_the_critical_section_waits_for_nothing_and_is_done_later() -> None:
    tested = rig(1)
    (lease,) = tested.take()

    def decide() -> None:
        tested.pool.release(lease)
        tested.pool.release(lease)
        assert lease.ended
        assert tested.pool.lent == 1
        # Not even by who comes by inside it.
        tested.pool.end_deferred()
        assert tested.pool.lent == 1

    tested.pool.locked(decide)
    assert tested.pool.acquire().item.number == 0


def test_an_acquire_inside_the_critical_section_is_refused() -> None:
    tested = rig(1)
    tested.fill(1)
    with pytest.raises(PoolReentered, match="set a flag there"):
        tested.pool.locked(lambda: tested.pool.acquire(timeout=1.0))
    assert tested.pool.stats().idle == 1


def test_a_deferred_release_wakes_a_waiter_that_nobody_nudges() -> None:
    """Without a maintenance thread, a waiter looks for itself after a while."""
    tested = rig(1)
    (lease,) = tested.take()
    tested.spawner.able = False
    with in_thread(lambda: tested.pool.acquire(wait=True)) as acquired:
        wait_until(lambda: tested.pool.stats().waiting == 1)
        tested.pool.locked(lambda: tested.pool.release(lease))
    assert acquired.value.item.number == 0


def test_acquire_on_a_closed_pool_is_refused() -> None:
    tested = rig(1)
    tested.fill(1)
    tested.pool.close()
    for ask in ({}, {"wait": True}, {"timeout": 1.0}):
        with pytest.raises(PoolClosed, match="acquire on closed pool"):
            tested.pool.acquire(**ask)


@pytest.mark.threads
def test_a_borrower_that_no_line_of_python_stands_for_is_served() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=1)
    leases: list[Any] = []
    _thread.start_new_thread(leases.extend, (islice(iter(pool.acquire, None), 1),))
    wait_until(lambda: bool(leases))
    (lease,) = leases
    assert lease.entry.borrower is None
    pool.release(lease)
    pool.close()
