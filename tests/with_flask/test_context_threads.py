"""A context in several threads and tasks: each has its own producer, and none stays lent."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import kombu
import pytest
from flask import Flask, copy_current_request_context
from kombu.exceptions import LimitExceeded

from flask_ext import KombuPools
from kombu_pools_ext.errors import LeaseError

from .conftest import MakeApp, eventually, received
from .test_context import lent, opened

pytestmark = pytest.mark.threads


class Held:
    """A body whose publish takes as long as the test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __json__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(30)
        return "held"


def in_a_copy(executor: ThreadPoolExecutor, work: Callable[[], Any]) -> Future[Any]:
    """Run *work* in another thread, with a copy of the context variables, as asyncio.to_thread and asgiref do."""
    return executor.submit(contextvars.copy_context().run, work)


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_each_thread_of_a_context_has_its_own_producer(app: Flask, pools: KombuPools) -> None:
    together = threading.Barrier(3)

    def use() -> Any:
        together.wait()
        first = pools.producer
        assert pools.producer is first
        return first

    with ThreadPoolExecutor(3) as executor:
        with app.app_context():
            mine = pools.producer
            theirs = [one.result() for one in [in_a_copy(executor, use) for _ in range(3)]]
            assert len({id(one) for one in (mine, *theirs)}) == lent(app) == 4
            assert pools.producer is mine
        # Whoever keeps one, and though the executor's threads live on.
        assert lent(app) == 0
    with pytest.raises(LeaseError, match="released"):
        theirs[0].publish({}, routing_key="queue")
    assert opened(app) == 4


@pytest.mark.filterwarnings("ignore::kombu_pools_ext.errors.BlockingInEventLoop")
def test_each_task_of_a_context_has_its_own_producer(app: Flask, pools: KombuPools) -> None:
    async def use() -> Any:
        first = pools.producer
        await asyncio.sleep(0)
        assert pools.producer is first
        return first

    async def all_at_once() -> list[Any]:
        return [pools.producer, *await asyncio.gather(use(), use())]

    with app.app_context():
        mine = pools.producer
        theirs = asyncio.run(all_at_once())
        assert len({id(one) for one in (mine, *theirs)}) == lent(app) == 4
        assert pools.producer is mine
    assert lent(app) == 0


@pytest.mark.filterwarnings("ignore::kombu_pools_ext.errors.BlockingInEventLoop")
def test_the_producer_of_an_ended_task_goes_to_the_next_one(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=0.1)

    async def use() -> None:
        pools.producer.publish({}, routing_key="queue")

    async def one_after_the_other() -> None:
        kept = []
        for _ in range(5):
            kept.append(asyncio.ensure_future(use()))
            await kept[-1]

    with app.app_context():
        asyncio.run(one_after_the_other())
        assert lent(app) == 1
    assert lent(app) == 0


def test_the_producer_of_an_ended_thread_goes_to_the_next_one(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=0.1)
    with app.app_context():
        for _ in range(3):
            with ThreadPoolExecutor(1) as executor:
                in_a_copy(executor, lambda: pools.producer.publish({}, "queue")).result()
        pools.producer.publish({}, "queue")
        assert lent(app) == 1
    assert lent(app) == 0


def test_an_error_that_nothing_is_free_says_what_the_context_holds(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=0)
    app.extensions["kombu_pools"].wait_ready(30)
    with app.app_context(), ThreadPoolExecutor(1) as executor:
        pools.producer
        for use in (lambda: pools.producer, lambda: pools.publish({}, "queue")):
            with pytest.raises(LimitExceeded) as caught:
                in_a_copy(executor, use).result()
            (note,) = caught.value.__notes__
            assert "this application context itself holds 1 of 'default'" in note


# -- publishing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_threads_of_one_request_publish_each_message_once(
    request: pytest.FixtureRequest, make_app: MakeApp, pools: KombuPools, queue: str, scheme: str
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    app = make_app(URL=url, CONFIRM_TIMEOUT=3)
    declared = kombu.Queue(queue, durable=False)
    executor = ThreadPoolExecutor(4)

    @app.before_request
    def hook() -> None:
        pools.producer.publish("hook", queue, declare=[declared])

    def both(number: int) -> None:
        pools.publish(f"alone {number}", queue)
        pools.producer.publish(f"producer {number}", queue)

    @app.get("/")
    def view() -> str:
        done = [in_a_copy(executor, partial(both, number)) for number in range(8)]
        for one in done:
            one.result()
        pools.producer.publish("view", queue)
        return "published"

    with kombu.Connection(url) as connection, executor:
        try:
            for _ in range(3):
                assert app.test_client().get("/").text == "published"
            bodies = received(url, queue)
        finally:
            declared(connection.default_channel).delete()
    once = ["hook", "view", *(f"{how} {n}" for how in ("alone", "producer") for n in range(8))]
    assert sorted(bodies) == sorted(once * 3)
    stats = app.extensions["kombu_pools"].connections["default"].stats()
    assert stats.lent == 0
    assert "broken" not in stats.closed


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_an_async_view_publishes_in_threads_beside_a_hook(
    request: pytest.FixtureRequest, make_app: MakeApp, pools: KombuPools, queue: str, scheme: str
) -> None:
    asgiref = pytest.importorskip("asgiref.sync")
    url = request.getfixturevalue(f"{scheme}_url")
    app = make_app(URL=url, CONFIRM_TIMEOUT=3)
    declared = kombu.Queue(queue, durable=False)

    @app.before_request
    def hook() -> None:
        pools.producer.publish("hook", queue, declare=[declared])

    @app.get("/")
    async def view() -> str:
        publish = asgiref.sync_to_async(pools.publish)
        apart = asgiref.sync_to_async(pools.publish, thread_sensitive=False)
        await asyncio.gather(
            *(asyncio.to_thread(pools.publish, f"thread {n}", queue) for n in range(4)),
            *(publish(f"sensitive {n}", queue) for n in range(4)),
            *(apart(f"apart {n}", queue) for n in range(4)),
        )
        await pools.apublish("view", queue)
        return "published"

    with kombu.Connection(url) as connection:
        try:
            for _ in range(3):
                assert app.test_client().get("/").text == "published"
            bodies = received(url, queue)
        finally:
            declared(connection.default_channel).delete()
    hows = ("thread", "sensitive", "apart")
    assert sorted(bodies) == sorted(
        ["hook", "view", *(f"{how} {n}" for how in hows for n in range(4))] * 3
    )
    stats = app.extensions["kombu_pools"].connections["default"].stats()
    assert stats.lent == 0
    assert "broken" not in stats.closed


