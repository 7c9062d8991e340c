"""Submitted messages while connections break, and callers are interrupted: one outcome each, and none is stuck."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

import kombu_pools_ext.submitting
from kombu_pools_ext import Pools
from kombu_pools_ext.errors import PublishUnknown
from kombu_pools_ext.submitting import leased_road
from tests.broker.common import PATIENCE, within
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.engine.steps import Killed, Steps
from tests.proxy import Proxy

#: More steps than any submit has.
ENDLESS = 10_000
SUBMITTING = str(Path(kombu_pools_ext.submitting.__file__).parent)


def first_of_each(bodies: list[str]) -> list[str]:
    """*bodies* without the copies that a retry has left."""
    return list(dict.fromkeys(bodies))


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("rst", [True, False])
def test_each_message_has_one_outcome_while_connections_are_cut(
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    proxied: Callable[[str], Proxy],
    retry: bool,
    rst: bool,
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    settings: dict[str, Any] = {} if retry else {"RETRY": None}
    pools = Pools(
        default={"URL": through(proxy, amqp_url), "PUBLISH_OVER": "leased", "LIMIT": 4, **settings}
    )
    futures: dict[str, Future[None]] = {}
    outcomes: dict[str, BaseException | None] = {}

    def submit(thread: int) -> None:
        for number in range(100):
            futures[f"{thread} {number}"] = pools.submit(f"{thread} {number}", box.name)

    async def publish(name: str) -> None:
        try:
            await pools.apublish(name, box.name)
        except Exception as error:
            outcomes[name] = error
        else:
            outcomes[name] = None

    async def loop() -> None:
        await asyncio.gather(*(publish(f"loop {number}") for number in range(100)))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=asyncio.run, args=(loop(),)))
    for one in threads:
        one.start()
    cuts = itertools.count(1)
    while any(one.is_alive() for one in threads) and next(cuts) <= 30:
        proxy.cut(rst=rst)
        threads[-1].join(0.02)
    for one in threads:
        one.join(PATIENCE)
    assert len(wait(list(futures.values()), PATIENCE).done) == 300
    outcomes |= {name: future.exception() for name, future in futures.items()}
    assert len(outcomes) == 400
    published = {name for name, error in outcomes.items() if error is None}
    bodies = box.bodies(len(published))
    assert published <= set(bodies)
    for name, error in outcomes.items():
        told = " ".join(getattr(error, "__notes__", ()))
        if error is not None and not isinstance(error, PublishUnknown) and "not in the" in told:
            assert name not in bodies
    for thread in range(3):
        mine = [name for name in first_of_each(bodies) if name.startswith(f"{thread} ")]
        mine = [name for name in mine if name in published]
        assert mine == sorted(mine, key=lambda name: int(name.split()[1]))


@pytest.mark.threads
@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
def test_a_caller_that_is_interrupted_at_any_step_leaves_nothing_stuck(
    memory_url: str, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    # Of another alias, so that everything is imported.
    Pools(other=memory_url).submit({}, "q", using="other").result(PATIENCE)
    if full:
        monkeypatch.setattr(leased_road, "MOST_WAITING", 1)
        monkeypatch.setattr(leased_road, "LOOK_FOR_ROOM", 0.001)

    def kill() -> None:
        raise Killed

    for at in range(1, ENDLESS):
        pools = Pools(default=memory_url)
        steps = Steps(kill, at, folder=SUBMITTING)
        if full:
            pools.suspend(mode="wait")
            first = pools.submit("begun", "q")
            while not first.running():
                pass
            pools.submit("waits", "q")

        def run(steps: Steps = steps, pools: Pools = pools) -> None:
            try:
                steps(lambda: pools.submit("interrupted", "q", acquire_timeout=0.01 if full else 5))
            except (Killed, leased_road.PoolFull):
                pass

        within(PATIENCE, run)
        pools.resume()
        # What it left is published by whoever comes by: another caller, or who waits for the end.
        pools.drain(PATIENCE)
        road: Any = pools.road_of("default")
        assert (road._lanes, list(road._ready), road._counted, road._callers) == ({}, [], set(), {})
        assert pools.submit("after", "q", acquire_timeout=PATIENCE).result(PATIENCE) is None
        if not steps.happened:
            break
    else:
        pytest.fail("there is no end to the steps")
    assert at > 30
