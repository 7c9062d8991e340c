from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from amqp.exceptions import ConnectionForced
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.utils.decorators import method_decorator
from django.views import View
from kombu.exceptions import LimitExceeded, OperationalError

from django_app import connections, decorators, producers, with_producer
from kombu_pools_ext.errors import LeaseError, UnknownAlias
from tests.with_django.conftest import receive, until


def lent() -> int:
    return connections["default"].stats().lent


#: Seconds within which a short wait is over on a busy machine: less than a view waits by default.
IN_TIME = 4.5


async def meanwhile(what: Callable[[], Any]) -> None:
    """Wait until *what* is true; other coroutines run meanwhile."""
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.001)


async def one_waits() -> None:
    """Wait until a caller waits for a lease."""
    await meanwhile(lambda: connections["default"].stats().waiting)


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("get", "decorated", "decorated"),
        ("get", "methods", "get"),
        ("post", "methods", "post"),
        ("get", "async", "async"),
    ],
)
def test_a_view_gets_a_producer(
    configure: Callable[..., None],
    memory_url: str,
    queue: str,
    method: str,
    path: str,
    body: str,
) -> None:
    configure()
    response = getattr(Client(), method)(f"/{path}/{queue}/")
    assert response.content == b"published"
    assert receive(memory_url, queue) == {"from": body}
    assert lent() == 0
    assert connections["default"].stats().opened == 1


def test_an_async_view_publishes_to_rabbitmq(
    configure: Callable[..., None], amqp_url: str, queue: str
) -> None:
    configure(URL=amqp_url)

    async def ask() -> bytes:
        return (await AsyncClient().get(f"/async/{queue}/")).content

    with kombu.Connection(amqp_url) as connection:
        simple = connection.SimpleQueue(kombu.Queue(queue, auto_delete=True))
        assert async_to_sync(ask)() == b"published"
        message = simple.get(timeout=30)
        message.ack()
        assert message.decode() == {"from": "async"}
        simple.close()
    assert lent() == 0


def test_the_producer_is_lent_only_while_the_view_runs(
    configure: Callable[..., None],
) -> None:
    configure()
    kept: list[Any] = []

    @with_producer()
    def view(request: Any, word: str, *, producer: kombu.Producer) -> str:
        assert isinstance(producer, kombu.Producer)
        assert lent() == 1
        kept.append(producer)
        return word

    assert view(None, "said") == "said"
    assert view.__name__ == "view"
    assert lent() == 0
    with pytest.raises(LeaseError):
        kept[0].publish({})


@pytest.mark.parametrize(
    "error, idle",
    [(ZeroDivisionError, 1), (TimeoutError, 1), (OperationalError, 1), (ConnectionForced, 0)],
)
def test_a_view_that_raises_releases_the_producer(
    configure: Callable[..., None], error: type[Exception], idle: int
) -> None:
    configure()

    @with_producer
    def view(request: Any, producer: Any) -> HttpResponse:
        raise error("on purpose")

    @with_producer
    async def async_view(request: Any, producer: Any) -> HttpResponse:
        raise error("on purpose")

    for one in (view, lambda request: asyncio.run(async_view(request))):
        with pytest.raises(error, match="on purpose"):
            one(None)
        stats = connections["default"].stats()
        assert (stats.lent, stats.idle) == (0, idle)


def test_an_unknown_alias_raises_when_the_view_is_called(configure: Callable[..., None]) -> None:
    configure()

    @with_producer("defautl")
    def view(request: Any, producer: Any) -> None: ...

    @with_producer("defautl")
    async def async_view(request: Any, producer: Any) -> None: ...

    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        view(None)
    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        asyncio.run(async_view(None))


def test_a_view_waits_as_long_as_the_setting_says(configure: Callable[..., None]) -> None:
    configure(LIMIT=1, ACQUIRE_TIMEOUT=0.1)

    @with_producer
    def view(request: Any, producer: Any) -> str:
        return "ran"

    with connections["default"].acquire():
        began = time.monotonic()
        with pytest.raises(LimitExceeded):
            view(None)
        assert 0.05 < time.monotonic() - began < IN_TIME
    configure(LIMIT=1, ACQUIRE_TIMEOUT=None)
    assert view(None) == "ran"


def test_waiting_for_a_producer_does_not_block_other_coroutines(
    configure: Callable[..., None],
) -> None:
    configure(LIMIT=1)

    @with_producer
    async def view(request: Any, producer: Any) -> str:
        return "ran"

    async def both() -> str:
        holder = await asyncio.to_thread(producers["default"].acquire)
        waiting = asyncio.ensure_future(view(None))
        await one_waits()
        assert not waiting.done()
        holder.release()
        return await waiting

    assert asyncio.run(both()) == "ran"
    assert lent() == 0


