"""A thread that is killed, or interrupted by a signal handler, at every step of what it does."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.engine import Pool, Share
from kombu_pools_ext.engine.errors import PoolError, PoolReentered
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import (
    PATIENCE,
    Driver,
    Item,
    Rig,
    in_thread,
    recover,
    rig,
    wait_until,
)
from tests.engine.scenes import (
    ENDLESS,
    LIMIT,
    Scene,
    assert_recovered,
    by_name,
    handle_at_every_bytecode,
    kill,
    kill_at_every_step,
    perform,
)
from tests.engine.steps import Killed, Steps

pytestmark = pytest.mark.threads


def idle() -> Scene:
    scene = Scene()
    scene.rig.fill(LIMIT)
    return scene


def idle_in_a_share() -> Scene:
    scene = idle()
    scene.share = Share(1)
    return scene


def handed_over() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.before_waiting(scene.give_back_another)
    return scene


def handed_over_in_a_share() -> Scene:
    scene = handed_over()
    scene.share = Share(1)
    return scene


def opened() -> Scene:
    scene = Scene()
    scene.before_waiting(scene.rig.spawner.run)
    return scene


def opened_in_its_own_thread() -> Scene:
    scene = Scene()
    scene.rig.spawner.able = False
    return scene


def timed_out() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.timeout = 0.0
    return scene


def refused() -> Scene:
    scene = timed_out()
    scene.timeout = None
    return scene


def opening_failed() -> Scene:
    scene = opened()
    scene.rig.driver.opening.append(OSError("nobody listens"))
    return scene


def opening_failed_in_its_own_thread() -> Scene:
    scene = opened_in_its_own_thread()
    scene.rig.driver.opening.append(OSError("nobody listens"))
    return scene


def dead_then_the_next() -> Scene:
    scene = Scene(check_after=0.0)
    scene.rig.fill(LIMIT)[-1].alive = False
    return scene


def expired_then_the_next() -> Scene:
    scene = Scene(max_lifetime=10.0)
    scene.rig.fill(1)
    scene.clock.advance(5.0)
    kept = scene.rig.take(2)
    for lease in reversed(kept):
        scene.pool.release(lease)
    scene.clock.advance(6.0)
    scene.rig.spawner.able = False
    return scene


def deferred_release() -> Scene:
    scene = idle()
    scene.pool.acquire()
    assert scene.pool.deferred
    return scene


def released() -> Scene:
    scene = Scene()
    (lease, other) = scene.rig.take(LIMIT)
    scene.others = [other]
    scene.act = lambda: scene.pool.release(lease)
    return scene


def released_while_nobody_waits() -> Scene:
    scene = idle()
    lease = scene.pool.acquire()
    scene.act = lambda: scene.pool.release(lease)
    return scene


def released_broken() -> Scene:
    scene = Scene()
    (lease, other) = scene.rig.take(LIMIT)
    scene.others = [other]
    scene.act = lambda: scene.pool.release(lease, broken="broken")
    return scene


def released_from_a_share() -> Scene:
    scene = Scene()
    share = Share(LIMIT)
    waiter = scene.rig.ask(share)
    scene.rig.spawner.run()
    lease = waiter.lease
    assert lease is not None
    waiter.lease = None
    scene.act = lambda: scene.pool.release(lease)
    scene.share = share
    return scene


def released_after_a_drain() -> Scene:
    scene = released()
    scene.pool.drain()
    return scene


SCENES = [
    idle,
    idle_in_a_share,
    handed_over,
    handed_over_in_a_share,
    opened,
    opened_in_its_own_thread,
    timed_out,
    refused,
    opening_failed,
    opening_failed_in_its_own_thread,
    dead_then_the_next,
    expired_then_the_next,
    deferred_release,
    released,
    released_while_nobody_waits,
    released_broken,
    released_from_a_share,
    released_after_a_drain,
]
RELEASES = [released, released_broken, released_from_a_share, released_after_a_drain]


@by_name(SCENES)
def test_a_thread_killed_at_any_step_takes_no_capacity_with_it(
    scene_of: Callable[[], Scene],
) -> None:
    assert kill_at_every_step(scene_of) > 10


@by_name([handed_over, handed_over_in_a_share, opened, opening_failed])
def test_an_outcome_in_the_very_moment_of_the_kill_is_passed_on(
    scene_of: Callable[[], Scene],
) -> None:
    for at in range(1, ENDLESS):
        scene = scene_of()
        scene.on_read = 0
        scene.timeout = 0.0

        def settle_and_kill(scene: Scene = scene) -> None:
            # Another thread could not be served inside this one's critical section.
            if not scene.pool.owned():
                scene.elsewhere()
            raise Killed

        steps = Steps(settle_and_kill, at)
        perform(scene, steps)
        assert_recovered(scene)
        if not steps.happened:
            break
    assert at > 10


def test_what_was_handed_over_in_the_moment_of_the_kill_is_passed_on_alive() -> None:
    scene = handed_over()
    behind: list[Waiter[Item]] = []

    def serve_and_kill() -> None:
        scene.give_back_another()
        behind.append(scene.rig.ask())
        raise Killed

    item = scene.others[-1].item
    scene.clock.then[scene.on_read] = serve_and_kill
    with pytest.raises(Killed):
        scene.acquire()
    (waiter,) = behind
    assert waiter.lease is not None
    assert waiter.lease.item is item
    assert not item.ended


def test_a_release_that_was_killed_and_is_tried_again_ends_no_other_lease() -> None:
    for at in range(1, ENDLESS):
        tested = rig(LIMIT)
        (lease, other) = tested.take(LIMIT)
        tested.pool.release(other)
        steps = Steps(kill, at)
        try:
            steps(lambda tested=tested, lease=lease: tested.pool.release(lease))
        except Killed:
            pass
        taken = [tested.ask() for _ in range(LIMIT)]
        tested.spawner.run()
        before = [waiter.lease for waiter in taken if waiter.lease]
        tested.pool.release(lease)
        tested.spawner.run()
        assert not any(mine.ended or mine.item.ended for mine in before), f"killed at step {at}"
        now = [waiter.lease for waiter in taken if waiter.lease]
        assert tested.pool.lent == len(now), f"killed at step {at}"
        assert len({mine.item for mine in now}) == len(now)
        assert lease.ended
        if not steps.happened:
            break
    # The beginning, and the reading of the clock.
    assert at > 2


def assert_nothing_is_opened(tested: Rig, when: str) -> None:
    """Fail if this thread is still taken for one that opens a connection of the pool, and so must not wait for it."""
    leases = tested.take(1)
    with pytest.raises(PoolError) as refused:
        tested.pool.acquire()
    assert not isinstance(refused.value, PoolReentered), when
    tested.pool.release(leases[0])


@pytest.mark.parametrize("refused", [False, True], ids=["opened", "refused"])
def test_whoever_waits_is_told_or_still_waits_when_an_opener_is_killed_at_any_step(
    refused: bool,
) -> None:
    for at in range(1, ENDLESS):
        tested = rig(1)
        if refused:
            tested.driver.opening.append(OSError("nobody listens"))
        waiters = [tested.ask(), tested.ask()]
        steps = Steps(kill, at)
        try:
            steps(tested.spawner.run)
        except Killed:
            pass
        tested.driver.opening.clear()
        queued = list(tested.pool.state.waiters)
        assert all(w.ended or w in queued for w in waiters), f"killed at step {at}"
        gc.collect(1)
        # What each does for itself after a while.
        for waiter in waiters:
            for _ in range(2):
                tested.pool.look_again()
                tested.spawner.run()
            assert waiter.ended, f"killed at step {at}"
            if waiter.lease is not None:
                tested.pool.release(waiter.lease)
        assert_nothing_is_opened(tested, f"killed at step {at}")
        if not steps.happened:
            break
    assert at > 10


@by_name(RELEASES)
def test_a_waiter_is_served_when_its_releaser_is_killed_at_any_step(
    scene_of: Callable[[], Scene],
) -> None:
    for at in range(1, ENDLESS):
        scene = scene_of()
        pool = scene.pool
        waiters = [scene.rig.ask(), scene.rig.ask()]
        steps = Steps(kill, at)
        perform(scene, steps)
        gc.collect(1)
        scene.give_back_another()
        scene.rig.spawner.run()
        # What each waiter does for itself after a while.
        for waiter in waiters:
            pool.look_again()
            scene.rig.spawner.run()
            assert waiter.lease is not None, f"killed at step {at}: {pool}"
        items = {waiter.lease.item for waiter in waiters if waiter.lease}
        assert len(items) == LIMIT
        for waiter in waiters:
            assert waiter.lease is not None
            pool.release(waiter.lease)
            waiter.lease = None
            pool.leave(waiter, pool.clock())
        waiters.clear()
        assert_recovered(scene)
        if not steps.happened:
            break
    assert at > 10


@by_name([released, released_broken])
def test_waiters_hear_of_a_close_when_the_closer_is_killed_at_any_step(
    scene_of: Callable[[], Scene],
) -> None:
    for at in range(1, ENDLESS):
        scene = scene_of()
        waiters = [scene.rig.ask(), scene.rig.ask()]
        scene.act = lambda scene=scene: scene.pool.close() and None
        steps = Steps(kill, at)
        perform(scene, steps)
        if scene.pool.closed:
            queued = list(scene.pool.state.waiters)
            # Whoever is neither told nor in the queue would wait for ever; who is in it, is told by the next close.
            for waiter in waiters:
                assert waiter.ended or waiter in queued, f"killed at step {at}"
            scene.pool.close()
            assert all(waiter.error is not None for waiter in waiters)
        if not steps.happened:
            break
    assert at > 10


HANDLED = [idle, idle_in_a_share, opened_in_its_own_thread, dead_then_the_next, *RELEASES]


@by_name(HANDLED)
def test_a_signal_handler_may_acquire_and_release_at_any_bytecode(
    scene_of: Callable[[], Scene],
) -> None:
    outcomes = handle_at_every_bytecode(scene_of)
    assert "PoolReentered" in outcomes
    assert len(outcomes) > 1


@by_name([handed_over, timed_out, opened_in_its_own_thread, released, released_broken])
def test_a_signal_handler_may_give_back_what_it_holds_at_any_bytecode(
    scene_of: Callable[[], Scene],
) -> None:
    for at in range(1, ENDLESS):
        scene = scene_of()
        scene.rig.spawner.able = False
        (mine, *scene.others) = scene.others or scene.rig.take(1)
        served = threading.Event()

        def handler(scene: Scene = scene, mine: Any = mine, served: Any = served) -> None:
            scene.pool.release(mine)
            served.set()

        steps = Steps(handler, at, everywhere=True)
        perform(scene, steps)
        if not steps.happened:
            scene.pool.release(mine)
        assert served.is_set() == steps.happened
        del mine
        assert_recovered(scene)
        if not steps.happened:
            break
    assert at > 10


@pytest.mark.parametrize(
    "within", [{"wait": True}, {"timeout": PATIENCE}], ids=["no end", "timeout"]
)
def test_a_signal_that_raises_ends_the_wait_of_the_main_thread(within: dict[str, Any]) -> None:
    """Ctrl-C, or a worker's time-out by alarm."""
    pool: Pool[Item] = Pool(Driver(), limit=1)
    lease = pool.acquire(timeout=PATIENCE)

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def send() -> None:
        wait_until(lambda: pool.stats().waiting == 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with in_thread(send), pytest.raises(KeyboardInterrupt):
            pool.acquire(**within)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert pool.stats().waiting == 0
    pool.release(lease)
    assert pool.stats().idle == 1
    pool.close()


def test_an_exception_set_in_a_waiting_thread_ends_its_wait() -> None:
    """As debuggers and task runners kill a thread: it is raised when the thread wakes for a look around."""
    pool: Pool[Item] = Pool(Driver(), limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    idents: list[int] = []

    def wait() -> None:
        idents.append(threading.get_ident())
        pool.acquire(wait=True)

    with in_thread(wait) as waiting:
        wait_until(lambda: pool.stats().waiting == 1)
        set_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert set_in(ctypes.c_ulong(idents[0]), ctypes.py_object(Killed)) == 1
    assert isinstance(waiting.error, Killed)
    assert pool.stats().waiting == 0
    pool.release(lease)
    assert pool.stats().idle == 1
    pool.close()


def test_real_signals_that_acquire_and_release_neither_block_nor_lose_anything() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=2)
    handled = []

    def handler(signum: int, frame: Any) -> None:
        try:
            lease = pool.acquire(timeout=0.0)
        except PoolError:
            handled.append(False)
        else:
            pool.release(lease)
            handled.append(True)

    before = signal.signal(signal.SIGVTALRM, handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
    try:
        deadline = time.monotonic() + PATIENCE
        while len(handled) < 100 and time.monotonic() < deadline:
            pool.release(pool.acquire(timeout=PATIENCE))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
    assert len(handled) >= 100
    assert any(handled)
    assert len({lease.item for lease in recover(pool, 2)}) == 2
    pool.close()
