"""The producer of an application context: one for each context, until it ends, whatever happens in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import amqp
import kombu
import pytest
from flask import Flask, Response, abort, current_app, g, stream_with_context
from kombu.exceptions import LimitExceeded, OperationalError

from flask_ext import KombuPools
from flask_ext.context import NAME
from kombu_pools_ext.errors import LeaseError

from .conftest import MakeApp


def lent(app: Flask) -> int:
    count: int = app.extensions["kombu_pools"].connections["default"].lent
    return count


def opened(app: Flask) -> int:
    count: int = app.extensions["kombu_pools"].connections["default"].stats().opened
    return count


def break_next_publish(producer: Any) -> None:
    """Let the next publish on the connection of *producer* fail as on a broken socket."""

    def fail(*args: Any, **kwargs: Any) -> None:
        # What a borrower has set on a producer stays on it when it goes on with another connection.
        del producer._publish
        raise OperationalError("the socket broke")

    producer._publish = fail


# -- one producer a context --------------------------------------------------------------------------------------------


def test_a_producer_is_lent_at_the_first_use_and_released_at_the_end(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        assert lent(app) == 0
        producer = pools.producer
        assert isinstance(producer, kombu.Producer)
        assert lent(app) == 1
        assert pools.producer is pools.get_producer() is pools.get_producer("default") is producer
    assert lent(app) == 0
    with pytest.raises(LeaseError, match="released"):
        producer.publish({}, routing_key="queue")


def test_settings_on_a_producer_do_not_reach_the_next_request(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        pools.producer.serializer, pools.producer.routing_key = "pickle", "mine"
        assert pools.producer.serializer == "pickle"
    with app.app_context():
        assert (pools.producer.serializer, pools.producer.routing_key) == (None, "")
    assert opened(app) == 1


def test_a_context_without_a_use_lends_nothing(app: Flask) -> None:
    with app.app_context():
        pass
    assert opened(app) == 0


def test_each_request_has_its_own_lease_of_the_same_connection(
    app: Flask, pools: KombuPools
) -> None:
    seen = []

    @app.get("/")
    def view() -> str:
        seen.append(pools.producer)
        return "published"

    client = app.test_client()
    client.get("/")
    client.get("/")
    assert seen[0] is not seen[1]
    assert (lent(app), opened(app)) == (0, 1)


def test_each_alias_has_its_own_producer_in_a_context(
    make_app: MakeApp, pools: KombuPools, memory_url: str
) -> None:
    aliases = {"default": {"URL": memory_url}, "audit": {"URL": f"{memory_url}b"}}
    app = make_app({"KOMBU_POOLS": aliases})
    with app.app_context():
        assert pools.producer is not pools.get_producer("audit")
        audit = pools.connections["audit"]
        assert (lent(app), audit.lent) == (1, 1)
    assert (lent(app), audit.lent) == (0, 0)


@pytest.mark.timing
@pytest.mark.parametrize("timeout", [0, 0.2])
def test_get_producer_waits_for_acquire_timeout(
    make_app: MakeApp, pools: KombuPools, timeout: float
) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=timeout)
    with app.app_context(), pools.producers["default"].acquire():
        start = time.monotonic()
        with pytest.raises(LimitExceeded):
            pools.producer
        # Less than the default, also where the machine is busy.
        assert timeout <= time.monotonic() - start < 4.5


@pytest.mark.threads
def test_acquire_timeout_none_waits_without_end(make_app: MakeApp, pools: KombuPools) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=None)
    with app.app_context():
        elsewhere = pools.producers["default"].acquire()
        back = threading.Timer(0.1, elsewhere.release)
        back.start()
        pools.producer.publish({}, routing_key="queue")
        back.join()


def test_a_producer_that_the_view_released_is_replaced(app: Flask, pools: KombuPools) -> None:
    with app.app_context():
        with pools.producer as first:
            first.publish({}, routing_key="queue")
        assert lent(app) == 0
        second = pools.producer
        assert second is not first
        second.publish({}, routing_key="queue")
        second.release()
    assert (lent(app), opened(app)) == (0, 1)


# -- how a context ends ------------------------------------------------------------------------------------------------


def test_an_ordinary_exception_keeps_the_connection(app: Flask, pools: KombuPools) -> None:
    @app.get("/")
    def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        raise KeyError("the application's own")

    assert app.test_client().get("/").status_code == 500
    app.test_client().get("/")
    assert (lent(app), opened(app)) == (0, 1)


def test_an_http_error_keeps_the_connection(app: Flask, pools: KombuPools) -> None:
    @app.get("/")
    def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        abort(404)

    assert app.test_client().get("/").status_code == 404
    app.test_client().get("/")
    assert (lent(app), opened(app)) == (0, 1)


@pytest.mark.parametrize(
    "error, connections",
    [
        (amqp.ConnectionForced("the broker went away"), 2),
        (OSError("the application's disk is full"), 1),
        (TimeoutError("of a service that the application asked"), 1),
        (OperationalError("of another broker"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_connection_closes_it_and_other_errors_do_not(
    app: Flask, pools: KombuPools, error: Exception, connections: int
) -> None:
    @app.get("/")
    def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        raise error

    client = app.test_client()
    assert client.get("/").status_code == 500
    assert client.get("/").status_code == 500
    assert (lent(app), opened(app)) == (0, connections)


@pytest.mark.parametrize("swallow", ["view", "handler"])
def test_a_broken_connection_is_closed_even_if_the_error_is_handled(
    make_app: MakeApp, pools: KombuPools, swallow: str
) -> None:
    app = make_app(RETRY=None)

    @app.get("/")
    def view() -> str:
        break_next_publish(pools.producer)
        try:
            pools.producer.publish({}, routing_key="queue")
        except OperationalError:
            if swallow == "handler":
                raise
        return "handled"

    @app.errorhandler(OperationalError)
    def handler(error: OperationalError) -> str:
        return "handled"

    client = app.test_client()
    assert client.get("/").text == "handled"
    assert client.get("/").text == "handled"
    assert (lent(app), opened(app)) == (0, 2)


def test_a_producer_whose_connection_broke_goes_on_with_another_in_the_context(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        producer = pools.producer
        break_next_publish(producer)
        producer.publish({}, routing_key="queue")
        assert pools.producer is producer
        assert (lent(app), opened(app)) == (1, 2)
    assert lent(app) == 0


def test_a_broken_producer_is_replaced_within_the_context(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(RETRY=None)
    with app.app_context():
        broken = pools.producer
        break_next_publish(broken)
        with pytest.raises(OperationalError):
            broken.publish({}, routing_key="queue")
        pools.producer.publish({}, routing_key="queue")
        assert pools.producer is not broken
        assert (lent(app), opened(app)) == (1, 2)
        with pytest.raises(LeaseError):
            broken.publish({}, routing_key="queue")


def test_the_end_of_a_context_never_raises(
    make_app: MakeApp,
    pools: KombuPools,
    memory_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(producer: Any, *error: Any) -> None:
        leave(producer, *error)
        if producer is audit:
            raise RuntimeError("from the pool")

    aliases = {"default": {"URL": memory_url}, "audit": {"URL": f"{memory_url}b"}}
    app = make_app({"KOMBU_POOLS": aliases})
    torn_down = []
    app.teardown_appcontext_funcs.insert(0, torn_down.append)
    with app.app_context():
        pools.producer
        audit = pools.get_producer("audit")
        leave = type(audit).__exit__
        monkeypatch.setattr(type(audit), "__exit__", fail)
    assert lent(app) == 0
    assert torn_down == [None]
    # In this thread: those of other tests' pools may have something to tell.
    (record,) = (one for one in caplog.records if one.thread == threading.get_ident())
    assert record.name == "kombu_pools_ext.flask"
    assert "the producer of 'audit' was not given back" in record.getMessage()


# -- nested contexts ---------------------------------------------------------------------------------------------------


def test_an_inner_context_of_the_same_app_has_its_own_producer(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        outer = pools.producer
        with app.app_context():
            inner = pools.producer
            assert inner is not outer
            assert lent(app) == 2
        assert lent(app) == 1
        assert pools.producer is outer
        outer.publish({}, routing_key="queue")
    assert lent(app) == 0


def test_an_inner_context_of_another_app_has_its_own_producer(
    make_app: MakeApp, pools: KombuPools
) -> None:
    one, two = make_app(LIMIT=2), make_app(LIMIT=3)
    with one.app_context():
        outer = pools.producer
        with two.app_context():
            assert pools.producer is not outer
            assert (lent(one), lent(two)) == (1, 1)
        assert (lent(one), lent(two)) == (1, 0)
        assert pools.producer is outer
        outer.publish({}, routing_key="queue")


def test_a_request_of_another_app_within_a_request_has_its_own_producer(
    make_app: MakeApp, pools: KombuPools
) -> None:
    outside, inside = make_app(LIMIT=2), make_app(LIMIT=3)

    @inside.get("/")
    def inner() -> str:
        pools.producer.publish({}, routing_key="queue")
        return f"{lent(outside)} {lent(inside)}"

    @outside.get("/")
    def outer() -> str:
        producer = pools.producer
        text = inside.test_client().get("/").text
        assert pools.producer is producer
        producer.publish({}, routing_key="queue")
        return f"{text}, {lent(outside)} {lent(inside)}"

    assert outside.test_client().get("/").text == "1 1, 1 0"
    assert lent(outside) == 0


def test_a_request_within_a_context_of_its_app_publishes_and_keeps_the_outer_producer(
    app: Flask, pools: KombuPools
) -> None:
    # Flask 3.1 gives such a request the context's g; later ones may not. The outer producer is good either way.
    with app.app_context():
        outer = pools.producer
        with app.test_request_context():
            pools.producer.publish({}, routing_key="queue")
        assert pools.producer is outer
        outer.publish({}, routing_key="queue")
    assert lent(app) == 0


def test_the_state_of_one_app_in_the_context_of_another_is_a_clear_error(
    make_app: MakeApp,
) -> None:
    one, two = make_app(), make_app()
    with (
        two.app_context(),
        pytest.raises(RuntimeError, match=f"in a context of '{two.name}', which is another"),
    ):
        one.extensions["kombu_pools"].producer


# -- what Flask leaves open --------------------------------------------------------------------------------------------


def test_g_gets_only_one_private_name(app: Flask, pools: KombuPools) -> None:
    with app.app_context():
        pools.producer
        assert list(g) == [NAME]
        assert NAME.startswith("_")


def test_an_app_may_have_a_g_of_its_own_kind(app: Flask, pools: KombuPools) -> None:
    class Slim:
        pass

    app.app_ctx_globals_class = Slim  # type: ignore[assignment]
    with app.app_context():
        assert pools.producer is pools.producer
    assert lent(app) == 0


def test_a_test_client_that_keeps_its_contexts_releases_at_its_end(
    app: Flask, pools: KombuPools
) -> None:
    @app.get("/")
    def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        return "published"

    with app.test_client() as client:
        client.get("/")
        assert lent(app) == 0
        # The request's context is there still, after its teardown: what is lent in it now goes back later.
        assert current_app == app
        pools.producer.publish({}, routing_key="queue")
    assert lent(app) == 0


def test_a_command_has_a_context(app: Flask, pools: KombuPools) -> None:
    @app.cli.command("publish")
    def publish() -> None:
        pools.producer.publish({}, routing_key="queue")
        print(lent(app))

    result = app.test_cli_runner().invoke(args=["publish"])
    assert (result.output, result.exit_code) == ("1\n", 0)
    assert lent(app) == 0


@pytest.mark.filterwarnings("ignore::kombu_pools_ext.errors.BlockingInEventLoop")
def test_an_async_view_has_a_producer(app: Flask, pools: KombuPools) -> None:
    pytest.importorskip("asgiref")

    @app.get("/")
    async def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        return "published"

    assert app.test_client().get("/").text == "published"
    assert (lent(app), opened(app)) == (0, 1)


# -- streams -----------------------------------------------------------------------------------------------------------


def streaming(app: Flask, rows: Callable[[], Iterator[str]]) -> None:
    @app.get("/")
    def view() -> Response:
        return Response(rows())


def test_a_stream_with_its_context_has_one_producer_to_its_end(
    app: Flask, pools: KombuPools
) -> None:
    seen: list[Any] = []
    counts = []

    @stream_with_context
    def rows() -> Iterator[str]:
        for number in range(3):
            pools.producer.publish({"id": number}, routing_key="queue")
            seen.append(pools.producer)
            counts.append(lent(app))
            yield f"{number} "

    streaming(app, rows)
    assert app.test_client().get("/").text == "0 1 2 "
    assert len(set(map(id, seen))) == 1
    assert counts == [1, 1, 1]
    assert (lent(app), opened(app)) == (0, 1)


def test_a_stream_may_follow_a_view_that_published(app: Flask, pools: KombuPools) -> None:
    @app.get("/")
    def view() -> Response:
        pools.producer.publish({}, routing_key="queue")

        @stream_with_context
        def rows() -> Iterator[str]:
            pools.producer.publish({}, routing_key="queue")
            yield str(lent(app))

        return Response(rows())

    assert app.test_client().get("/").text == "1"
    assert (lent(app), opened(app)) == (0, 1)


def test_a_stream_that_the_client_leaves_releases_its_producer(
    app: Flask, pools: KombuPools
) -> None:
    @stream_with_context
    def rows() -> Iterator[str]:
        while True:
            pools.producer.publish({}, routing_key="queue")
            yield "more"

    streaming(app, rows)
    response = app.test_client().get("/", buffered=False)
    body = iter(response.response)
    next(body)
    assert lent(app) == 1
    response.close()
    # Nothing was wrong with the connection.
    assert (lent(app), opened(app)) == (0, 1)
    app.test_client().get("/", buffered=False).close()
    assert opened(app) == 1


def test_a_stream_that_fails_releases_its_producer(app: Flask, pools: KombuPools) -> None:
    @stream_with_context
    def rows() -> Iterator[str]:
        pools.producer.publish({}, routing_key="queue")
        yield "one"
        raise KeyError("the application's own")

    streaming(app, rows)
    response = app.test_client().get("/")
    with pytest.raises(KeyError):
        response.get_data()
    assert (lent(app), opened(app)) == (0, 1)


def test_a_stream_without_its_context_cannot_use_what_the_view_kept(
    app: Flask, pools: KombuPools
) -> None:
    @app.get("/")
    def view() -> Response:
        producer = pools.producer

        def rows() -> Iterator[str]:
            producer.publish({}, routing_key="queue")
            yield "never"

        return Response(rows())

    with pytest.raises(LeaseError, match="released; acquire a new one"):
        app.test_client().get("/").get_data()
    assert (lent(app), opened(app)) == (0, 1)


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@pytest.mark.parametrize("use", ["producer", "publish", "both"])
def test_twenty_threads_on_four_connections(
    make_app: MakeApp, pools: KombuPools, use: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(LIMIT=4, ACQUIRE_TIMEOUT=30)
    most = 0

    @app.get("/")
    def view() -> str:
        nonlocal most
        if use != "publish":
            pools.producer.publish({}, routing_key="queue")
            most = max(most, lent(app))
        if use != "producer":
            pools.publish({}, "queue")
        return "published"

    def load(_: int) -> list[int]:
        client = app.test_client()
        return [client.get("/").status_code for _ in range(25)]

    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(20) as executor:
        codes = [code for each in executor.map(load, range(20)) for code in each]
    assert codes == [200] * 500
    assert most <= 4
    stats = app.extensions["kombu_pools"].connections["default"].stats()
    assert (stats.lent, stats.timeouts, stats.refused) == (0, 0, 0)
    assert stats.opened <= 4