def test_a_view_that_is_cancelled_while_it_waits_leaves_nothing_lent(
    configure: Callable[..., None], memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(LIMIT=1)

    @with_producer
    async def view(request: Any, producer: Any) -> None:
        raise AssertionError("it was cancelled")

    async def cancelled() -> None:
        holder = await asyncio.to_thread(producers["default"].acquire)
        waiting = asyncio.ensure_future(view(None))
        await one_waits()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        holder.release()
        await meanwhile(lambda: connections["default"].stats().acquires == 2 and not lent())

    asyncio.run(cancelled())
    gc.collect()
    until(lambda: connections["default"].stats().idle == 1)
    # Of this pool: the collector may just have found what another test dropped.
    assert not [one for one in caplog.messages if "dropped" in one and memory_url in one]
    assert connections["default"].stats().closed == {}


def test_the_error_of_a_cancelled_wait_is_retrieved(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(LIMIT=1)

    @with_producer
    async def view(request: Any, producer: Any) -> None:
        raise AssertionError("it was cancelled")

    async def cancelled() -> None:
        with await asyncio.to_thread(producers["default"].acquire):
            waiting = asyncio.ensure_future(view(None))
            await one_waits()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            connections["default"].suspend("fail")
            # The thread that waits is told so, and tells the loop.
            await meanwhile(lambda: len(asyncio.all_tasks()) == 1)
        connections["default"].resume()

    asyncio.run(cancelled())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_view_that_is_cancelled_while_it_runs_closes_its_connection(
    configure: Callable[..., None],
) -> None:
    configure()
    running = asyncio.Event()

    @with_producer
    async def view(request: Any, producer: Any) -> None:
        running.set()
        await asyncio.sleep(10)

    async def cancelled() -> None:
        task = asyncio.ensure_future(view(None))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    stats = connections["default"].stats()
    assert (stats.lent, stats.closed) == (0, {"broken": 1})


@pytest.mark.threads
def test_a_view_that_is_cancelled_while_it_publishes_does_not_break_the_publish(
    configure: Callable[..., None],
) -> None:
    configure()
    begun, go_on = threading.Event(), threading.Event()

    class Body:
        def __json__(self) -> str:
            begun.set()
            assert go_on.wait(30)
            return "published"

    done = []

    @with_producer
    async def view(request: Any, producer: Any) -> None:
        def publish() -> None:
            producer.publish(Body(), routing_key="queue")
            done.append(producer.released)

        await asyncio.to_thread(publish)

    async def cancelled() -> None:
        task = asyncio.ensure_future(view(None))
        await meanwhile(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lent() == 1
        go_on.set()
        await meanwhile(lambda: done)

    asyncio.run(cancelled())
    assert (done, lent()) == ([True], 0)


@pytest.mark.threads
def test_a_view_may_publish_in_several_threads_at_once(
    configure: Callable[..., None], amqp_url: str, queue: str
) -> None:
    configure(URL=amqp_url)

    @with_producer
    async def view(request: Any, producer: Any) -> None:
        declared = kombu.Queue(queue, auto_delete=True)
        await asyncio.to_thread(producer.publish, 0, queue, declare=[declared])
        await asyncio.gather(
            *(asyncio.to_thread(producer.publish, number, queue) for number in range(1, 9))
        )

    with kombu.Connection(amqp_url) as connection:
        asyncio.run(view(None))
        with connection.SimpleQueue(kombu.Queue(queue, auto_delete=True)) as simple:
            bodies = sorted(simple.get(timeout=30).payload for _ in range(9))
    assert bodies == list(range(9))
    assert lent() == 0


def test_async_methods_of_class_based_views_get_a_producer(configure: Callable[..., None]) -> None:
    configure()

    class Methods(View):
        @with_producer
        async def get(self, request: HttpRequest, producer: kombu.Producer) -> HttpResponse:
            return HttpResponse(str(lent()))

        @method_decorator(with_producer)
        async def post(self, request: HttpRequest, producer: kombu.Producer) -> HttpResponse:
            return HttpResponse(str(lent()))

    for method in ("GET", "POST"):
        request = HttpRequest()
        request.method = method
        assert async_to_sync(Methods.as_view())(request).content == b"1"
    assert lent() == 0


def test_used_aliases_has_the_views_of_each_alias(configure: Callable[..., None]) -> None:
    class Methods(View):
        @method_decorator(with_producer("audit"))
        def get(self, request: HttpRequest, producer: kombu.Producer) -> HttpResponse:
            return HttpResponse()

    class Called:
        def __call__(self, request: Any, producer: Any) -> None: ...

    with_producer("audit")(Called())
    configure({"audit": "memory://", "default": "memory://"})
    for _ in range(3):
        request = HttpRequest()
        request.method = "GET"
        Methods.as_view()(request)
    here = "test_used_aliases_has_the_views_of_each_alias.<locals>"
    assert [one.partition("test_decorators.")[2] for one in decorators.used_aliases["audit"]] == [
        f"{here}.Called",
        f"{here}.Methods.get",
    ]
