"""The peers that publish to RabbitMQ: each keeps one connection and one channel, as its users do."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.utils.url import parse_url

from .case import BODY, Contender, Setting, peer
from .measure import Play, Round, statement, timed

__all__ = [
    "AIO_PIKA",
    "AMQPSTORM",
    "PIKA",
    "aio_pika",
    "aio_pika_connect",
    "aio_pika_publish",
    "amqpstorm",
    "amqpstorm_connection",
    "amqpstorm_publish",
    "pika",
    "pika_connection",
    "pika_publish",
]

PIKA = "pika, thread-local"
AMQPSTORM = "amqpstorm held"
AIO_PIKA = "aio-pika held"


def tls(setting: Setting) -> ssl.SSLContext | None:
    """A context that trusts whoever signed for the broker; ``None`` without TLS."""
    return ssl.create_default_context(cafile=setting.ca) if setting.ca else None


def pika_connection(setting: Setting) -> Any:
    """A new `BlockingConnection`.

    :raises Missing: without pika.
    """
    pika = peer("pika")
    parts, context = parse_url(setting.url), tls(setting)
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            parts["hostname"],
            parts["port"],
            "/",
            pika.PlainCredentials(parts["userid"], parts["password"]),
            ssl_options=None if context is None else pika.SSLOptions(context, "localhost"),
        )
    )


def pika_publish(channel: Any, queue: str) -> None:
    """Publish the order on a channel of pika."""
    pika = peer("pika")
    channel.basic_publish(
        "",
        queue,
        json.dumps(BODY),
        pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2
        ),
    )


def pika(*, confirm: bool) -> Contender:
    """A `BlockingConnection` of each thread's own, as Flask-RMQ and django-rmq have it."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        connection = pika_connection(setting)
        try:
            local = threading.local()
            local.channel = connection.channel()
            if confirm:
                local.channel.confirm_delivery()

            def publish() -> None:
                pika_publish(local.channel, setting.queue)

            yield timed(statement("publish()", publish=publish), setting.seconds)
        finally:
            connection.close()

    return contender


def amqpstorm_connection(setting: Setting) -> Any:
    """A new connection.

    :raises Missing: without amqpstorm.
    """
    storm = peer("amqpstorm")
    parts = parse_url(setting.url)
    options: dict[str, Any] = {}
    context = tls(setting)
    if context is not None:
        options = {
            "ssl": True,
            "ssl_options": {"context": context, "server_hostname": "localhost"},
        }
    return storm.Connection(
        parts["hostname"], parts["userid"], parts["password"], port=parts["port"], **options
    )


def amqpstorm_publish(channel: Any, queue: str) -> None:
    """Publish the order on a channel of amqpstorm."""
    channel.basic.publish(
        json.dumps(BODY),
        routing_key=queue,
        properties={
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        },
    )


def amqpstorm(*, confirm: bool) -> Contender:
    """A connection and a channel, held."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with amqpstorm_connection(setting) as connection:
            channel = connection.channel()
            if confirm:
                channel.confirm_deliveries()

            def publish() -> None:
                amqpstorm_publish(channel, setting.queue)

            yield timed(statement("publish()", publish=publish), setting.seconds)

    return contender


async def aio_pika_connect(setting: Setting) -> Any:
    """A new connection, in the running event loop.

    :raises Missing: without aio-pika.
    """
    aio = peer("aio_pika")
    parts, context = parse_url(setting.url), tls(setting)
    return await aio.connect(
        host=parts["hostname"],
        port=parts["port"],
        login=parts["userid"],
        password=parts["password"],
        virtualhost="/",
        ssl=context is not None,
        ssl_context=context,
    )


async def aio_pika_publish(channel: Any, queue: str) -> None:
    """Publish the order on a channel of aio-pika."""
    message = peer("aio_pika").Message(
        json.dumps(BODY).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
    )
    await channel.default_exchange.publish(message, routing_key=queue)


def aio_pika(*, confirm: bool, together: int = 1) -> Contender:
    """A connection and a channel, held, in a loop that is entered once a round.

    :param together: how many messages are on their way at once.
    """

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        async def connect() -> tuple[Any, Any]:
            connection = await aio_pika_connect(setting)
            return connection, await connection.channel(publisher_confirms=confirm)

        async def close() -> None:
            await connection.close()

        with asyncio.Runner() as runner:
            connection, channel = runner.run(connect())
            try:

                def publish() -> Awaitable[None]:
                    return aio_pika_publish(channel, setting.queue)

                async def many(turns: int) -> float:
                    began = time.perf_counter()
                    for _ in range(turns):
                        if together == 1:
                            await publish()
                        else:
                            await asyncio.gather(*[publish() for _ in range(together)])
                    return time.perf_counter() - began

                play: Play = lambda turns: runner.run(many(turns))  # noqa: E731  # a name and a type
                yield timed(play, setting.seconds, per=together)
            finally:
                runner.run(close())

    return contender
