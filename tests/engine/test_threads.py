"""Many real threads at once."""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kombu_pools_ext.engine import Gate, Pool, Share
from kombu_pools_ext.engine.errors import PoolTimeout
from tests.engine.fakes import (
    PATIENCE,
    Driver,
    Item,
    assert_sound,
    in_thread,
    min_of,
    recover,
    rig,
    wait_until,
)
from tests.engine.steps import Killed

pytestmark = [pytest.mark.threads, pytest.mark.slow]


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_threads(count: int, function: Callable[[int], Any]) -> None:
    """Run it in each of `count` threads, which begin together; raise what one of them raised."""
    begin = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            begin.wait(PATIENCE)
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def test_an_item_is_never_in_two_hands() -> None:
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=4)

    def work(number: int) -> None:
        for turn in range(150):
            lease = pool.acquire(timeout=PATIENCE)
            item = lease.item
            item.users += 1
            assert item.users == 1
            # Give the others every chance to come in between.
            for _ in range(10):
                assert item.users == 1
            assert not item.ended
            item.users -= 1
            pool.release(lease, broken="broken" if turn % 20 == 19 else None)

    with switching_often():
        run_threads(16, work)
    assert pool.lent == 0
    assert len({lease.item for lease in recover(pool, 4)}) == 4
    assert pool.size == 4
    assert_sound(pool)
    pool.close()


@pytest.mark.parametrize("borrowers", [3, 4, 5])
def test_borrowers_lose_nothing_under_an_operators_hands(borrowers: int) -> None:
    """About as many threads as items: now somebody waits, now nobody does, and the pool is changed all the while."""
    driver = Driver()
    limit = 4
    pool: Pool[Item] = Pool(driver, limit=limit)
    gate = Gate()
    share = Share(limit, gate)
    done = threading.Event()
    #: About how often somebody waited, and nobody; and the turns of each borrower.
    waited: Counter[bool] = Counter()
    turns = [0] * borrowers

    def borrow(number: int) -> None:
        deadline = time.monotonic() + PATIENCE / 2
        while min(waited[True], waited[False]) < 500 and time.monotonic() < deadline:
            waited[bool(pool.state.waiters)] += 1
            turns[number] += 1
            lease = pool.acquire(timeout=PATIENCE, share=share if number % 2 else None)
            item = lease.item
            item.users += 1
            assert item.users == 1
            assert not item.ended
            item.users -= 1
            pool.release(lease, broken="broken" if turns[number] % 300 == 299 else None)
            assert lease.ended

    def operate() -> None:
        while not done.is_set():
            pool.drain()
            pool.resize(limit - 1, force=True)
            pool.resize_share(share, 1)
            pool.suspend()
            pool.resume()
            pool.resize(limit)
            pool.resize_share(share, limit)
            for item in driver.open_now[:1]:
                pool.shut_gate(gate, item, "the broker is short of memory")
                pool.open_gate(gate, item)
            pool.run_maintenance()
            # Long enough for quiet times in between.
            done.wait(0.002)

    with switching_often(), in_thread(operate) as operator:
        try:
            run_threads(borrowers, borrow)
        finally:
            done.set()
    assert operator.error is None
    assert min(waited[True], waited[False]) >= 500
    assert pool.lent == pool.lent_of(share) == 0
    assert pool.stats().acquires == sum(turns)
    assert len({lease.item for lease in recover(pool, limit)}) == limit
    assert pool.size == limit
    assert_sound(pool)
    pool.close()


def test_everybody_gets_as_many_turns_as_everybody_else() -> None:
    """40 threads on 4 items, for 4,000 turns in all: counted, for a busy machine's seconds are no measure.

    Counted from when all have had one: a thread that the system starts late is not the pool's doing. Nor is one
    that it stops in the middle: the fairest of a few rounds counts.
    """

    def ratio() -> float:
        pool: Pool[Item] = Pool(Driver(), limit=4)
        turns: Counter[int] = Counter()
        arrived: set[int] = set()
        lock = threading.Lock()
        total = 4000

        def work(number: int) -> None:
            while True:
                lease = pool.acquire(timeout=PATIENCE)
                with lock:
                    arrived.add(number)
                    done = turns.total() >= total
                    turns[number] += len(arrived) == 40 and not done
                pool.release(lease)
                if done:
                    return

        run_threads(40, work)
        assert turns.total() == total
        pool.close()
        return max(turns.values()) / min(turns[n] for n in range(40))

    assert min_of(ratio, enough=1.5) <= 1.5


