"""A child owns nothing of what its parent opened, and its parent does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext.engine import Pool, Share, fork
from kombu_pools_ext.engine.errors import LeaseError, PoolClosed
from kombu_pools_ext.engine.maintenance import Maintenance
from tests.engine.fakes import PATIENCE, Driver, Item, in_thread, rig, wait_until

pytestmark = [pytest.mark.forks, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")]


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns in a forked child; an exception there is a failure here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            report = {"returned": function()}
        except BaseException:
            report = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(report).encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.001)
    with os.fdopen(reading) as pipe:
        report = json.loads(pipe.read())
    assert "raised" not in report, report["raised"]
    return report["returned"]


@contextmanager
def held_by_another_thread(lock: Any) -> Iterator[None]:
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait(PATIENCE)

    with in_thread(hold):
        assert taken.wait(PATIENCE)
        try:
            yield
        finally:
            done.set()


def test_a_child_begins_with_an_empty_pool_of_the_same_configuration() -> None:
    tested = rig(3, min_idle=1)
    leases = tested.take(3)
    leases.pop().end()
    before = tested.pool.stats()

    def child() -> dict[str, Any]:
        stats = tested.pool.stats()
        (mine,) = tested.take()
        return {
            "limit": stats.limit,
            "size": stats.size,
            "opened": stats.opened,
            "mine": mine.item.number,
            "abandoned": sorted(item.number for item in tested.driver.abandoned),
            "closed": len(tested.driver.closed),
            "min_idle": tested.pool.options.min_idle,
        }

    assert in_child(child) == {
        "limit": 3,
        "size": 0,
        "opened": 0,
        "mine": 3,
        # Each once: idle, and lent.
        "abandoned": [0, 1, 2],
        "closed": 0,
        "min_idle": 1,
    }
    # The parent has noticed nothing.
    assert tested.pool.stats() == before
    assert not tested.driver.abandoned
    assert not any(lease.ended for lease in leases)


def test_a_closed_pool_is_closed_in_the_child_too() -> None:
    tested = rig(1)
    tested.pool.close()

    def child() -> str:
        with pytest.raises(PoolClosed):
            tested.pool.acquire()
        return "refused"

    assert in_child(child) == "refused"


def test_an_inherited_lease_says_whose_it_is_and_ends_without_a_trace() -> None:
    tested = rig(1)
    (lease,) = tested.take()

    def child() -> dict[str, Any]:
        with pytest.raises(LeaseError) as caught:
            _ = lease.item
        tested.pool.release(lease)
        lease.end("broken")
        assert lease.ended
        assert repr(lease) == "<Lease of pool 'tested': ended>"
        return {"error": str(caught.value), "closed": len(tested.driver.closed)}

    report = in_child(child)
    assert "belongs to the process that this one was forked from" in report["error"]
    assert report["closed"] == 0
    assert lease.item.number == 0


def test_an_inherited_lease_that_is_dropped_in_the_child_says_nothing() -> None:
    tested = rig(1)
    leases = tested.take()

    def child() -> int:
        leases.clear()
        words = len(tested.pool.deferred)
        tested.pool.end_deferred()
        return words + len(tested.driver.closed)

    assert in_child(child) == 0


def test_a_share_is_empty_in_the_child() -> None:
    tested = rig(2)
    tested.fill(1)
    share = Share(1)
    lease = tested.pool.acquire(share=share)
    tested.spawner.able = False

    def child() -> bool:
        return tested.pool.acquire(share=share).ended

    assert in_child(child) is False
    assert share.lent.alive() == [lease.entry]


def test_a_fork_while_another_thread_holds_the_lock() -> None:
    tested = rig(2)
    tested.fill(2)
    with held_by_another_thread(tested.pool.lock):
        assert in_child(lambda: tested.take(2)[1].item.number) == 3
    assert tested.pool.acquire().item.number == 1


def test_a_fork_while_others_wait_and_an_opening_is_under_way() -> None:
    driver, hang = Driver(), threading.Event()
    pool: Pool[Item] = Pool(driver, limit=1)
    driver.opening.append(lambda: hang.wait(PATIENCE))
    with in_thread(lambda: pool.acquire(wait=True)) as acquired:
        wait_until(lambda: not driver.opening)

        def child() -> dict[str, int]:
            stats = pool.stats()
            lease = pool.acquire(timeout=PATIENCE)
            return {"size": stats.size, "waiting": stats.waiting, "mine": lease.item.number}

        assert in_child(child) == {"size": 0, "waiting": 0, "mine": 0}
        hang.set()
    assert acquired.value.item.number == 0
    acquired.value.end()
    pool.close()


def test_the_child_starts_a_maintenance_thread_of_its_own() -> None:
    keeper = Maintenance()
    driver = Driver()
    pool: Pool[Item] = Pool(driver, limit=1, keeper=keeper)
    lease = pool.acquire(timeout=PATIENCE)
    wait_until(lambda: keeper._running)

    def child() -> list[str]:
        assert not keeper._running
        mine = pool.acquire(timeout=PATIENCE)
        item = mine.item
        del mine
        wait_until(lambda: bool(item.ended))
        return item.ended

    with held_by_another_thread(keeper._lock):
        assert in_child(child) == ["broken"]
    lease.end()
    pool.close()


def test_a_failing_abandon_does_not_keep_the_others_from_theirs() -> None:
    tested = rig(2)
    tested.fill(2)
    abandon, failed = tested.driver.abandon, []

    def failing(item: Item) -> None:
        if not failed:
            failed.append(item.number)
            raise OSError("bad file descriptor")
        abandon(item)

    def child() -> int:
        return len(failed) + len(tested.driver.abandoned)

    tested.driver.abandon = failing  # type: ignore[method-assign]
    assert in_child(child) == 2


def test_a_grandchild_begins_anew_too() -> None:
    tested = rig(1)
    tested.fill(1)

    def grandchild() -> list[int]:
        return [item.number for item in tested.driver.abandoned]

    def child() -> Any:
        tested.fill(1)
        return in_child(grandchild)

    assert in_child(child) == [0, 1]


def test_what_is_to_be_done_after_a_fork_is_done_after_the_pools_are_put_right() -> None:
    tested = rig(1)
    tested.fill(1)
    sizes: list[int] = []

    def look() -> None:
        sizes.append(tested.pool.size)

    fork.on_fork(look)
    try:
        assert in_child(lambda: sizes) == [0]
    finally:
        fork._afterwards.remove(look)
    assert not sizes


# -- without the hooks -------------------------------------------------------------------------------------------------

WITHOUT_HOOKS = """
import ctypes, json, os, sys, threading
sys.path.insert(0, sys.argv[1])
from fakes import PATIENCE, rig
from kombu_pools_ext.engine import Share