def test_a_copied_request_context_has_a_producer_of_its_own(app: Flask, pools: KombuPools) -> None:
    executor = ThreadPoolExecutor(1)

    @app.get("/")
    def view() -> str:
        mine = pools.producer

        @copy_current_request_context
        def elsewhere() -> Any:
            pools.producer.publish({}, "queue")
            return pools.producer

        assert executor.submit(elsewhere).result() is not mine
        mine.publish({}, "queue")
        return str(lent(app))

    with executor:
        app.test_client().get("/")
    assert lent(app) == 0


def test_a_publish_within_a_publish_has_its_own_producer(app: Flask, pools: KombuPools) -> None:
    class Nested:
        def __json__(self) -> str:
            pools.publish("inner", "nested")
            return "outer"

    with app.app_context():
        pools.producer.publish(Nested(), "nested")
        assert opened(app) == 2
        assert lent(app) == 1
    assert lent(app) == 0


# -- the end of the context --------------------------------------------------------------------------------------------


def test_a_publish_of_another_thread_at_the_end_of_the_context_succeeds(
    make_app: MakeApp, pools: KombuPools, amqp_url: str, amqp_queue: str
) -> None:
    app = make_app(URL=amqp_url, CONNECTION_NAME=amqp_queue)
    body = Held()
    with ThreadPoolExecutor(1) as executor:
        with app.app_context():
            pools.producer
            under_way = in_a_copy(executor, lambda: pools.producer.publish(body, amqp_queue))
            assert body.begun.wait(30)
        assert lent(app) == 1
        body.go_on.set()
        under_way.result(30)
    assert lent(app) == 0
    assert received(amqp_url, amqp_queue) == ["held"]
    assert opened(app) == 2


def test_an_open_batch_of_another_thread_at_the_end_of_the_context_is_sent(
    make_app: MakeApp, pools: KombuPools, amqp_url: str, amqp_queue: str
) -> None:
    app = make_app(URL=amqp_url, CONNECTION_NAME=amqp_queue)
    begun, go_on = threading.Event(), threading.Event()

    def several() -> None:
        with pools.producer as producer, producer.batch() as batch:
            producer.publish(1, amqp_queue)
            batch.flush()
            begun.set()
            assert go_on.wait(30)
            producer.publish(2, amqp_queue)

    with ThreadPoolExecutor(1) as executor:
        with app.app_context():
            under_way = in_a_copy(executor, several)
            assert begun.wait(30)
        assert lent(app) == 1
        go_on.set()
        under_way.result(30)
    assert lent(app) == 0
    assert received(amqp_url, amqp_queue) == [1, 2]


def test_a_producer_acquired_after_the_end_of_the_context_is_released_with_the_last_copy(
    app: Flask, pools: KombuPools
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def late() -> int:
        pools.producer.publish({}, "queue")
        begun.set()
        assert go_on.wait(30)
        pools.producer.publish({}, "queue")
        pools.producer.publish({}, "queue")
        return lent(app)

    with ThreadPoolExecutor(1) as executor:
        with app.app_context():
            under_way = in_a_copy(executor, late)
            assert begun.wait(30)
        assert lent(app) == 0
        go_on.set()
        assert under_way.result(30) == 1
        del under_way
        gc.collect()
        eventually(lambda: lent(app) == 0)
    assert opened(app) == 1


def test_a_context_that_ends_while_a_thread_waits_for_a_producer_leaves_nothing_lent(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=30)
    pool = app.extensions["kombu_pools"].connections["default"]
    with ThreadPoolExecutor(1) as executor:
        elsewhere = app.extensions["kombu_pools"].producers["default"].acquire()
        with app.app_context():
            waiting = in_a_copy(executor, lambda: pools.producer.publish({}, "queue"))
            # There is something to end: the thread that waits has looked for what the context holds.
            eventually(lambda: pool.stats().waiting)
        elsewhere.release()
        waiting.result(30)
        del waiting
        gc.collect()
        eventually(lambda: lent(app) == 0)
    assert opened(app) == 1


def test_an_error_of_one_thread_does_not_close_another_threads_connection(
    app: Flask, pools: KombuPools
) -> None:
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ConnectionResetError), app.app_context():
            in_a_copy(executor, lambda: pools.producer.publish({}, "queue")).result()
            raise ConnectionResetError("of the application")
        assert lent(app) == 0
    with app.app_context():
        pools.producer.publish({}, "queue")
    assert opened(app) == 1
