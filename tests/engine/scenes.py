"""One way for a call to go, done with an interruption at its n-th step; and what must be true after it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.engine import Lease, Pool, Share
from kombu_pools_ext.engine.errors import PoolError
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import PATIENCE, FakeClock, Item, Rig, assert_sound, rig
from tests.engine.steps import Killed, Steps

#: More steps than anything in the engine has.
ENDLESS = 3000
LIMIT = 2


class Busy(FakeClock):
    """A clock on which something happens while a waiter looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.hurry = 0.0
        self.then: dict[int, Callable[[], Any]] = {}

    def __call__(self) -> float:
        self.reads += 1
        happens = self.then.pop(self.reads, None)
        if happens is not None:
            happens()
            # Whoever was not served by that is not, and need not wait in earnest to find it out.
            self.hurry = PATIENCE
        self.now += self.hurry
        return self.now


class Scene:
    """One way for an `acquire` or a `release` to go: how it is set up, and what the thread then does.

    `elsewhere` is done by others while the thread waits, or just before it is killed.
    """

    def __init__(self, **options: Any) -> None:
        self.rig: Rig = rig(limit=LIMIT, **options)
        self.clock = Busy()
        self.pool.clock = self.pool.state.clock = self.clock
        self.elsewhere: Callable[[], Any] = lambda: None
        self.act: Callable[[], Any] = self.acquire
        #: What ends the trouble, and is done in any case before the room is counted.
        self.afterwards: Callable[[], Any] = lambda: None
        #: Leases that others hold, and give back in the end.
        self.others: list[Lease[Item]] = []
        #: Others who wait, and can be served in the end.
        self.waiters: list[Waiter[Item]] = []
        self.timeout: float | None = None
        self.share: Share | None = None
        self.on_read = 0

    @property
    def pool(self) -> Pool[Item]:
        return self.rig.pool

    def acquire(self) -> Any:
        return self.pool.acquire(timeout=self.timeout, share=self.share)

    def before_waiting(self, happens: Callable[[], Any]) -> None:
        """Have it happen when the waiter reads the clock for the last time before it blocks."""
        self.timeout = PATIENCE
        self.elsewhere = happens
        # acquire reads the clock once, the wait once at its beginning, and once before each nap.
        self.on_read = self.clock.reads + 3

    def give_back_another(self) -> None:
        if self.others:
            self.pool.release(self.others.pop())


def by_name(scenes: list[Callable[[], Scene]]) -> Any:
    return pytest.mark.parametrize(
        "scene_of", scenes, ids=[scene.__name__.replace("_", " ") for scene in scenes]
    )


def perform(scene: Scene, steps: Steps) -> None:
    """Act, with everything that comes out of it dropped."""
    if scene.on_read:
        scene.clock.then[scene.on_read] = steps.aside(scene.elsewhere)
    try:
        result = steps(scene.act)
    except Killed:
        pass
    except PoolError:
        pass
    else:
        # A lease that was acquired is given back.
        if result is not None:
            scene.pool.release(result)
    scene.clock.then.clear()
    scene.clock.hurry = 0.0
    # What it held, nobody holds any more.
    scene.act = lambda: None
    scene.rig.driver.opening.clear()


def assert_recovered(scene: Scene) -> None:
    """After whatever happened: the others give back, and everything can be lent again, once."""
    pool = scene.pool
    gc.collect(1)
    scene.afterwards()
    for lease in scene.others:
        pool.release(lease)
    scene.others = []
    scene.rig.spawner.run()
    # What the next waiter does for itself, and need not wait for here: first for those who were killed.
    for _ in range(2):
        pool.look_again()
        scene.rig.spawner.run()
    for waiter in scene.waiters:
        pool.look_again()
        scene.rig.spawner.run()
        assert waiter.ended, pool
        pool.leave(waiter, pool.clock())
        if waiter.lease is not None:
            pool.release(waiter.lease)
    scene.waiters = []
    scene.rig.spawner.able = True
    if scene.share is not None:
        assert not pool.lent_of(scene.share), pool
        assert not scene.share.lent, pool
    leases = scene.rig.take(LIMIT)
    items = [lease.item for lease in leases]
    assert len(set(items)) == LIMIT
    assert not any(item.ended for item in items)
    assert pool.size == LIMIT == len(pool.state.held)
    assert_sound(pool)
    for lease in leases:
        pool.release(lease)
    assert len(pool.state.idle) == LIMIT, pool
    assert not pool.state.watchers, pool.state.watchers.alive()
    assert_sound(pool)


def kill() -> None:
    raise Killed


def kill_at_every_step(scene_of: Callable[[], Scene]) -> int:
    """Play the scene again and again, killed one step later each time; how many plays that took."""
    for at in range(1, ENDLESS):
        scene = scene_of()
        steps = Steps(kill, at)
        perform(scene, steps)
        try:
            assert_recovered(scene)
        except (AssertionError, PoolError) as error:
            raise AssertionError(f"killed at step {at}: {error}") from error
        if not steps.happened:
            break
    return at


def handle_at_every_bytecode(scene_of: Callable[[], Scene]) -> set[str]:
    """Play the scene with a signal handler that acquires and releases, one bytecode later each time; what it met."""
    outcomes: set[str] = set()
    for at in range(1, ENDLESS):
        scene = scene_of()

        def handler(scene: Scene = scene) -> None:
            try:
                lease = scene.pool.acquire(timeout=0.0)
            except PoolError as error:
                outcomes.add(type(error).__name__)
            else:
                outcomes.add("acquired")
                scene.pool.release(lease)

        steps = Steps(handler, at, everywhere=True)
        perform(scene, steps)
        assert_recovered(scene)
        if not steps.happened:
            break
    return outcomes
