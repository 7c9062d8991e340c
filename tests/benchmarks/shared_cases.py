"""Many who publish at once over one connection: threads, and coroutines of one event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

from .case import BODY, OURS, Contender, Setting, peer, register
from .lease_cases import KOMBU, kombus_pools, our_pools
from .measure import Round, percentile
from .peers import AIO_PIKA
from .thread_cases import PATIENCE, publishing

__all__ = ["COROUTINES", "OVER_LEASES", "THREADS"]

#: What our own publish is called where each message takes a lease.
OVER_LEASES = "ours, over leases"
#: How many publish at once.
THREADS = (1, 32, 128)
COROUTINES = (50, 1_000)


def ours(over: str, threads: int) -> Contender:
    """``Pools.publish`` over one connection, or over a lease for each message."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting, LIMIT=8, CONFIRM=True, PUBLISH_OVER=over) as pools:
            yield lambda: publishing(
                lambda: pools.publish(BODY, setting.queue, acquire_timeout=PATIENCE),
                threads,
                setting.watch,
            )

    return contender


def kombus(threads: int) -> Contender:
    """A producer of ``kombu.pools`` for each message, on 8 connections."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with kombus_pools(setting, confirm=True, limit=8) as (_, pool):

            def publish() -> None:
                with pool.acquire(block=True) as producer:
                    producer.publish(BODY, routing_key=setting.queue)

            yield lambda: publishing(publish, threads, setting.watch)

    return contender


for count in THREADS:
    register(
        f"shared.threads.{count}",
        f"{count} thread{'s' * (count > 1)}, confirmed, serialized each time",
        "amqp",
        {OURS: ours("shared", count), OVER_LEASES: ours("leased", count), KOMBU: kombus(count)},
        figures={"time": "µs", "p99": "µs, p99 of a call"},
        rounds=3,
    )


# -- coroutines ------------------------------------------------------------------------------------


#: Opens what is needed in the event loop, and gives the function that publishes.
Opened = Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Any]]]]


def at_hand(publish: Callable[[], Awaitable[Any]]) -> Opened:
    """Needs nothing to be opened in the event loop."""
    return lambda: nullcontext(publish)


def awaiting(opened: Opened, coroutines: int, seconds: float) -> dict[str, float]:
    """So many *coroutines* publish for so long, each as fast as it can."""
    calls: list[float] = []
    took = 0.0

    async def one(publish: Callable[[], Awaitable[Any]], end: float) -> None:
        while (start := time.perf_counter()) < end:
            await publish()
            calls.append(time.perf_counter() - start)

    async def every() -> None:
        nonlocal took
        async with opened() as publish:
            await publish()
            began = time.perf_counter()
            await asyncio.gather(*(one(publish, began + seconds) for _ in range(coroutines)))
            took = time.perf_counter() - began

    asyncio.run(every())
    return {"time": took / len(calls) * 1e6, "p99": percentile(calls, 99) * 1e6}


def ours_awaited(over: str, coroutines: int) -> Contender:
    """``Pools.apublish``."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        settings = {"LIMIT": 8, "CONFIRM": True, "PUBLISH_OVER": over, "MAX_WAITING": 10_000}
        with our_pools(setting, **settings) as pools:
            opened = at_hand(lambda: pools.apublish(BODY, setting.queue, acquire_timeout=PATIENCE))
            yield lambda: awaiting(opened, coroutines, setting.watch)

    return contender


def ours_in_threads(coroutines: int) -> Contender:
    """``Pools.publish`` by ``asyncio.to_thread``, as without ``apublish``."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting, LIMIT=8, CONFIRM=True) as pools:
            opened = at_hand(
                lambda: asyncio.to_thread(
                    pools.publish, BODY, setting.queue, acquire_timeout=PATIENCE
                )
            )
            yield lambda: awaiting(opened, coroutines, setting.watch)

    return contender


def aio_pikas(coroutines: int) -> Contender:
    """One connection of aio-pika and one channel with confirms, on which all publish."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        aio_pika = peer("aio_pika")

        @asynccontextmanager
        async def opened() -> AsyncIterator[Callable[[], Awaitable[Any]]]:
            async with await aio_pika.connect(setting.url) as connection:
                channel = await connection.channel(publisher_confirms=True)

                def publish() -> Awaitable[Any]:
                    message = aio_pika.Message(
                        json.dumps(BODY).encode(),
                        content_type="application/json",
                        content_encoding="utf-8",
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    )
                    sent: Awaitable[Any] = channel.default_exchange.publish(message, setting.queue)
                    return sent

                yield publish

        yield lambda: awaiting(opened, coroutines, setting.watch)

    return contender


for count in COROUTINES:
    register(
        f"shared.coroutines.{count}",
        f"{count:,} coroutines of one event loop, confirmed",
        "amqp",
        {
            OURS: ours_awaited("shared", count),
            OVER_LEASES: ours_awaited("leased", count),
            "ours, to_thread": ours_in_threads(count),
            AIO_PIKA: aio_pikas(count),
        },
        figures={"time": "µs", "p99": "µs, p99 of a call"},
        rounds=3,
    )
