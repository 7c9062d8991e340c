"""Flask applications for the tests."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from flask import Flask

from flask_ext import KombuPools

_numbers = itertools.count(1)

MakeApp = Callable[..., Flask]


@pytest.fixture
def pools() -> KombuPools:
    return KombuPools()


@pytest.fixture
def memory_url() -> str:
    """A broker in memory whose pools only this test uses."""
    return f"memory://host{next(_numbers)}"


@pytest.fixture
def apps() -> list[Flask]:
    """The applications that `make_app` has made for this test."""
    return []


@pytest.fixture
def make_app(pools: KombuPools, memory_url: str, apps: list[Flask]) -> MakeApp:
    """An application factory: settings of ``default`` as keywords, on a broker in memory unless they say otherwise."""

    def make(config: dict[str, Any] | None = None, **settings: Any) -> Flask:
        app = Flask(f"app{next(_numbers)}")
        app.config.update(config or {"KOMBU_POOLS": {"default": {"URL": memory_url, **settings}}})
        pools.init_app(app)
        apps.append(app)
        return app

    return make


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test uses."""
    return f"with-flask-{uuid.uuid4().hex}"


@pytest.fixture
def amqp_queue(amqp_url: str, queue: str) -> Iterator[str]:
    """A queue on RabbitMQ, which is deleted after the test."""
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(queue, channel=connection.default_channel, durable=False)
        bound.declare()
        yield queue
        bound.delete()


def received(url: str, queue: str) -> list[Any]:
    """The bodies of all messages in *queue*, oldest first."""
    bodies = []
    with (
        kombu.Connection(url) as connection,
        connection.SimpleQueue(queue, no_ack=True, queue_opts={"durable": False}) as simple,
    ):
        while True:
            try:
                bodies.append(simple.get_nowait().payload)
            except simple.Empty:
                return bodies


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return what *condition* returns once it is true, because other threads need a moment."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)
    return value
