"""``submit`` and ``apublish``; and what blocks is refused in a thread whose event loop is running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils import translation
from django.utils.translation import gettext_lazy
from kombu import Queue
from kombu.exceptions import EncodeError

from django_app import apublish, connections, producers, publish, submit, with_producer
from kombu_pools_ext.errors import BlockingInEventLoop, PublishReturned, UnknownAlias
from tests.with_django.conftest import receive

Configure = Callable[..., None]


def in_loop(work: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return work()

    return asyncio.run(run())


# -- submit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "amqp", "redis"])
def test_submit(
    request: pytest.FixtureRequest, configure: Configure, queue: str, scheme: str
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    configure(URL=url)
    declared = Queue(queue, auto_delete=True)
    future = submit({"n": 1}, queue, declare=[declared], headers={"a": gettext_lazy("Yes")})
    assert future.result(30) is None
    assert receive(url, queue) == {"n": 1}


def test_a_submitted_message_has_the_language_of_its_caller(
    configure: Configure, memory_url: str, queue: str
) -> None:
    configure()
    text = gettext_lazy("Yes")
    connections["default"].suspend("wait")
    with translation.override("de"):
        futures = [submit(text, queue), submit({"says": text}, queue, serializer="json")]
    connections["default"].resume()
    for future in futures:
        future.result(30)
    assert [receive(memory_url, queue) for _ in range(2)] == ["Ja", {"says": "Ja"}]


def test_what_submit_refuses_at_once(configure: Configure, queue: str) -> None:
    configure()
    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        submit({}, queue, using="defaul")
    with pytest.raises(TypeError, match="unknown keyword 'queue'"):
        submit({}, queue=queue)
    with pytest.raises(EncodeError):
        submit(object(), queue)
    with override_settings(KOMBU_POOLS={"default": {}}):
        with pytest.raises(ImproperlyConfigured, match="'URL'"):
            submit({}, queue)


def test_submit_works_where_a_loop_runs(configure: Configure, memory_url: str, queue: str) -> None:
    configure()

    async def view() -> None:
        await asyncio.wrap_future(submit(1, queue))

    asyncio.run(view())
    assert receive(memory_url, queue) == 1


# -- apublish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "amqp", "redis"])
def test_an_async_view_publishes(
    request: pytest.FixtureRequest, configure: Configure, queue: str, scheme: str
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    configure(URL=url)
    declared = Queue(queue, auto_delete=True)

    async def view(number: int) -> None:
        await apublish({"n": number}, queue, declare=declared)

    # Under ASGI, and under WSGI.
    for number, run in enumerate((lambda one: asyncio.run(view(one)), async_to_sync(view))):
        run(number)
        assert receive(url, queue) == {"n": number}


@pytest.mark.parametrize("kind", ["ASGI", "WSGI"])
def test_an_async_view_of_a_site_publishes(
    configure: Configure, memory_url: str, queue: str, kind: str
) -> None:
    configure()

    async def ask() -> bytes:
        return (await AsyncClient().get(f"/awaits/{queue}/")).content

    if kind == "ASGI":
        content = async_to_sync(ask)()
    else:
        content = Client().get(f"/awaits/{queue}/").content
    assert content == b"published"
    assert receive(memory_url, queue) == {"from": "apublish"}


def test_apublish_raises_what_publish_raises(
    configure: Configure, amqp_url: str, queue: str
) -> None:
    configure(URL=amqp_url)

    async def fail() -> None:
        with pytest.raises(PublishReturned):
            await apublish({}, queue)
        with pytest.raises(UnknownAlias):
            await apublish({}, queue, using="defaul")
        with pytest.raises(TypeError, match="unknown keyword 'queue'"):
            await apublish({}, queue=queue)

    asyncio.run(fail())


def test_apublish_renders_lazy_text_in_the_language_of_its_caller(
    configure: Configure, memory_url: str, queue: str
) -> None:
    configure()

    async def view() -> None:
        with translation.override("de"):
            await apublish(gettext_lazy("Yes"), queue)

    asyncio.run(view())
    assert receive(memory_url, queue) == "Ja"


# -- the guard ---------------------------------------------------------------------------------------------------------


@with_producer
def decorated(request: HttpRequest, producer: Any) -> HttpResponse:
    return HttpResponse("done")


def test_publish_is_refused_in_a_loop(configure: Configure) -> None:
    configure()
    with pytest.raises(SynchronousOnlyOperation, match=r"publish\(\) .* await apublish\(…\)"):
        in_loop(lambda: publish({}, "q"))
    assert connections["default"].stats().opened == 0


def test_a_decorated_sync_view_is_refused_in_a_loop(configure: Configure) -> None:
    configure()
    with pytest.raises(SynchronousOnlyOperation, match=r"decorated\(\).*await sync_to_async"):
        in_loop(lambda: decorated(HttpRequest()))
    assert connections["default"].stats().opened == 0


def test_threads_of_a_coroutine_may_block(
    configure: Configure, memory_url: str, queue: str
) -> None:
    configure()

    async def view() -> None:
        await sync_to_async(publish)(1, queue)
        await sync_to_async(publish, thread_sensitive=False)(2, queue)
        await asyncio.to_thread(publish, 3, queue)
        assert (await sync_to_async(decorated)(HttpRequest())).content == b"done"

    async_to_sync(view)()
    assert [receive(memory_url, queue) for _ in range(3)] == [1, 2, 3]


def test_djangos_variable_allows_what_blocks(
    configure: Configure, memory_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

    def block() -> None:
        publish(1, queue)
        decorated(HttpRequest())
        producers["default"].acquire().release()

    in_loop(block)
    assert receive(memory_url, queue) == 1


def test_an_acquire_in_a_loop_warns(configure: Configure) -> None:
    configure()
    with pytest.warns(BlockingInEventLoop, match=__file__):
        in_loop(lambda: producers["default"].acquire().release())
