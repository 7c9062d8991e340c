"""A pool for each of many tenants: what one costs that is not used, and that none is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import kombu
import pytest

from kombu_pools_ext import Connections, Pools, connections, producers, reset, set_limit
from kombu_pools_ext.broker.connections import ConnectionPool
from kombu_pools_ext.broker.lazy_attribute import LazyAttribute
from kombu_pools_ext.broker.producers import ProducerPool

from .common import PATIENCE

#: Bytes of a connection pool and a producer pool that nobody has used, with their places in the groups.
MOST_BYTES = 3 * 1024
#: The same by URL, which has no settings.
MOST_BYTES_BY_URL = 2.5 * 1024
TENANTS = 2_000


def tenants(count: int) -> Pools:
    return Pools(
        {f"tenant-{i}": {"URL": f"amqp://user-{i}:secret@127.0.0.1:1//"} for i in range(count)}
    )


def made(pool: Any) -> bool:
    return LazyAttribute.of(pool, "engine") is not None


#: In a process of its own, where nothing else grows. What the first of them imports and makes is not theirs.
MEASURE = f"""
import gc, tracemalloc
from kombu_pools_ext import Pools

urls = {{f"tenant-{{i}}": {{"URL": f"amqp://user-{{i}}:secret@127.0.0.1:1//"}} for i in range({TENANTS})}}
%s
pools.connections[names[0]], pools.producers[names[0]]
gc.collect()
tracemalloc.start()
before, _ = tracemalloc.get_traced_memory()
for name in names[1:]:
    pools.connections[name], pools.producers[name]
