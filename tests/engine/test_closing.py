"""Resize in use, drain, close, and the end of the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kombu_pools_ext.engine import Pool
from kombu_pools_ext.engine.errors import PoolClosed
from kombu_pools_ext.engine.maintenance import Maintenance
from kombu_pools_ext.engine.stats import Drained
from tests.engine.fakes import PATIENCE, Driver, Item, in_thread, min_of, rig, wait_until

# -- resize ------------------------------------------------------------------------------------------------------------


def test_a_pool_in_use_cannot_shrink_below_what_is_lent_and_nothing_changes() -> None:
    tested = rig(4)
    leases = tested.take(3)
    before = tested.pool.stats()
    with pytest.raises(RuntimeError, match="can't shrink pool when in use: was=4 now=2, 3 lent"):
        tested.pool.resize(2)
    assert tested.pool.stats() == before
    assert tested.pool.limit == 4
    tested.pool.resize(3)
    assert len(leases) == 3


def test_by_force_what_is_over_the_limit_is_closed_as_it_comes_back() -> None:
    tested = rig(4)
    leases = tested.take(4)
    tested.pool.resize(2, force=True)
    assert [lease.ended for lease in leases] == [False] * 4
    for lease in leases:
        lease.end()
    assert tested.pool.size == 2 == tested.pool.stats().idle
    assert tested.pool.stats().closed == {"limit": 2}


def test_shrinking_closes_the_coldest_idle_items() -> None:
    tested = rig(4)
    items = tested.fill(4)
    tested.pool.resize(1)
    assert [bool(item.ended) for item in items] == [True, True, True, False]


def test_an_opening_that_ends_after_a_shrink_is_closed() -> None:
    tested = rig(2)
    waiters = [tested.ask(), tested.ask()]
    tested.pool.resize(1)
    tested.spawner.run()
    assert [waiter.lease is not None for waiter in waiters] == [True, False]
    assert tested.pool.size == 1
    assert tested.pool.stats().closed == {"limit": 1}


def test_after_a_shrink_and_a_return_the_pool_is_as_any_other() -> None:
    tested = rig(3)
    leases = tested.take(3)
    tested.pool.resize(1, force=True)
    for lease in leases:
        lease.end()
    tested.pool.resize(2)
    again = tested.take(2)
    for lease in again:
        lease.end()
    assert tested.pool.stats().idle == 2
    assert tested.pool.stats().closed == {"limit": 2}


def test_an_unlimited_pool_opens_one_for_each_who_asks() -> None:
    tested = rig(None)
    assert len(tested.take(30)) == 30
    assert repr(tested.pool).startswith("<Pool 'tested': 30 of unlimited")


# -- drain -------------------------------------------------------------------------------------------------------------


def test_a_drain_closes_what_is_idle_now_and_what_is_lent_when_it_comes_back() -> None:
    tested = rig(3)
    first, second, third = tested.take(3)
    items = [lease.item for lease in (first, second, third)]
    first.end()
    assert tested.pool.drain() == Drained(closed=1, lent=2)
    assert [item.ended for item in items] == [["closed"], [], []]
    second.end()
    third.end("broken")
    assert [item.ended for item in items] == [["closed"], ["closed"], ["broken"]]
    assert tested.pool.stats().closed == {"drained": 2, "broken": 1}
    # The pool is as usable as before.
    (lease,) = tested.take(1)
    lease.end()
    assert not lease.lender.state.idle[0].item.ended


def test_an_opening_from_before_a_drain_is_closed_and_its_waiter_served_by_another() -> None:
    tested = rig(1)
    waiter = tested.ask()
    tested.pool.drain()
    tested.spawner.run()
    assert tested.driver.opened[0].ended == ["closed"]
    assert waiter.lease is not None
    assert waiter.lease.item.number == 1


# -- close -------------------------------------------------------------------------------------------------------------


def test_a_close_with_waiters_leases_and_openings_in_flight() -> None:
    tested = rig(2)
    (lease, other) = tested.take(2)
    other.end("broken")
    item = lease.item
    waiting = [tested.ask() for _ in range(3)]
    # One opening is under way in a thread, one planned and not begun.
    in_flight = threading.Event()
    tested.driver.opening.append(lambda: in_flight.wait(PATIENCE))
    with in_thread(tested.spawner.run):
        wait_until(lambda: not tested.driver.opening)
        assert tested.pool.close() == Drained(closed=0, lent=1)
        errors = [waiter.error for waiter in waiting]
        assert all(isinstance(error, PoolClosed) for error in errors)
        # Each its own, for each is raised in another thread.
        assert len({id(error) for error in errors}) == 3
        assert not item.ended
        in_flight.set()
    assert tested.driver.opened[2].ended == ["closed"]
    lease.end()
    assert item.ended == ["closed"]
    assert tested.pool.size == 0
    assert not tested.driver.open_now
    assert tested.pool.stats().closed == {"broken": 1, "closed": 2}
    assert tested.pool.closed


def test_an_opening_that_was_planned_and_not_begun_is_cancelled_by_a_close() -> None:
    tested = rig(2)
    tested.ask()
    tested.pool.close()
    assert tested.pool.size == 0
    tested.spawner.run()
    assert not tested.driver.opened


def test_a_waiter_in_a_thread_hears_of_the_close_at_once() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    with in_thread(lambda: pool.acquire(wait=True)) as acquired:
        wait_until(lambda: pool.stats().waiting == 1)
        pool.close()
    assert isinstance(acquired.error, PoolClosed)
    pool.release(lease)


def test_a_second_close_changes_nothing() -> None:
    tested = rig(1)
    tested.fill(1)
    tested.pool.close()
    before = tested.pool.stats()
    assert tested.pool.close() == Drained(0, 0)
    assert tested.pool.stats() == before
    assert tested.pool.stats().closed == {"closed": 1}


@pytest.mark.threads
def test_no_thread_stays_after_a_close() -> None:
    keeper = Maintenance()
    before = set(threading.enumerate())
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=4, keeper=keeper)
    leases = [pool.acquire(timeout=PATIENCE) for _ in range(4)]
    # An opener begins it after it has handed its item over.
    wait_until(
        lambda: any(
            one.name == "kombu-pools-maintenance" for one in {*threading.enumerate()} - before
        )
    )
    pool.close()
    for lease in leases:
        pool.release(lease)
    keeper.nudge()
    wait_until(lambda: not set(threading.enumerate()) - before)
    assert not driver.open_now


INTERPRETER = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from fakes import PATIENCE, Driver
from kombu_pools_ext.engine import Pool

driver, hang = Driver(), threading.Event()
pool = Pool(driver, limit=3)
leases = [pool.acquire(timeout=PATIENCE) for _ in range(2)]
pool.release(leases.pop())
driver.opening.append(hang.wait)
busy = Pool(driver, limit=1)

def wait():
    try:
        busy.acquire(wait=True)
    except Exception:
        pass

threading.Thread(target=wait, daemon=True).start()
while driver.opening:
    time.sleep(0.001)
"""


