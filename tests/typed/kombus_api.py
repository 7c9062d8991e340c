"""The names of ``kombu_pools_ext.pools``: groups, pools and what they lend."""

from __future__ import annotations

from typing import Any, Literal, assert_type

from kombu.connection import Connection
from kombu.messaging import Producer

from kombu_pools_ext import (
    Batch,
    ConnectionPool,
    Connections,
    Drained,
    LeasedConnection,
    LeasedProducer,
    PoolGroup,
    PoolOptions,
    PoolStats,
    ProducerPool,
    Producers,
    connections,
    get_limit,
    pools,
    producers,
    register_group,
    reset,
    set_limit,
    use_global_limit,
)
from kombu_pools_ext.errors import Outcome


def takes_connection(connection: Connection) -> None:
    """What an application has that was written for kombu."""


def takes_producer(producer: Producer) -> None:
    """The same, for producers."""


def look_ups() -> None:
    assert_type(connections, Connections)
    assert_type(producers, Producers)
    assert_type(pools.connections, Connections)
    assert_type(pools.producers, Producers)
    assert_type(connections["amqp://localhost//"], ConnectionPool)
    assert_type(connections[Connection("amqp://localhost//")], ConnectionPool)
    assert_type(connections[["amqp://a//", "amqp://b//"]], ConnectionPool)
    assert_type(producers["default"], ProducerPool)
    assert_type(connections["default"].acquire(), LeasedConnection)
    assert_type(producers["default"].acquire(), LeasedProducer)
    assert_type(pools.producers["default"].acquire(block=True, timeout=0.5), LeasedProducer)


def functions() -> None:
    assert_type(get_limit(), int)
    assert_type(set_limit(20, force=True, reset_after=True, ignore_errors=True), int)
    assert_type(set_limit(None), int)
    assert_type(reset(), Drained)
    assert_type(reset(reason="api").closed, int)
    assert_type(use_global_limit, object)


def new_connection_pool(connection: Connection) -> None:
    assert_type(ConnectionPool(connection, 5), ConnectionPool)
    assert_type(ConnectionPool(lambda: connection, limit=None, name="orders"), ConnectionPool)
    options = assert_type(PoolOptions(min_idle=2, idle_timeout=None), PoolOptions)
    assert_type(ConnectionPool(connection, options=options), ConnectionPool)
    assert_type(ConnectionPool(connection, options=lambda: options), ConnectionPool)


def pool_options(options: PoolOptions) -> None:
    assert_type(options.min_idle, int)
    assert_type(options.max_waiting, int | None)
    assert_type(options.waiting_per_item, int | None)
    assert_type(options.connect_timeout, float)
    assert_type(options.outage_patience, float)
    assert_type(options.idle_timeout, float | None)
    assert_type(options.max_lifetime, float | None)
    assert_type(options.check_after, float)
    assert_type(options.leak_after, float | None)


def connection_pool(pool: ConnectionPool) -> None:
    assert_type(pool.acquire(), LeasedConnection)
    assert_type(pool.acquire(True, 5), LeasedConnection)
    with pool.acquire(timeout=0.5) as connection:
        assert_type(connection, LeasedConnection)
        assert_type(pool.release(connection), None)
        assert_type(pool.replace(connection), None)
    with pool.acquire_channel(block=True, timeout=5) as both:
        assert_type(both, tuple[LeasedConnection, Any])
    assert_type(pool.resize(5, force=True, ignore_errors=True, reset=True), None)
    assert_type(pool.limit, int | None)
    pool.limit = 5
    pool.limit = None
    assert_type(pool.lent, int)
    assert_type(pool.name, str)
    assert_type(pool.force_close_all(close_pool=False), Drained)
    assert_type(pool.suspend("fail"), None)
    assert_type(pool.resume(), None)
    assert_type(pool.wait_ready(5), None)
    assert_type(pool.drain(timeout=0.5), Drained)
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.stats().idle, int)
    takes_connection(pool.new())


