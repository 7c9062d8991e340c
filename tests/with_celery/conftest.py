"""What the tests with Celery share: applications that publish over an alias, and what is in their queues."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import adopt
from tests.broker.common import eventually
from tests.broker.conftest import _put_back  # noqa: F401  # a fixture
from tests.broker.rig import broker_url, node, nowhere, proxied  # noqa: F401  # fixtures
from tests.integration.rig import Served
from tests.with_celery.shop import make

MakePools = Callable[..., Pools]

HERE = Path(__file__).parent
#: Seconds that a task may take on a busy machine.
TASK_PATIENCE = 45.0


def _collect() -> None:
    """Collect what Celery has left: its result backends leave a connection open for each thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _collected_here() -> Iterator[None]:
    """Else the tests of another library would be blamed for it."""
    yield
    _collect()


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


class Shop:
    """An application, and processes of the same one."""

    def __init__(self, folder: Path, broker: str, backend: str, **settings: Any) -> None:
        self.queue = f"shop-{uuid.uuid4().hex}"
        self.app = make(broker, backend, self.queue, **settings)
        self._folder = folder
        self.environment = {
            "PYTHONPATH": ":".join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "BROKER": broker,
            "BACKEND": backend,
            "QUEUE": self.queue,
            "SETTINGS": json.dumps(settings),
        }

    def run(self, *arguments: str) -> Served:
        command = [sys.executable, "-m", "celery", "-A", "shop", *arguments]
        return Served(command, self.environment, self._folder, 0)

    def worker(self, kind: str, *options: str) -> Served:
        return self.run(
            *("worker", "--pool", kind, "--concurrency", "2", "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle", *options),
        )

    def ends(self, served: Served) -> None:
        """The process ends well, and has logged no error of its own."""
        served.signal(signal.SIGTERM)
        served.ends()
        wrong = re.findall("^.*(?:ERROR|CRITICAL|WARNING)/.*$", served.log, re.MULTILINE)
        assert [line for line in wrong if "as the test wants" not in line] == [], served.log

    def delete(self) -> None:
        """Delete what the broker has of it."""
        with kombu.Connection(self.app.conf.broker_url) as connection:
            channel = connection.default_channel
            kombu.Queue(self.queue)(channel).delete()
            if connection.transport.driver_type == "amqp":
                for name in (self.queue, f"{self.queue}-events", f"{self.queue}-control.pidbox"):
                    kombu.Exchange(name)(channel).delete()
        backend = self.app.backend
        if hasattr(backend, "result_consumer"):
            backend.result_consumer.stop()
        self.app.close()


MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[MakeShop]:
    made: list[Shop] = []

    def make(*args: Any, **settings: Any) -> Shop:
        made.append(Shop(tmp_path, *args, **settings))
        return made[-1]

    yield make
    for one in made:
        one.delete()
    made.clear()
    _collect()


def get(result: Any) -> Any:
    """The result of a task."""
    return result.get(timeout=TASK_PATIENCE)