def test_everybody_gets_his_turn_in_the_order_of_coming() -> None:
    """40 threads on 4 items, for 4,000 turns: in line nobody is overtaken, nor by one who has only just come.

    Whoever is served must find nobody in line who stood there before he came: how often a thread comes at all is the
    system's doing.
    """
    pool: Pool[Item] = Pool(Driver(), limit=4)
    events = itertools.count()
    overtaken: list[tuple[int, int]] = []
    enter = pool.state.enter
    in_line: dict[Any, int] = {}

    def stand_in_line(waiter: Any, *unfit: Any) -> Any:
        decision = enter(waiter, *unfit)
        assert decision.refusal is None
        in_line[waiter] = next(events)
        return decision

    pool.state.enter = stand_in_line  # type: ignore[method-assign]

    def work(number: int) -> None:
        for _ in range(100):
            came = next(events)
            lease = pool.acquire(timeout=PATIENCE)
            for waiter, stood in in_line.copy().items():
                if waiter.ended:
                    # What has been handed over, has been handed over.
                    in_line.pop(waiter, None)
                elif stood < came:
                    overtaken.append((stood, came))
            pool.release(lease)

    held = [pool.acquire() for _ in range(4)]

    def let_go() -> None:
        # All threads stand in line by then, however the system lets them run: there is somebody to be overtaken.
        wait_until(lambda: pool.stats().waiting == 40)
        for lease in held:
            pool.release(lease)

    with in_thread(let_go) as start, switching_often():
        run_threads(40, work)
    assert start.error is None
    assert overtaken == []
    assert all(waiter.ended for waiter in in_line)
    assert pool.stats().waits >= 40
    pool.close()


@pytest.mark.slow
def test_of_a_crowd_of_300_a_third_is_killed_and_the_others_are_served_in_order() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=2)
    held = [pool.acquire() for _ in range(2)]
    idents: dict[int, int] = {}
    served: list[int] = []
    killed: list[int] = []

    def wait(number: int) -> None:
        idents[number] = threading.get_ident()
        try:
            lease = pool.acquire(wait=True)
        except Killed:
            killed.append(number)
        else:
            served.append(number)
            pool.release(lease)

    crowd = [threading.Thread(target=wait, args=(number,), daemon=True) for number in range(300)]
    for number, thread in enumerate(crowd):
        thread.start()
        wait_until(lambda: pool.stats().waiting == number + 1)  # noqa: B023  # it is called at once
    doomed = [number for number in range(300) if number % 3 == 0]
    for number in doomed:
        # It is raised when the thread wakes for a look around.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(idents[number]), ctypes.py_object(Killed)
        )
    wait_until(lambda: pool.stats().waiting == 200)
    # One after the other, so that the order in which they are served can be seen.
    pool.resize(1, force=True)
    for lease in held:
        pool.release(lease)
    for thread in crowd:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in crowd)
    assert sorted(killed) == doomed
    assert served == [number for number in range(300) if number % 3]
    stats = pool.stats()
    assert (stats.size, stats.idle, stats.lent, stats.waiting) == (1, 1, 0, 0)
    assert_sound(pool)
    pool.close()


def test_a_hand_over_that_races_a_timeout_is_neither_lost_nor_doubled() -> None:
    """One thread gives the only item back, in the moment in which a waiter gives up."""
    rounds = 100_000
    tested = rig(1)
    pool = tested.pool
    (lease,) = tested.take()
    (item,) = [lease.item]
    served = 0
    start = threading.Barrier(2)
    handed: list[Any] = [None]
    ready, done = threading.Lock(), threading.Lock()
    ready.acquire()
    done.acquire()

    def give_back() -> None:
        start.wait(PATIENCE)
        for _ in range(rounds):
            ready.acquire()
            pool.release(handed[0])
            done.release()

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    start.wait(PATIENCE)
    with switching_often():
        for turn in range(rounds):
            waiter = tested.ask()
            handed[0] = lease
            ready.release()
            # Now early, now late, with every step of the other thread in between.
            for _ in range(turn % 40):
                pass
            pool.leave(waiter, 0.0)
            taken = waiter.lease
            done.acquire()
            if taken is None:
                assert waiter.lease is None, "served after it had left"
                taken = pool.acquire()
            else:
                served += 1
                assert not pool.state.idle, "served, and left idle too"
            assert taken.item is item
            lease = taken
    thread.join(PATIENCE)
    assert not thread.is_alive()
    # Both happen, or nothing was raced.
    assert 0 < served < rounds
    pool.release(lease)
    assert pool.stats().idle == 1 == pool.size
    assert not item.ended


def test_short_timeouts_under_contention_lose_nothing() -> None:
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=2)
    # There from the beginning: an opener's thread may come too late for all of them.
    for lease in recover(pool, 2):
        lease.end()
    outcomes: Counter[str] = Counter()

    def work(number: int) -> None:
        for turn in range(100):
            try:
                lease = pool.acquire(timeout=0.0001 * (turn % 4))
            except PoolTimeout:
                outcomes["timeout"] += 1
            else:
                outcomes["served"] += 1
                pool.release(lease)

    with switching_often():
        run_threads(8, work)
    assert outcomes["served"]
    assert len({lease.item for lease in recover(pool, 2)}) == 2
    assert pool.stats().waiting == 0
    assert_sound(pool)
    pool.close()


def test_leases_dropped_in_many_threads_all_come_home() -> None:
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=3)

    def work(number: int) -> None:
        for turn in range(50):
            lease = pool.acquire(timeout=PATIENCE)
            if turn % 5:
                pool.release(lease)
            del lease

    with switching_often():
        run_threads(8, work)
    pool.end_deferred()
    assert pool.lent == 0
    # The maintenance thread may be at the last ones.
    wait_until(lambda: pool.stats().closed["dropped"] >= 8 * 10)
    assert pool.stats().closed["dropped"] == 8 * 10
    assert len(recover(pool, 3)) == 3
    pool.close()