@pytest.mark.timing
@pytest.mark.threads
@pytest.mark.parametrize("closing", ["", "pool.close(); busy.close()"], ids=["left open", "closed"])
def test_the_interpreter_exits_at_once(closing: str) -> None:
    """With items idle and lent, a waiter blocked in a thread, and an opening that never ends."""
    code = f"{INTERPRETER}\n{closing}\nprint(time.monotonic(), flush=True)\n"

    def exits() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        # The monotonic clock is the machine's: what the child read at its end is compared with ours.
        return time.monotonic() - float(done.stdout)

    assert min_of(exits, enough=1.0) < 1.0


GOODBYES = """
import atexit, json, sys
sys.path.insert(0, sys.argv[1])
# What is registered first, runs last.
atexit.register(lambda: print(json.dumps({
    "announced": [item.number for item in driver.announced],
    "closed": {item.number: broken for item, broken in driver.closed},
    "idle": pool.stats().idle,
    "late": late,
})))
from fakes import PATIENCE, Driver
from kombu_pools_ext.engine import Pool, closing

# Else a machine that stood still for a second would have cost the goodbyes.
closing.TOGETHER = PATIENCE
driver = Driver()
pool = Pool(driver, limit=4)
leases = [pool.acquire(timeout=PATIENCE) for _ in range(4)]
for lease in leases[:2]:
    pool.release(lease)
late = []

def still_at_work():
    # After the goodbyes: the pool is usable, and keeps nothing.
    lease = pool.acquire(timeout=PATIENCE)
    late.append(lease.item.number)
    pool.release(lease)
    pool.release(leases[2])

import kombu_pools_ext.engine.shutdown as shutdown
atexit.unregister(shutdown.say_goodbye)
atexit.register(still_at_work)
atexit.register(shutdown.say_goodbye)
"""


@pytest.mark.threads
def test_idle_items_say_goodbye_at_the_end_of_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GOODBYES, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    # What was lent and not given back too: no other thread runs that could be in the middle of a frame.
    assert sorted(report["announced"]) == [0, 1, 2, 3]
    assert report["closed"] == dict.fromkeys(map(str, range(5)), False)
    assert (report["late"], report["idle"]) == ([4], 0)


LAST_RELEASES = """
import atexit, sys, threading, time
sys.path.insert(0, sys.argv[1])
from fakes import PATIENCE, Driver
from kombu_pools_ext.engine import Pool, shutdown

pool = Pool(Driver(), limit=1)
# In place of the exit handler, which would wait for the lock.
atexit.unregister(shutdown.say_goodbye)

class Dies:
    def __init__(self):
        self.lease = pool.acquire(timeout=PATIENCE)
        self.pool = pool

    def __del__(self):
        ending = sys.is_finalizing()
        self.pool.release(self.lease)
        # The first one is deferred: this one would end it, if it waited for the lock.
        self.pool.release(self.lease)
        print(ending, len(self.pool.deferred), flush=True)

keep = Dies()
# In a namespace of its own: a thread that is stopped keeps what it knows, for ever.
stays = {}
exec("def stay(lock, taken, sleep):\\n    with lock:\\n        taken.set()\\n        sleep(600)", stays)
taken = threading.Event()
threading.Thread(target=stays["stay"], args=(pool.lock, taken, time.sleep), daemon=True).start()
taken.wait()
"""


@pytest.mark.threads
def test_a_second_release_at_the_end_waits_for_no_thread_that_was_stopped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAST_RELEASES, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True 1\n")