gc.collect()
after, _ = tracemalloc.get_traced_memory()
print((after - before) / (len(names) - 1))
"""
BY_ALIAS = "pools = Pools(urls); names = list(pools.settings)"
BY_URL = "pools = Pools(); names = [one['URL'] for one in urls.values()]"


@pytest.mark.threads
@pytest.mark.parametrize(
    "names, most",
    [(BY_ALIAS, MOST_BYTES), (BY_URL, MOST_BYTES_BY_URL)],
    ids=["by alias", "by URL"],
)
def test_a_pool_that_nobody_uses_costs_little_memory(names: str, most: float) -> None:
    # Nor is it counted which lines run: that takes memory, too.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURE % names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,  # each allocation is traced
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= most


def test_what_can_be_asked_of_all_pools_makes_nothing() -> None:
    pools = tenants(5)
    found: list[Any] = [*pools.connections.values(), *pools.producers.values()]
    assert [pool.limit for pool in found] == [10] * 10
    assert [pool.lent for pool in found] == [0] * 10
    assert {pool.is_over for pool in found} == {False}
    assert {bool(pool._closed) for pool in found} == {False}
    set_limit(7)
    try:
        assert [pool.limit for pool in found] == [7] * 10
        assert reset() == (0, 0)
        assert not any(map(made, found))
        assert found[0].stats().limit == 7
        assert found[0].engine.limit == 7
    finally:
        set_limit(10)


def test_a_pool_is_made_when_it_is_used(memory_url: str) -> None:
    pool = connections[memory_url]
    assert not made(pool)
    with producers[memory_url].acquire() as producer:
        assert made(pool)
        assert producers[memory_url].engine is pool.engine
        assert (pool.lent, producers[memory_url].lent) == (1, 1)
        producer.publish({}, routing_key="nowhere")
    assert producers[memory_url].force_close_all(close_pool=False) == (1, 0)


@pytest.mark.parametrize("group", [connections, producers], ids=["connections", "producers"])
def test_the_connection_of_a_pool_by_url_is_made_when_it_is_used(
    group: Any, memory_url: str
) -> None:
    urls = [memory_url, f"{memory_url}-2"]
    both = list(urls)
    for name in (memory_url, both):
        pool = group[name]
        of = getattr(pool, "connections", pool)
        assert LazyAttribute.of(of, "connection") is None
        assert group[kombu.Connection(name)] is pool
        assert connections[name] is of
        # What the caller does with a list is the caller's.
        del both[1:]
        both.append("memory://another")
        with pool.acquire():
            assert LazyAttribute.of(of, "connection") is of.connection
        assert connections[of.connection] is of
        both[:] = urls
    assert of.connection.alt == urls


def test_a_group_with_a_create_of_its_own_gets_a_connection(memory_url: str) -> None:
    made: list[Any] = []

    class Slow(Connections):
        def create(self, connection: Any, limit: int | None) -> ConnectionPool:
            made.append(connection)
            return super().create(connection.clone(connect_timeout=60), limit)

    pool = Slow(limit=1)[memory_url]
    assert [type(one) for one in made] == [kombu.Connection]
    assert pool.connection.connect_timeout == 60

    class Elsewhere(Connections):
        def resolve(self, resource: Any) -> Any:
            return kombu.Connection(f"{memory_url}-elsewhere")

    assert Elsewhere(limit=1)[memory_url].connection.hostname.endswith("-elsewhere")


def test_of_many_threads_that_use_it_first_all_get_the_same(memory_url: str) -> None:
    for number in range(50):
        pool = ConnectionPool(kombu.Connection(f"{memory_url}-{number}"), limit=3)
        found: list[Any] = []
        start = threading.Barrier(4)

        def ask(pool: ConnectionPool = pool, start: Any = start, found: list[Any] = found) -> None:
            start.wait(30)
            found.append(pool.engine)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {id(engine) for engine in found} == {id(pool.engine)}


def test_a_limit_set_while_the_engine_is_made_is_not_lost(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ConnectionPool(kombu.Connection(memory_url), limit=3)
    make = ConnectionPool._make_driver

    def meanwhile(self: ConnectionPool) -> Any:
        # The engine has been asked for, and nobody can see it yet.
        if pool.limit == 3:
            pool.resize(5)
        return make(self)

    monkeypatch.setattr(vars(ConnectionPool)["_driver"], "_make", meanwhile)
    assert pool.engine.limit == 5
    assert pool.limit == 5


def test_a_share_set_while_it_is_made_is_not_lost(memory_url: str) -> None:
    pool = ProducerPool(ConnectionPool(kombu.Connection(memory_url), limit=3), limit=2)

    class Meanwhile:
        def __get__(self, instance: Any, owner: Any) -> Any:
            pool.resize(1)
            return gate

    gate = pool.connections.publishing
    pool.connections.__class__ = type(
        "Another",
        (ConnectionPool,),
        {"publishing": property(lambda self: Meanwhile().__get__(self, None))},
    )
    del pool.connections.__dict__["publishing"]
    assert pool._share is not None
    assert pool._share.limit == pool.limit == 1


def test_a_closed_connection_pool_is_the_end_of_its_producers(memory_url: str) -> None:
    pool = producers[memory_url]
    connections[memory_url].force_close_all()
    assert pool.is_over
    assert producers[memory_url] is pool
    del producers[memory_url], connections[memory_url]
    assert not connections[memory_url].is_over


# -- looking up --------------------------------------------------------------------------------------------------------


def test_a_connection_that_was_changed_names_another_pool(memory_url: str) -> None:
    connection = kombu.Connection(memory_url, transport_options={"a": [1]})
    first = connections[connection]
    assert connections[connection] is first
    connection.transport_options["a"].append(2)
    second = connections[connection]
    assert second is not first
    assert connections[connection] is second
    connection.transport_options["a"].pop()
    assert connections[connection] is first
    connection.virtual_host = "another"
    assert connections[connection] not in (first, second)


def test_what_a_connection_has_found_is_looked_up_anew_after_a_reset(memory_url: str) -> None:
    connection = kombu.Connection(memory_url)
    pool = connections[connection]
    pool.force_close_all()
    assert connections[connection] is pool
    reset()
    assert connections[connection] is not pool
    del connections[connection]
    connections[connection] = pool
    assert connections[connection] is pool


def test_an_alias_is_looked_up_anew_when_its_settings_change(memory_url: str) -> None:
    url = [memory_url]
    pools = Pools(lambda: {"default": url[0]})
    first = pools.connections["default"]
    assert pools.connections["default"] is first
    url[0] = f"{memory_url}-2"
    assert pools.connections["default"] is first
    pools.reload()
    second = pools.connections["default"]
    assert second is not first
    reset()
    assert pools.connections["default"] is second
    assert second.connection.hostname != first.connection.hostname


def test_a_url_is_looked_up_anew_after_a_reset(memory_url: str) -> None:
    """And whether or not the settings are right."""
    pools = Pools(lambda: {"default": {"URL": memory_url, "LIMIT": -1}})
    first = pools.connections[memory_url]
    assert pools.connections[memory_url] is first
    pools = Pools(default=memory_url)
    assert pools.connections[memory_url] is pools.connections[memory_url] is first
    first.force_close_all()
    reset()
    assert pools.connections[memory_url] is not first
