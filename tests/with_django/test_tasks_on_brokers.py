"""Django's own tasks on RabbitMQ and Redis, with real workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import django
import kombu
import pytest

if django.VERSION < (6,):
    pytest.skip("django.tasks comes with Django 6.0", allow_module_level=True)

from celery import _state
from django.test import override_settings

from django_app.conf import project_pools
from kombu_pools_ext.contrib.celery import adopt
from tests.broker.rig import proxied, through  # noqa: F401  # a fixture
from tests.integration.rig import Served, eventually
from tests.proxy import TO_CLIENT, Proxy
from tests.with_django import jobs

#: Tasks of one coroutine each.
MANY = 20
#: Tasks that open the connection and declare the queue.
FIRST = 4
#: Turns of the event loop while the broker says nothing.
TURNS = 2_000


@pytest.fixture
def make_app(
    configure: Callable[..., None], queue: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., celery.Celery]]:
    """Makes an adopted application whose queues go with the test, and the setting ``TASKS``."""
    made: list[tuple[celery.Celery, Any, str]] = []

    def make(
        url: str,
        backend: Any = None,
        *,
        max_priority: int | None = None,
        broker: str | None = None,
        **settings: Any,
    ) -> Any:
        configure(URL=url, **settings)
        app = celery.Celery("office", broker=url, backend=backend, set_as_current=False)
        app.conf.update(
            task_default_queue=queue,
            task_default_exchange=queue,
            task_default_routing_key=queue,
            task_queue_max_priority=max_priority,
        )
        monkeypatch.setattr(_state, "default_app", app)
        adopt(app, pools=project_pools)
        override = override_settings(
            TASKS={"default": {"BACKEND": "django_app.tasks.CeleryBackend", "QUEUES": []}}
        )
        override.enable()
        made.append((app, override, broker or url))
        return app

    yield make
    for app, override, broker in made:
        override.disable()
        delete(broker, queue)
        app.close()


def delete(url: str, queue: str) -> None:
    with kombu.Connection(url) as connection:
        kombu.Queue(queue)(connection.default_channel).delete()
        if connection.transport.driver_type == "amqp":
            kombu.Exchange(queue)(connection.default_channel).delete()


def messages(app: celery.Celery, queue: str, count: int) -> list[kombu.Message]:
    """Take *count* messages out of *queue*, as a worker gets them."""
    with kombu.Connection(app.conf.broker_url) as connection:
        bound = app.amqp.queues[queue](connection.default_channel)
        return [eventually(lambda: bound.get(no_ack=True)) for _ in range(count)]


@pytest.mark.threads
def test_aenqueue_starts_no_thread_and_blocks_no_event_loop_while_the_broker_is_slow(
    make_app: Callable[..., Any],
    amqp_url: str,
    proxied: Callable[[str], Proxy],  # noqa: F811  # the fixture
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = proxied(amqp_url)
    app = make_app(through(proxy, amqp_url), broker=amqp_url, PUBLISH_OVER="shared")
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    async def main() -> None:
        # Until the queue is declared on the shared connection, a message takes a lease, in a thread of the pools.
        for n in range(FIRST):
            await jobs.add.aenqueue(n)
        monkeypatch.setattr(threading.Thread, "start", note)
        proxy.hold(TO_CLIENT)
        sending = [asyncio.ensure_future(jobs.add.aenqueue(n)) for n in range(MANY)]
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not any(one.done() for one in sending)
        proxy.heal()
        await asyncio.gather(*sending)

    asyncio.run(main())
    assert started == []
    assert len(messages(app, queue, FIRST + MANY)) == FIRST + MANY


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_what_is_more_urgent_comes_first(
    request: pytest.FixtureRequest, make_app: Callable[..., Any], queue: str, scheme: str
) -> None:
    app = make_app(request.getfixturevalue(f"{scheme}_url"), max_priority=10)
    for priority in (0, -100, 100, 50, -50):
        jobs.add.using(priority=priority).enqueue(priority)
    order = [message.payload[0][1][0] for message in messages(app, queue, 5)]
    if scheme == "amqp":
        assert order == [100, 50, 0, -50, -100]
    else:
        # kombu has four steps there, so that neighbours share one.
        assert order[0] == 100
        assert order[-1] == -100


# -- workers -----------------------------------------------------------------------------------------------------------

SETTINGS = """
SECRET_KEY = "for this test alone"
INSTALLED_APPS = ["django_app"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
KOMBU_POOLS = {"default": {"URL": BROKER}}
KOMBU_POOLS_CELERY = "default"
TASKS = {"default": {"BACKEND": "django_app.tasks.CeleryBackend", "QUEUES": []}}
CELERY_BROKER_URL = BROKER
CELERY_RESULT_BACKEND = RESULTS
CELERY_RESULT_EXPIRES = 600
CELERY_TASK_DEFAULT_QUEUE = QUEUE
CELERY_TASK_QUEUE_MAX_PRIORITY = 10
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
"""
CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
"""
CLIENT = """
import asyncio, sys, time
from datetime import timedelta
import django
django.setup()
from django.utils import timezone
from project import jobs

def finished(*results):
    deadline = time.monotonic() + 60
    for result in results:
        while not result.is_finished:
            assert time.monotonic() < deadline, result
            time.sleep(0.02)
            result.refresh()
    return results

async def send():
    return await asyncio.gather(*(jobs.add.aenqueue(n, b=1) for n in range(10)))

several = asyncio.run(send())
add, = finished(jobs.add.enqueue(1, b=2))
assert (add.status, add.return_value, add.errors) == ("SUCCESSFUL", 3, [])
assert add.enqueued_at <= add.started_at <= add.finished_at
assert add.attempts == 1 and add.worker_ids[0].startswith("celery@")
fails, = finished(jobs.fails.enqueue("no such thing"))
assert fails.status == "FAILED"
assert fails.errors[0].exception_class is LookupError
assert "no such thing" in fails.errors[0].traceback
tells, slowly = finished(jobs.tells.using(priority=70).enqueue(), jobs.slowly.enqueue(5))
assert tells.return_value == {
    "id": tells.id, "attempt": 1, "status": "RUNNING", "queue": "default", "priority": 70
}
assert slowly.return_value == 5
after = timezone.now() + timedelta(seconds=1.5)
later, = finished(jobs.add.using(run_after=after).enqueue(1))
assert later.started_at >= after, later
assert [one.return_value for one in finished(*several)] == [n + 1 for n in range(10)]
assert asyncio.run(jobs.add.aget_result(add.id)) == add
if "prefork" in sys.argv:
    exits, = finished(jobs.exits.enqueue())
    assert exits.errors[0].exception_class is SystemExit, exits
    lost, = finished(jobs.ends_the_process.enqueue())
    assert lost.status == "FAILED", lost
    assert lost.errors[0].exception_class.__name__ == "WorkerLostError", lost
"""


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., None]:
    """Makes a Django project, as Celery's documentation has it."""

    def make(broker: str, results: str, queue: str) -> None:
        folder = tmp_path / "project"
        folder.mkdir()
        told = f"BROKER, RESULTS, QUEUE = {broker!r}, {results!r}, {queue!r}\n"
        (folder / "settings.py").write_text(told + SETTINGS)
        (folder / "celery.py").write_text(CELERY)
        (folder / "__init__.py").write_text("from .celery import app as celery_app\n")
        own = (
            Path(jobs.__file__)
            .read_text()
            .replace('@task(queue_name="mail", priority=50)', "@task")
        )
        (folder / "jobs.py").write_text(own)
        (tmp_path / "client.py").write_text(textwrap.dedent(CLIENT))

    return make


@pytest.mark.threads
@pytest.mark.parametrize(
    "scheme, kind", [("amqp", "prefork"), ("amqp", "threads"), ("redis", "solo")]
)
def test_a_real_worker(
    request: pytest.FixtureRequest,
    project: Callable[..., None],
    redis_url: str,
    tmp_path: Path,
    scheme: str,
    kind: str,
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    queue = f"office-{uuid.uuid4().hex}"
    project(url, redis_url, queue)
    environment = {"DJANGO_SETTINGS_MODULE": "project.settings"}
    worker = [
        "worker",
        "--pool",
        kind,
        "--concurrency",
        "2",
        "--without-gossip",
        "--without-mingle",
    ]
    (tmp_path / "client").mkdir()
    try:
        with Served(
            [sys.executable, "-m", "celery", "-A", "project", *worker], environment, tmp_path, 0
        ) as served:
            search = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
            with Served(
                [sys.executable, "-P", "../client.py", kind],
                {**environment, "PYTHONPATH": os.pathsep.join(search)},
                tmp_path / "client",
                0,
            ) as asking:
                code = asking.process.wait(120)
                assert code == 0, asking.log + served.log
            served.signal(signal.SIGTERM)
            served.ends()
    finally:
        delete(url, queue)
