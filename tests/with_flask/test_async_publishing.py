"""``submit`` and ``apublish`` of ``KombuPools``: with an application context, and beyond its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import kombu
import pytest
from flask import Flask
from kombu.exceptions import LimitExceeded

from flask_ext import KombuPools
from kombu_pools_ext.errors import BlockingInEventLoop, PublishReturned

from .conftest import MakeApp, eventually, received
from .test_context import lent

pytestmark = pytest.mark.threads


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_view_submits_and_does_not_wait(
    request: pytest.FixtureRequest, make_app: MakeApp, pools: KombuPools, queue: str, scheme: str
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    app = make_app(URL=url)
    declared = kombu.Queue(queue, durable=False)
    futures: list[Future[None]] = []

    @app.post("/<int:number>")
    def view(number: int) -> str:
        futures.append(pools.submit(number, queue, declare=[declared]))
        return "submitted"

    with kombu.Connection(url) as connection:
        try:
            for number in range(5):
                assert app.test_client().post(f"/{number}").text == "submitted"
            for future in futures:
                assert future.result(30) is None
            assert sorted(received(url, queue)) == list(range(5))
        finally:
            declared(connection.default_channel).delete()
    eventually(lambda: lent(app) == 0)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_an_async_view_publishes_in_the_loop_that_flask_runs_for_it(
    request: pytest.FixtureRequest, make_app: MakeApp, pools: KombuPools, queue: str, scheme: str
) -> None:
    pytest.importorskip("asgiref")
    url = request.getfixturevalue(f"{scheme}_url")
    app = make_app(URL=url)
    declared = kombu.Queue(queue, durable=False)

    @app.post("/")
    async def view() -> str:
        await pools.apublish("first", queue, declare=[declared])
        await asyncio.gather(*(pools.apublish(number, queue) for number in range(5)))
        return "published"

    with kombu.Connection(url) as connection:
        try:
            for _ in range(2):
                assert app.test_client().post("/").text == "published"
            bodies = received(url, queue)
        finally:
            declared(connection.default_channel).delete()
    assert sorted(map(str, bodies)) == sorted(["first", "0", "1", "2", "3", "4"] * 2)
    eventually(lambda: lent(app) == 0)


def test_a_message_may_be_published_after_the_end_of_its_context(
    make_app: MakeApp, pools: KombuPools, amqp_url: str, amqp_queue: str
) -> None:
    app = make_app(URL=amqp_url, CONNECTION_NAME=amqp_queue, LIMIT=1)
    own: Any = app.extensions["kombu_pools"]
    own.suspend(mode="wait")
    with app.app_context():
        future = pools.submit("late", amqp_queue)
        eventually(lambda: own.connections["default"].stats().waiting)
    own.resume()
    future.result(30)
    assert received(amqp_url, amqp_queue) == ["late"]
    eventually(lambda: lent(app) == 0)


def test_a_context_that_holds_the_only_producer_is_told_so(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=0.2)
    app.extensions["kombu_pools"].wait_ready(30)
    with app.app_context():
        pools.producer
        error = pools.submit({}, "queue").exception(30)
    assert isinstance(error, LimitExceeded)
    (note,) = error.__notes__
    assert "this application context itself holds 1 of 'default'" in note


def test_errors_are_those_of_publish(
    make_app: MakeApp, pools: KombuPools, amqp_url: str, queue: str
) -> None:
    app = make_app(URL=amqp_url)

    async def fail() -> None:
        with pytest.raises(PublishReturned):
            await pools.apublish({}, queue)
        with pytest.raises(TypeError, match="unknown keyword 'queue'"):
            await pools.apublish({}, queue=queue)

    with app.app_context():
        assert isinstance(pools.submit({}, queue).exception(30), PublishReturned)
        with pytest.raises(TypeError, match="unknown keyword 'queue'"):
            pools.submit({}, queue=queue)
        asyncio.run(fail())


def test_they_need_an_application_context(app: Flask, pools: KombuPools) -> None:
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        pools.submit({}, "queue")
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        asyncio.run(pools.apublish({}, "queue"))
    # The app's own do not.
    own: Any = app.extensions["kombu_pools"]
    assert own.submit({}, "queue").result(30) is None
    asyncio.run(own.apublish({}, "queue"))


def test_a_publish_that_blocks_an_async_view_warns(app: Flask, pools: KombuPools) -> None:
    async def view() -> None:
        pools.publish({}, "queue")

    with app.app_context():
        with pytest.warns(BlockingInEventLoop, match=__file__):
            asyncio.run(view())
        # Also on the producer that the context holds already.
        pools.producer

        async def use(producer: Any) -> None:
            producer.publish({}, "queue")

        with pytest.warns(BlockingInEventLoop, match=r"publish\(\) blocks"):
            asyncio.run(use(pools.producer))
