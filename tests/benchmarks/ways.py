"""The ways in which many threads of a process publish the same order, confirmed. Each gives its function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import kombu

from .case import BODY, OURS, Setting, peer
from .lease_cases import KOMBU, kombus_pools, our_pools
from .peers import (
    PIKA,
    amqpstorm_connection,
    amqpstorm_publish,
    pika_connection,
    pika_publish,
)

__all__ = [
    "AMQPSTORM_SHARED",
    "BARE",
    "CELERY",
    "CONNECTIONS",
    "OVER_LEASES",
    "OVER_ONE",
    "PATIENCE",
    "TASK_WAYS",
    "UNSENT",
    "WAYS",
    "Publish",
    "Way",
    "our_settings",
]

OVER_ONE = "ours, one connection"
OVER_LEASES = "ours, over leases"
AMQPSTORM_SHARED = "amqpstorm, one connection"
CELERY = "Celery, delay"
UNSENT = "Celery, delay without a publish"
BARE = "no publish"
#: Connections of each pool.
CONNECTIONS = 8
#: Seconds for a lease; nobody comes near it.
PATIENCE = 60.0

#: Publishes one message, and returns when it is confirmed.
Publish = Callable[[], Any]
Way = Callable[[Setting], AbstractContextManager[Publish]]


def our_settings(name: str) -> dict[str, Any]:
    """The settings of an alias that publishes in one of our ways: the default ones, or over one road alone."""
    over = {OURS: "auto", OVER_ONE: "shared", OVER_LEASES: "leased"}[name]
    return {"LIMIT": CONNECTIONS, "CONFIRM": True, "PUBLISH_OVER": over}


def ours(name: str) -> Way:
    """``Pools.publish``."""

    @contextmanager
    def way(setting: Setting) -> Iterator[Publish]:
        with our_pools(setting, **our_settings(name)) as pools:
            yield lambda: pools.publish(BODY, setting.queue, acquire_timeout=PATIENCE)

    return way


@contextmanager
def kombus(setting: Setting) -> Iterator[Publish]:
    """A producer of ``kombu.pools`` for each message."""
    with kombus_pools(setting, confirm=True, limit=CONNECTIONS) as (_, pool):

        def publish() -> None:
            with pool.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=setting.queue)

        yield publish


@contextmanager
def pikas(setting: Setting) -> Iterator[Publish]:
    """A connection of pika for each thread, opened with its first message."""
    peer("pika")
    local = threading.local()
    connections: list[Any] = []

    def publish() -> None:
        if not hasattr(local, "channel"):
            connections.append(connection := pika_connection(setting))
            local.channel = connection.channel()
            local.channel.confirm_delivery()
        pika_publish(local.channel, setting.queue)

    try:
        yield publish
    finally:
        for connection in connections:
            connection.close()


@contextmanager
def amqpstorms(setting: Setting) -> Iterator[Publish]:
    """One connection of amqpstorm, with a channel for each thread."""
    local = threading.local()
    with amqpstorm_connection(setting) as connection:

        def publish() -> None:
            if not hasattr(local, "channel"):
                local.channel = connection.channel()
                local.channel.confirm_deliveries()
            amqpstorm_publish(local.channel, setting.queue)

        yield publish


def with_a_task(setting: Setting) -> tuple[Any, Publish]:
    """A Celery application, and ``delay`` of its task, which has no result; the order is its argument."""
    app = peer("celery").Celery("bench", broker=setting.url, set_as_current=False)
    app.conf.update(
        broker_pool_limit=CONNECTIONS,
        broker_transport_options={"confirm_publish": True},
        task_default_queue=setting.queue,
        # The queue is there, and has other arguments than Celery would declare.
        task_queues=[kombu.Queue(setting.queue, kombu.Exchange(""), no_declare=True)],
        task_ignore_result=True,
    )

    @app.task(name="bench.order", shared=False)
    def task(order: object) -> None: ...

    return app, lambda: task.delay(BODY)


@contextmanager
def celerys(setting: Setting) -> Iterator[Publish]:
    """``delay``."""
    app, publish = with_a_task(setting)
    try:
        yield publish
    finally:
        app.close()


@contextmanager
def adopted(setting: Setting) -> Iterator[Publish]:
    """``delay`` of an application that publishes over our pools, with the default settings."""
    app, publish = with_a_task(setting)
    from kombu_pools_ext.contrib.celery import adopt

    with our_pools(setting, **our_settings(OURS), ACQUIRE_TIMEOUT=PATIENCE) as pools:
        adopt(app, pools=pools)
        yield publish
        app.close()


@contextmanager
def unsent(setting: Setting) -> Iterator[Publish]:
    """``delay``, with a producer that sends nothing: what Celery itself does for a task."""
    app, publish = with_a_task(setting)
    app.amqp._producer_pool = Unsent(app.connection_for_write())
    try:
        yield publish
    finally:
        app.close()


class Unsent:
    """A pool of one producer, which sends nothing."""

    serializer = None

    def __init__(self, connection: kombu.Connection) -> None:
        self.connection = connection

    @contextmanager
    def acquire(self, **kwargs: Any) -> Iterator[Unsent]:
        """Itself is the producer."""
        yield self

    def publish(self, body: Any, **kwargs: Any) -> None:
        """Nothing."""


def none(setting: Setting) -> AbstractContextManager[Publish]:
    """Publishes nothing."""
    return nullcontext(lambda: None)


WAYS: Mapping[str, Way] = {
    BARE: none,
    OURS: ours(OURS),
    OVER_ONE: ours(OVER_ONE),
    OVER_LEASES: ours(OVER_LEASES),
    KOMBU: kombus,
    PIKA: pikas,
    AMQPSTORM_SHARED: amqpstorms,
    CELERY: celerys,
}

#: Those of a task.
TASK_WAYS: Mapping[str, Way] = {OURS: adopted, CELERY: celerys, UNSENT: unsent}