def producer_pool(pool: ProducerPool, connection_pool: ConnectionPool) -> None:
    assert_type(ProducerPool(connection_pool, 5, Producer=Producer), ProducerPool)
    assert_type(ProducerPool(connection_pool, mandatory=True, confirm_timeout=0.5), ProducerPool)
    assert_type(pool.acquire(), LeasedProducer)
    assert_type(pool.acquire(True, 5), LeasedProducer)
    with pool.acquire(timeout=0.5) as producer:
        assert_type(producer, LeasedProducer)
        assert_type(pool.release(producer), None)
        assert_type(pool.replace(producer), None)
    # What a pool makes is its subclass's, or its Producer's.
    assert_type(pool.create_producer(), Any)
    assert_type(pool.prepare(producer), Any)
    assert_type(pool.close_resource(producer), None)
    assert_type(pool.force_close_all(close_pool=False), Drained)
    assert_type(pool.suspend(mode="wait"), None)
    assert_type(pool.resume(), None)
    assert_type(pool.wait_ready(0.5), None)
    assert_type(pool.drain(), Drained)
    assert_type(pool.lent, int)
    assert_type(pool.resize(None), None)
    assert_type(pool.limit, int | None)
    assert_type(pool.stats(), PoolStats)


def leased_connection(connection: LeasedConnection) -> None:
    takes_connection(connection)
    assert_type(connection.release(), None)
    assert_type(connection.close(), None)
    assert_type(connection.as_uri(), str)
    assert_type(connection.collect(socket_timeout=0.5), None)
    assert_type(connection.switch("amqp://localhost//"), None)
    assert_type(connection.maybe_switch_next(), None)
    takes_connection(connection.clone(heartbeat=0.5))
    with connection as same:
        assert_type(same, LeasedConnection)


def leased_producer(producer: LeasedProducer) -> None:
    takes_producer(producer)
    assert_type(producer.release(), None)
    assert_type(producer.close(), None)
    # A producer class of the application's may return something; kombu's own returns None here.
    assert_type(producer.publish({"id": 1}, routing_key="orders"), Any)
    assert_type(producer.publish({"id": 1}, "orders", retry=True, timeout=0.5), Any)
    assert_type(producer.batch(), Batch)
    assert_type(producer.batch(max_size=100), Batch)
    assert_type(producer.supports_batch_publish, bool)
    assert_type(producer.released, bool)
    assert_type(producer.broken, bool)
    assert_type(producer.revive(producer.connection), None)
    with producer as same:
        assert_type(same, LeasedProducer)


def batch(batch: Batch) -> None:
    with batch as same:
        assert_type(same, Batch)
    assert_type(batch.flush(), None)
    assert_type(batch.results, dict[str, Outcome])
    assert_type(batch.results["an id"], Outcome)


class Channels(PoolGroup[list[str]]):
    """A group of an application's own."""

    def create(self, resource: Any, limit: int | None) -> list[str]:
        return [str(resource)]


def pool_group(group: PoolGroup[ConnectionPool]) -> None:
    assert_type(group["default"], ConnectionPool)
    assert_type(group.create("default", 5), ConnectionPool)
    assert_type(group.key("default"), Any)
    assert_type(group.resolve("default"), Any)
    assert_type(group.get("default"), ConnectionPool | None)
    assert_type(group.get("default", 5), ConnectionPool | int)
    assert_type(group.clear(), None)
    assert_type(group.all_pools(), list[ConnectionPool])
    assert_type("default" in group, bool)


def own_group() -> None:
    channels = assert_type(register_group(Channels(limit=use_global_limit)), Channels)
    assert_type(channels["default"], list[str])


def narrowed(producer: LeasedProducer) -> None:
    class Counting(Producer):
        published = 0

    # A pool of another producer class: the class is known at run time alone.
    if isinstance(producer, Counting):
        assert_type(producer.published, int)


def suspended(pool: ConnectionPool) -> None:
    assert_type(pool.suspended, Literal["fail", "wait"] | None)
