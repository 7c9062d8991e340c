"""A Flask application on real brokers: what a consumer gets, and what happens when a connection breaks."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, current_app, request, stream_with_context

from flask_ext import KombuPools

from .conftest import MakeApp, received


@pytest.fixture
def app(make_app: MakeApp, pools: KombuPools, amqp_url: str, amqp_queue: str) -> Flask:
    app = make_app(URL=amqp_url, LIMIT=4, CONNECTION_NAME=amqp_queue, ACQUIRE_TIMEOUT=30)

    @app.post("/publish/<int:number>")
    def publish(number: int) -> str:
        pools.publish({"id": number}, amqp_queue)
        return "published"

    @app.post("/producer/<int:number>")
    def producer(number: int) -> str:
        pools.producer.publish({"id": number}, routing_key=amqp_queue)
        return "published"

    @app.post("/stream")
    def stream() -> Response:
        @stream_with_context
        def rows() -> Any:
            for number in range(int(request.args["rows"])):
                pools.producer.publish({"id": number}, routing_key=amqp_queue)
                yield f"{number}\n"

        return Response(rows())

    @app.post("/cut/<int:number>")
    def cut(number: int) -> str:
        held = pools.producer
        held.connection.connection.sock.shutdown(socket.SHUT_RDWR)
        if "state" in request.args:
            current_app.extensions["kombu_pools"].publish({"id": number}, amqp_queue)
        else:
            held.publish({"id": number}, routing_key=amqp_queue)
        return "published"

    return app


def stats(app: Flask) -> Any:
    return app.extensions["kombu_pools"].connections["default"].stats()


@pytest.mark.threads
@pytest.mark.parametrize("path", ["publish", "producer"])
def test_twenty_threads_on_four_connections(
    app: Flask, amqp_url: str, amqp_queue: str, path: str
) -> None:
    def load(thread: int) -> list[int]:
        client = app.test_client()
        return [client.post(f"/{path}/{thread * 25 + n}").status_code for n in range(25)]

    with ThreadPoolExecutor(20) as executor:
        codes = [code for each in executor.map(load, range(20)) for code in each]
    assert codes == [200] * 500
    ids = [body["id"] for body in received(amqp_url, amqp_queue)]
    assert sorted(ids) == list(range(500))
    now = stats(app)
    assert now.opened <= 4
    assert (now.lent, now.timeouts, now.refused) == (0, 0, 0)


def test_a_stream_publishes_from_its_context(app: Flask, amqp_url: str, amqp_queue: str) -> None:
    assert app.test_client().post("/stream?rows=5").text == "0\n1\n2\n3\n4\n"
    assert received(amqp_url, amqp_queue) == [{"id": number} for number in range(5)]
    assert (stats(app).lent, stats(app).opened) == (0, 1)


def test_a_broken_connection_fails_no_request_and_is_not_lent_again(
    app: Flask, amqp_url: str, amqp_queue: str
) -> None:
    client = app.test_client()
    assert client.post("/cut/1").status_code == 200
    assert stats(app).closed == {"broken": 1}
    assert client.post("/producer/2").status_code == 200
    assert received(amqp_url, amqp_queue) == [{"id": 1}, {"id": 2}]


def test_without_retries_a_broken_connection_fails_one_request(
    make_app: MakeApp, pools: KombuPools, amqp_url: str, amqp_queue: str
) -> None:
    app = make_app(URL=amqp_url, RETRY=None, CONNECTION_NAME=amqp_queue)

    @app.post("/cut/<int:number>")
    def cut(number: int) -> str:
        if number == 1:
            pools.producer.connection.connection.sock.shutdown(socket.SHUT_RDWR)
        pools.producer.publish({"id": number}, routing_key=amqp_queue)
        return "published"

    client = app.test_client()
    assert client.post("/cut/1").status_code == 500
    assert stats(app).size == 0
    assert client.post("/cut/2").status_code == 200
    assert received(amqp_url, amqp_queue) == [{"id": 2}]


def test_publish_tries_again_with_another_producer_for_the_context(
    app: Flask, amqp_url: str, amqp_queue: str
) -> None:
    assert app.test_client().post("/cut/1?state").status_code == 200
    assert received(amqp_url, amqp_queue) == [{"id": 1}]
    assert (stats(app).lent, stats(app).opened) == (0, 2)


def test_a_view_publishes_to_redis(
    make_app: MakeApp, pools: KombuPools, redis_url: str, queue: str
) -> None:
    app = make_app(URL=redis_url)
    with app.app_context():
        pools.publish({"id": 1}, queue)
        pools.producer.publish({"id": 2}, routing_key=queue)
        pools.producer.connection.default_channel.client.delete(queue)


@pytest.mark.forks
def test_parent_and_child_publish_after_a_fork(app: Flask, amqp_url: str, amqp_queue: str) -> None:
    client = app.test_client()
    assert client.post("/producer/1").status_code == 200
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = client.post("/producer/2").status_code != 200
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.post("/producer/3").status_code == 200
    ids = [body["id"] for body in received(amqp_url, amqp_queue)]
    assert ids == [1, 2, 3]
    # The parent's connection is the one it had.
    assert stats(app).opened == 1
