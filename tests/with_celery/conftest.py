"""What the tests with Celery share: applications that publish over an alias, and what is in their queues."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import adopt
from tests.broker.common import eventually
from tests.broker.conftest import _put_back  # noqa: F401  # a fixture
from tests.broker.rig import broker_url, node, nowhere, proxied  # noqa: F401  # fixtures

MakePools = Callable[..., Pools]


@pytest.fixture
def make_pools() -> Iterator[MakePools]:
    """Makes an alias with pools of its own; afterwards nothing of it may be lent."""
    made: list[Pools] = []

    def make(url: str, **settings: Any) -> Pools:
        own = {}
        if url.startswith("amqp"):
            own = {"TRANSPORT_OPTIONS": {"client_properties": {"test": uuid.uuid4().hex}}}
        made.append(Pools({"default": {"URL": url, **own, **settings}}))
        return made[-1]

    yield make
    for pools in made:
        eventually(lambda pools=pools: pools.connections["default"].stats().lent == 0)
        pools.connections["default"].force_close_all()


@pytest.fixture(params=["leased", "shared"])
def pools(request: pytest.FixtureRequest, amqp_url: str, make_pools: MakePools) -> Pools:
    """An alias on RabbitMQ, over each road."""
    return make_pools(amqp_url, PUBLISH_OVER=request.param)


@pytest.fixture
def make_app() -> Iterator[Callable[..., celery.Celery]]:
    """Makes an application whose queue, of a name of its own, goes with the test."""
    made: list[celery.Celery] = []

    def make(url: str, pools: Any = None, *, cls: Any = celery.Celery, **conf: Any) -> Any:
        app = cls(f"shop-{uuid.uuid4().hex}", broker=url, set_as_current=False)
        queue = app.main
        app.conf.update(
            broker_connection_retry_on_startup=False,
            task_ignore_result=True,
            task_default_queue=queue,
            task_default_exchange=queue,
            task_default_routing_key=queue,
            control_exchange=queue,
            event_exchange=f"{queue}-events",
            worker_hijack_root_logger=False,
            **conf,
        )
        made.append(app)
        if pools is not None:
            adopt(app, pools=pools)

        @app.task(name="add", shared=False)
        def add(a: Any = 1, b: Any = 2) -> Any:
            return a + b

        return app

    yield make
    for app in made:
        url = app.conf.broker_url
        app.close()
        if url.startswith("amqp"):
            with kombu.Connection(url, connect_timeout=1) as connection:
                try:
                    connection.ensure_connection(max_retries=1, timeout=1)
                except Exception:
                    # A broker of the test's own has ended by now.
                    continue
                kombu.Queue(app.main)(connection.default_channel).delete()
                for exchange in (app.main, f"{app.main}-events", f"{app.main}.pidbox"):
                    kombu.Exchange(exchange)(connection.default_channel).delete()


def tasks_of(app: celery.Celery, count: int = 0, queue: str | None = None) -> list[kombu.Message]:
    """Take all messages out of the queue of *app*, oldest first, once there are *count*."""
    found: list[kombu.Message] = []
    with kombu.Connection(
        app.conf.broker_url, transport_options=dict(app.conf.broker_transport_options)
    ) as connection:
        bound = app.amqp.queues[queue or app.main](connection.default_channel)
        bound.declare()

        def take() -> bool:
            while (message := bound.get(no_ack=True)) is not None:
                found.append(message)
            return len(found) >= count

        eventually(take)
    return found
