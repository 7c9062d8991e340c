"""How many may wait for a lease at once: any number, as in kombu, but for the pools of aliases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection

from kombu_pools_ext import Pools, pools
from kombu_pools_ext.errors import PoolFull
from tests.broker.common import PATIENCE, eventually

#: More than ten for each connection, and than a hundred.
CROWD = 120


def by_url(url: str) -> Any:
    pools.set_limit(1)
    return pools.producers[url]


def by_connection(url: str) -> Any:
    pools.set_limit(1)
    return pools.producers[Connection(url)]


def of_connections(url: str) -> Any:
    pools.set_limit(1)
    return pools.connections[url]


def resized(url: str) -> Any:
    pool = pools.producers[url]
    pool.acquire(timeout=PATIENCE).release()
    pools.set_limit(1)
    return pool


def by_hand(url: str) -> Any:
    return pools.ConnectionPool(Connection(url), limit=1)


def producers_by_hand(url: str) -> Any:
    return pools.ProducerPool(by_hand(url))


def over_kombus(url: str) -> Any:
    return pools.ProducerPool(Connection(url).Pool(limit=1), limit=1)


@pytest.mark.parametrize(
    "make",
    [by_url, by_connection, of_connections, resized, by_hand, producers_by_hand, over_kombus],
)
def test_any_number_may_wait_for_a_pool_without_settings(
    url: str, make: Callable[[str], Any]
) -> None:
    pool = make(url)
    held = pool.acquire(timeout=PATIENCE)
    served: list[int] = []

    def wait(number: int) -> None:
        with pool.acquire(block=True):
            served.append(number)

    crowd = [threading.Thread(target=wait, args=(number,), daemon=True) for number in range(CROWD)]
    for thread in crowd:
        thread.start()
    eventually(lambda: pool.stats().waiting == CROWD)
    held.release()
    for thread in crowd:
        thread.join(PATIENCE)
    assert sorted(served) == list(range(CROWD))
    stats = pool.stats()
    assert (stats.lent, stats.waiting, stats.refused) == (0, 0, 0)
    pool.force_close_all()


@pytest.mark.parametrize(
    "settings, most, told",
    [
        ({"max_waiting": 3}, 3, "because of MAX_WAITING=3; raise that or LIMIT"),
        ({}, 100, "MAX_WAITING, which is 100 by default, 100 for each connection of LIMIT; raise"),
    ],
)
def test_the_pool_of_an_alias_has_a_bound_and_tells_which_setting_raises_it(
    memory_url: str, settings: dict[str, int], most: int, told: str
) -> None:
    aliases = Pools(default={"url": memory_url, "limit": 1, **settings})
    pool = aliases.producers["default"]
    with pool.acquire():
        crowd = [
            threading.Thread(target=lambda: pool.acquire(block=True).release(), daemon=True)
            for _ in range(most)
        ]
        for thread in crowd:
            thread.start()
        eventually(lambda: pool.stats().waiting == most)
        with pytest.raises(PoolFull, match=told):
            aliases.publish("x", "queue")
    for thread in crowd:
        thread.join(PATIENCE)
    assert pool.stats().waiting == 0


def test_the_bound_of_an_alias_follows_the_global_limit_and_its_own(memory_url: str) -> None:
    aliases = Pools(default={"url": memory_url}, own={"url": memory_url + "own", "limit": 3})
    engines = [aliases.connections[alias].engine for alias in ("default", "own")]
    assert [engine.state.max_waiting for engine in engines] == [1000, 300]
    pools.set_limit(2)
    assert [engine.state.max_waiting for engine in engines] == [200, 300]
    aliases.connections["own"].resize(4)
    assert [engine.state.max_waiting for engine in engines] == [200, 400]
    pools.set_limit(None)
    assert [engine.state.max_waiting for engine in engines] == [None, 400]
