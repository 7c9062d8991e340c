"""Aliases: ``configure``, ``Pools`` and what its pools lend."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack, assert_type

from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from kombu_pools_ext import (
    AliasedPools,
    ConnectionPool,
    Drained,
    LeasedConnection,
    LeasedProducer,
    PoolOptions,
    Pools,
    PoolSettings,
    ProducerPool,
    PublishKeywords,
    Reloaded,
    configure,
    connections,
    events,
    parse_settings,
)
from kombu_pools_ext.errors import BatchFailed, ConnectionsKept, Outcome, Problem, SettingsError
from kombu_pools_ext.settings import RetryPolicy


def made() -> None:
    assert_type(configure(default={"url": "amqp://localhost//", "limit": 20}), Pools)
    assert_type(configure({"default": "amqp://localhost//"}), Pools)
    assert_type(Pools(default="amqp://localhost//"), Pools)
    assert_type(Pools("shop.brokers.settings", name="BROKERS"), Pools)
    assert_type(Pools(Path("brokers.toml")), Pools)
    assert_type(Pools(lambda: {"default": "amqp://localhost//"}), Pools)


def of_pools(pools: Pools) -> None:
    assert_type(pools.connections, AliasedPools[ConnectionPool])
    assert_type(pools.producers, AliasedPools[ProducerPool])
    assert_type(pools.settings, Mapping[str, PoolSettings])
    assert_type(pools.settings_of("default"), PoolSettings)
    assert_type(pools.can_change, bool)
    assert_type(pools.publish({"id": 1}, "orders"), None)
    assert_type(
        pools.publish(
            {"id": 1},
            routing_key=Queue("orders"),
            exchange=Exchange("orders"),
            using="audit",
            acquire_timeout=0.5,
            declare=[Queue("orders")],
            headers={"tenant": 7},
            priority=5,
            expiration=0.5,
            mandatory=True,
        ),
        None,
    )
    assert_type(
        pools.publish(
            b"{}",
            "orders",
            declare=Queue("orders"),
            content_type="application/json",
            content_encoding="utf-8",
            compression=False,
            delivery_mode="persistent",
            immediate=False,
            timestamp=datetime.now(UTC),
            message_id="order-1",
            correlation_id="1",
            reply_to=Queue("answers"),
            type="order",
            user_id="guest",
            app_id="shop",
            cluster_id="",
            retry=True,
            retry_policy={"max_retries": 2, "errback": None},
            timeout=2,
            confirm_timeout=None,
            MessageGroupId="1",
        ),
        None,
    )
    assert_type(pools.submit({"id": 1}, "orders", using="audit", priority=5), Future[None])
    takes_awaitable(pools.apublish({"id": 1}, Queue("orders"), acquire_timeout=None, priority=5))
    assert_type(pools.reset(["default"], timeout=0.5, force=True), dict[str, Drained])
    assert_type(pools.suspend(["default"], mode="fail"), None)
    assert_type(pools.resume(), None)
    assert_type(pools.wait_ready(0.5, using=["default"]), None)
    assert_type(pools.drain(0.5), dict[str, Drained])
    assert_type(pools.reload(timeout=0.5, force=True), Reloaded)
    assert_type(pools.pools_of(["default"]), dict[str, ConnectionPool])


def takes_awaitable(outcome: Awaitable[None]) -> None:
    """What an async view awaits."""


class Publisher:
    """A function of the application's that passes keywords on."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools

    def publish_order(self, number: int, **keywords: Unpack[PublishKeywords]) -> None:
        self.pools.publish({"order": number}, "orders", **keywords)

    def submit_order(self, number: int, **keywords: Unpack[PublishKeywords]) -> Future[None]:
        return self.pools.submit({"order": number}, "orders", **keywords)

    async def apublish_order(self, number: int, **keywords: Unpack[PublishKeywords]) -> None:
        await self.pools.apublish({"order": number}, "orders", **keywords)

    def publish_anything(self, body: object, **keywords: Any) -> None:
        self.pools.publish(body, "orders", **keywords)


def passed_on(publisher: Publisher) -> None:
    publisher.publish_order(1, priority=5, acquire_timeout=0.5)


def aliased_pools(producers: AliasedPools[ProducerPool]) -> None:
    assert_type(producers["default"], ProducerPool)
    assert_type(producers["amqp://localhost//"], ProducerPool)
    assert_type(producers[Connection("amqp://localhost//")], ProducerPool)
    assert_type(producers["default"].acquire(timeout=0.5), LeasedProducer)
    assert_type(producers.get("default"), ProducerPool | None)
    assert_type(iter(producers), Iterator[str])
    assert_type(len(producers), int)
    assert_type("default" in producers, bool)
    for pool in producers.values():
        assert_type(pool, ProducerPool)


def lent(pools: Pools) -> None:
    with pools.connections["default"].acquire() as connection:
        assert_type(connection, LeasedConnection)
    with pools.producers["default"].acquire() as producer:
        assert_type(producer, LeasedProducer)


def reloaded(done: Reloaded) -> None:
    assert_type(done.changed, Mapping[str, Drained])
    assert_type(done.gone, Mapping[str, Drained])
    assert_type(done.new, tuple[str, ...])
    assert_type(done.stayed, tuple[str, ...])
    assert_type(done.failures, Mapping[str, Exception])


def drained(done: Drained) -> None:
    closed, lent = done
    assert_type(closed, int)
    assert_type(lent, int)


def pool_settings(settings: PoolSettings) -> None:
    assert_type(parse_settings({"default": "amqp://localhost//"}), dict[str, PoolSettings])
    assert_type(PoolSettings.of(url="amqp://localhost//", limit=5), PoolSettings)
    assert_type(connections[settings], ConnectionPool)
    takes_connection(settings.connection())
    assert_type(settings.options, PoolOptions)
    assert_type(settings.uses_global_limit, bool)
    assert_type(settings.uri, str)
    assert_type(settings.transport, str)
    assert_type(settings.is_amqp, bool)
    assert_type(settings.required_module, str | None)
    assert_type(settings.missing_driver(), str | None)
    assert_type(settings.identity, tuple[object, ...])
    assert_type(settings.retry, RetryPolicy | None)


def takes_connection(connection: Connection) -> None:
    """What an application has that was written for kombu."""


def of_errors(wrong: SettingsError, failed: BatchFailed, kept: ConnectionsKept) -> None:
    assert_type(wrong.problems, tuple[Problem, ...])
    assert_type(wrong.problems[0].message, str)
    assert_type(failed.results["an id"], Outcome)
    assert_type(failed.pool, str | None)
    assert_type(kept.failures, dict[str, Exception])
    assert_type(kept.tried, dict[str, PoolSettings])


def of_events(pool: ConnectionPool) -> None:
    @events.connection_closed.connect
    def note(pool: ConnectionPool, reason: str, **more: Any) -> None: ...

    assert_type(events.connection_closed.disconnect(note), None)
    assert_type(events.connection_opened.connect(note)(pool, "idle"), None)
