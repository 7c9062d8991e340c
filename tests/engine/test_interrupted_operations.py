"""An interruption during an outage, before a shut gate, while suspended, and in an operator's or maintenance's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.engine import Gate, Lease, Share
from kombu_pools_ext.engine.breaker import LONGEST_PAUSE
from kombu_pools_ext.engine.closing import close_together
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import PATIENCE, Item
from tests.engine.scenes import (
    ENDLESS,
    LIMIT,
    Scene,
    by_name,
    handle_at_every_bytecode,
    kill_at_every_step,
)
from tests.engine.steps import Steps

pytestmark = pytest.mark.threads

WHY = "short of memory"
EVERY = 20.0


def look(scene: Scene) -> None:
    """What others who wait do now and then."""
    pool = scene.pool
    with pool.lock:
        openings = pool.state.pump()
        pool.state.fail_hopeless(lambda: pool.refusals.outage(pool.state))
    pool.opener.start(openings)
    scene.rig.spawner.run()


def recover(scene: Scene) -> None:
    """The broker is back, and a probe finds out."""
    scene.clock.advance(LONGEST_PAUSE)
    scene.rig.spawner.able = True
    scene.rig.driver.opening.clear()
    look(scene)
    waiter: Waiter[Item] = Waiter(ignore_outage=True)
    assert scene.rig.queue_up(waiter) is None
    scene.rig.spawner.run()
    scene.pool.look_again()
    assert waiter.lease is not None
    scene.pool.release(waiter.lease)
    waiter.lease = None


# -- acquire, while the broker is down -----------------------------------------------------------------------------


def refused_while_down(**options: Any) -> Scene:
    scene = Scene(jitter=lambda: 1.0, **options)
    scene.rig.driver.opening.append(OSError("nobody listens"))
    scene.rig.ask(blocking=False)
    scene.rig.spawner.run()
    assert scene.pool.state.breaker.failures
    scene.afterwards = lambda: recover(scene)
    return scene


def a_probe_of_its_own() -> Scene:
    scene = refused_while_down()
    scene.clock.advance(LONGEST_PAUSE)
    scene.rig.spawner.able = False
    return scene


def a_probe_in_vain() -> Scene:
    scene = a_probe_of_its_own()
    scene.rig.driver.opening.append(OSError("still nobody"))
    return scene


def waiting_until_another_ones_probe() -> Scene:
    scene = refused_while_down()

    def the_broker_is_back() -> None:
        scene.clock.advance(LONGEST_PAUSE)
        look(scene)

    scene.before_waiting(the_broker_is_back)
    return scene


def waiting_until_its_own_probe() -> Scene:
    scene = refused_while_down()
    scene.rig.spawner.able = False
    scene.pool.state.breaker.retry_at = scene.clock.now + 0.005
    scene.clock.hurry = 0.001
    scene.timeout = PATIENCE
    return scene


def waiting_in_vain() -> Scene:
    scene = refused_while_down(outage_patience=10.0)

    def it_is_still_down() -> None:
        scene.clock.advance(10.0)
        scene.rig.driver.opening.append(OSError("still nobody"))
        look(scene)

    scene.before_waiting(it_is_still_down)
    return scene


# -- acquire, while the pool is suspended, or a gate is shut ---------------------------------------------------------


def suspended(mode: Any) -> Scene:
    scene = Scene()
    scene.rig.fill(1)
    scene.pool.suspend(mode)
    scene.timeout = 0.0
    scene.afterwards = scene.pool.resume
    return scene


def refused_while_suspended() -> Scene:
    return suspended("fail")


def suspended_for_too_long() -> Scene:
    return suspended("wait")


def waiting_until_resumed() -> Scene:
    scene = suspended("wait")
    scene.before_waiting(scene.pool.resume)
    return scene


def waiting_until_suspended() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.before_waiting(lambda: scene.pool.suspend("fail"))
    scene.afterwards = scene.pool.resume
    return scene


def blocked() -> Scene:
    scene = Scene()
    item = scene.rig.fill(LIMIT)[0]
    gate = Gate()
    scene.share = Share(None, gate)
    scene.pool.shut_gate(gate, item, WHY)
    scene.timeout = 0.0
    scene.afterwards = lambda: scene.pool.open_gate(gate, item)
    return scene


def refused_before_a_shut_gate() -> Scene:
    scene = blocked()
    scene.timeout = None
    return scene


def waiting_until_the_gate_opens() -> Scene:
    scene = blocked()
    scene.before_waiting(scene.afterwards)
    return scene


def waiting_for_what_maintenance_has() -> Scene:
    scene = Scene()
    pool = scene.pool
    scene.others = scene.rig.take(1)
    scene.rig.fill(1)
    (entry,) = pool.state.idle
    held = [entry]
    del entry
    assert pool.expiry.reserve(held[0])

    def put_back() -> None:
        if held:
            with pool.lock:
                assert not pool.expiry.put_back(held.pop(), True).openings

    scene.before_waiting(put_back)
    scene.afterwards = put_back
    return scene


ACQUIRES = [
    refused_while_down,
    a_probe_of_its_own,
    a_probe_in_vain,
    waiting_until_another_ones_probe,
    waiting_until_its_own_probe,
    waiting_in_vain,
    refused_while_suspended,
    suspended_for_too_long,
    waiting_until_resumed,
    waiting_until_suspended,
    blocked,
    refused_before_a_shut_gate,
    waiting_until_the_gate_opens,
    waiting_for_what_maintenance_has,
]

# -- what operators and maintenance do ---------------------------------------------------------------------------------


def suspending() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.waiters = [scene.rig.ask(), scene.rig.ask()]
    scene.act = lambda: scene.pool.suspend("fail")
    scene.afterwards = scene.pool.resume
    return scene


def resuming() -> Scene:
    scene = Scene()
    scene.rig.fill(1)
    scene.pool.suspend("wait")
    scene.waiters = [scene.rig.ask(), scene.rig.ask()]
    scene.act = scene.afterwards = scene.pool.resume
    return scene


def a_gate_with_waiters() -> tuple[Scene, Gate, Item]:
    scene = Scene()
    item = scene.rig.fill(LIMIT)[0]
    gate = Gate()
    share = Share(None, gate)
    scene.pool.shut_gate(gate, item, WHY)
    scene.waiters = [scene.rig.ask(share), scene.rig.ask(share)]
    scene.share = share
    return scene, gate, item


def shutting_a_gate() -> Scene:
    scene, gate, item = a_gate_with_waiters()
    other = next(entry.item for entry in scene.pool.state.idle if entry.item is not item)
    scene.act = lambda: scene.pool.shut_gate(gate, other, WHY)

    def open_it() -> None:
        scene.pool.open_gate(gate, other)
        scene.pool.open_gate(gate, item)

    scene.afterwards = open_it
    return scene


def opening_a_gate() -> Scene:
    scene, gate, item = a_gate_with_waiters()
    scene.act = scene.afterwards = lambda: scene.pool.open_gate(gate, item)
    return scene


def closing_what_shut_a_gate() -> Scene:
    scene, _, _ = a_gate_with_waiters()
    # Maintenance finds it dead, or, where that was killed, gone.
    scene.rig.driver.keeping.append(lambda: False)
    scene.act = scene.afterwards = lambda: scene.pool.run_maintenance() and None
    return scene


def tending(**options: Any) -> Scene:
    scene = Scene(**options)
    scene.rig.driver.keep_every = EVERY
    return scene


def keeping_idle_ones() -> Scene:
    scene = tending()
    scene.rig.fill(LIMIT)[0].alive = False
    scene.clock.advance(EVERY)
    scene.act = lambda: scene.pool.run_maintenance() and None
    return scene


def keeping_lent_ones() -> Scene:
    scene = tending(min_idle=1, idle_timeout=2 * EVERY)
    scene.others = scene.rig.take(1)
    scene.clock.advance(EVERY)
    scene.act = lambda: scene.pool.run_maintenance() and None
    return scene


def getting_ready() -> Scene:
    scene = Scene(min_idle=LIMIT)
    scene.rig.spawner.able = False
    scene.act = lambda: scene.pool.wait_ready(PATIENCE)
    return scene


def draining() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.give_back_another()
    scene.act = lambda: scene.pool.drain(PATIENCE) and None
    scene.elsewhere = scene.give_back_another
    scene.afterwards = scene.pool.drain
    # Once for the deadline, and once before each nap.
    scene.on_read = scene.clock.reads + 2
    return scene


def draining_in_vain() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.act = lambda: scene.pool.drain(0.0) and None
    scene.afterwards = scene.pool.drain
    return scene


def leaving_time_out() -> Scene:
    scene = tending()
    scene.rig.fill(1)
    scene.others = scene.rig.take(1)
    scene.clock.advance(3600.0)
    scene.act = lambda: scene.pool.time_left_out(3600.0)
    return scene


def recalling() -> Scene:
    scene = Scene()
    scene.others = scene.rig.take(LIMIT)
    scene.waiters = [scene.rig.ask()]
    pool = scene.pool
    scene.act = lambda: close_together(
        [(pool, *one) for one in pool.revoke_leases().closings], float("inf")
    )
    return scene


def failing_in_an_openers_thread() -> Scene:
    scene = Scene()
    scene.waiters = [scene.rig.ask(), scene.rig.ask(blocking=False)]
    scene.rig.driver.opening.append(OSError("nobody listens"))
    scene.act = scene.rig.spawner.run_one
    return scene


ACTIONS = [
    suspending,
    resuming,
    shutting_a_gate,
    opening_a_gate,
    closing_what_shut_a_gate,
    keeping_idle_ones,
    keeping_lent_ones,
    getting_ready,
    draining,
    draining_in_vain,
    leaving_time_out,
    recalling,
    failing_in_an_openers_thread,
]


@by_name(ACQUIRES + ACTIONS)
def test_a_thread_killed_at_any_step_takes_no_capacity_with_it(
    scene_of: Callable[[], Scene],
) -> None:
    assert kill_at_every_step(scene_of) > 5


HANDLED = [
    waiting_until_resumed,
    waiting_until_the_gate_opens,
    resuming,
    opening_a_gate,
    keeping_idle_ones,
    draining,
    failing_in_an_openers_thread,
]


@by_name(HANDLED)
def test_a_signal_handler_may_acquire_and_release_at_any_bytecode(
    scene_of: Callable[[], Scene],
) -> None:
    outcomes = handle_at_every_bytecode(scene_of)
    assert "PoolReentered" in outcomes
    assert len(outcomes) > 1


def test_what_a_signal_handler_gives_back_ends_a_drain() -> None:
    """At any bytecode, also in the middle of the drain's own decisions, and with no maintenance to take it up."""
    for at in range(1, ENDLESS):
        scene = Scene()
        (mine,) = scene.rig.take(1)
        # Time for two looks.
        scene.clock.hurry = 0.001

        def give_back(scene: Scene = scene, mine: Lease[Item] = mine) -> None:
            scene.pool.release(mine)

        steps = Steps(give_back, at, everywhere=True)
        closed, lent = steps(lambda scene=scene: scene.pool.drain(0.002))
        if not steps.happened:
            break
        assert (closed, lent) in ((1, 0), (0, 1), (0, 0)), f"at step {at}"
        scene.pool.end_deferred()
        assert scene.pool.size == 0, f"at step {at}"
    assert (closed, lent) == (0, 1)
    assert at > 30