tested = rig(3)
share = Share(1)
leases = tested.take(2)
tested.fill(1)
shared = tested.pool.acquire(share=share)
# Locked by a thread that has ended: another might want the interpreter's lock in the very moment of the fork, and the
# child would offer it to nobody for ever.
holder = threading.Thread(target=tested.pool.lock.__enter__)
holder.start()
holder.join(PATIENCE)
# As a server in C forks: no hook of Python's runs. PyDLL keeps the interpreter's lock over the call.
pid = ctypes.PyDLL(None).fork()
if not pid:
    step = sys.argv[2]
    if step == "acquire":
        tested.spawner.able = False
        mine = tested.pool.acquire()
    elif step == "release":
        tested.pool.release(leases[0])
    elif step == "stats":
        tested.pool.stats()
    elif step == "resize":
        tested.pool.resize(5)
    elif step == "drain":
        tested.pool.drain()
    elif step == "close":
        tested.pool.close()
    else:
        leases.clear()
        tested.pool.stats()
    print(json.dumps({
        "abandoned": sorted(item.number for item in tested.driver.abandoned),
        "closed": len(tested.driver.closed),
        "room": len(share.lent),
        "lent": tested.pool.lent,
    }), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
tested.pool.renew_lock()
assert tested.pool.lent == 3 and not tested.driver.abandoned
assert not shared.ended
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls fork() in the C library")
@pytest.mark.parametrize(
    "step", ["acquire", "release", "stats", "resize", "drain", "close", "drop"]
)
def test_a_child_whose_server_skips_the_hooks_begins_at_its_first_step(step: str) -> None:
    """With the pool's lock held by another thread of the parent, which is not there in the child."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOOKS, str(Path(__file__).parent), step],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "abandoned": [0, 1, 2],
        "closed": 0,
        "room": 0,
        "lent": 1 if step == "acquire" else 0,
    }


def test_where_pages_cannot_be_wiped_the_process_id_tells() -> None:
    mark = fork._PidMark()
    assert mark[0]

    def child() -> list[bool]:
        inherited = bool(mark[0])
        mark[0] = 1
        return [inherited, bool(mark[0])]

    assert in_child(child) == [False, True]
