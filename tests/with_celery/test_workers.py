"""Real workers of each kind, beat and gunicorn, with an adopted application on both sides."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
from celery import chain, chord, group

from tests.broker.common import eventually
from tests.integration.rig import Served
from tests.integration.servers import WORKERS, gunicorn
from tests.with_celery.shop import make

pytestmark = [pytest.mark.slow, pytest.mark.threads, pytest.mark.timeout(280)]

HERE = Path(__file__).parent
#: Seconds that a task may take on a busy machine.
PATIENCE = 45.0
#: Tasks that several threads send at once.
MANY, THREADS = 100, 8


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
        if self.app.conf.result_backend != "disabled://":
            backend.result_consumer.stop()
        if self.app.conf.result_backend.startswith("redis"):
            backend.client.connection_pool.disconnect()
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


def get(result: Any) -> Any:
    """The result of a task."""
    return result.get(timeout=PATIENCE)


def play(app: celery.Celery, *, chords: bool) -> None:
    """Everything that goes over the pools, in the client and in the worker."""
    add, total = app.tasks["add"], app.tasks["total"]
    assert get(add.delay(1, 2)) == 3
    who = get(app.tasks["whoami"].delay())
    assert (who["producer"], who["pool"]) == ("TaskProducer", "ConnectionsFace")
    assert get(app.tasks["again"].delay(3)) == 3
    assert get(chain(add.s(1, 2), add.s(10), add.s(100)).apply_async()) == 113
    assert get(group(add.s(n, n) for n in range(5)).apply_async()) == [0, 2, 4, 6, 8]
    ids = get(app.tasks["fan"].delay(5))
    if chords:
        # An rpc result goes to who has sent the task.
        assert [get(app.AsyncResult(one)) for one in ids] == [1, 2, 3, 4, 5]
        assert get(chord([add.s(n, 1) for n in range(6)])(total.s())) == 21
        linked = add.apply_async((1, 1), link=add.s(40).set(task_id=f"{app.main}-linked"))
        assert get(linked) == 2
        assert get(app.AsyncResult(f"{app.main}-linked")) == 42
        told = app.tasks["failed"].s().set(task_id=f"{app.main}-told")
        failing = app.tasks["fails"].apply_async(link_error=told)
        assert get(app.AsyncResult(f"{app.main}-told")) == failing.id
    # Celery's backend for rpc opens a connection in each thread, and closes none.
    with ThreadPoolExecutor(THREADS if chords else 1) as executor:
        results = list((executor.map if chords else map)(add.delay, range(MANY)))
    assert [get(one) for one in results] == list(range(MANY))


def reached(app: celery.Celery) -> None:
    """Remote control reaches the worker, and answers."""
    (answer,) = eventually(lambda: app.control.ping(timeout=3, limit=1), PATIENCE)
    assert list(answer.values()) == [{"ok": "pong"}]
    inspect = app.control.inspect(timeout=10, limit=1)
    assert "add" in next(iter(inspect.registered().values()))
    app.control.rate_limit("fails", "1000/m")


@pytest.mark.parametrize("road", ["leased", "shared"])
@pytest.mark.parametrize("kind", ["solo", "threads", "prefork", "gevent"])
def test_a_worker_of_each_kind_on_rabbitmq(
    kind: str, road: str, make_shop: MakeShop, amqp_url: str, redis_url: str
) -> None:
    shop = make_shop(amqp_url, redis_url, PUBLISH_OVER=road)
    with shop.worker(kind) as worker:
        reached(shop.app)
        play(shop.app, chords=True)
        shop.ends(worker)


@pytest.mark.parametrize("kind", ["threads", "prefork"])
def test_results_over_rpc(kind: str, make_shop: MakeShop, amqp_url: str) -> None:
    shop = make_shop(amqp_url, "rpc://", PUBLISH_OVER="shared")
    with shop.worker(kind) as worker:
        reached(shop.app)
        play(shop.app, chords=False)
        shop.ends(worker)


@pytest.mark.parametrize("kind", ["solo", "prefork"])
def test_a_worker_on_redis(kind: str, make_shop: MakeShop, redis_url: str) -> None:
    shop = make_shop(redis_url, redis_url)
    with shop.worker(kind) as worker:
        reached(shop.app)
        play(shop.app, chords=True)
        shop.ends(worker)


def test_events_of_clients_and_of_workers_are_heard(
    make_shop: MakeShop, amqp_url: str, redis_url: str
) -> None:
    shop = make_shop(amqp_url, redis_url)
    with kombu.Connection(amqp_url) as connection:
        events = kombu.Exchange(shop.app.conf.event_exchange, "topic")
        listening = kombu.Queue("", events, routing_key="task.#", exclusive=True)
        bound = listening(connection.default_channel)
        bound.declare()
        with shop.worker("threads") as worker:
            sent = shop.app.tasks["add"].delay(1)
            assert get(sent) == 1
            heard: set[str] = set()

            def all_are_heard() -> bool:
                while (message := bound.get(no_ack=True)) is not None:
                    told = message.payload
                    for one in told if isinstance(told, list) else [told]:
                        if one["uuid"] == sent.id:
                            heard.add(one["type"])
                return heard >= {"task-sent", "task-received", "task-started", "task-succeeded"}

            eventually(all_are_heard, PATIENCE)
            shop.ends(worker)


def test_a_child_that_replaces_another_publishes_over_the_alias(
    make_shop: MakeShop, amqp_url: str, redis_url: str
) -> None:
    """Celery forgets its pools in a child."""
    shop = make_shop(amqp_url, redis_url, PUBLISH_OVER="shared")
    with shop.worker("prefork", "--max-tasks-per-child", "2") as worker:
        who = [get(shop.app.tasks["whoami"].delay()) for _ in range(6)]
        assert len({one["pid"] for one in who}) >= 3
        assert {one["producer"] for one in who} == {"TaskProducer"}
        ids = get(shop.app.tasks["fan"].delay(3))
        assert [get(shop.app.AsyncResult(one)) for one in ids] == [1, 2, 3]
        shop.ends(worker)


def test_a_worker_whose_broker_is_not_the_aliass_does_not_start(
    make_shop: MakeShop, amqp_url: str, redis_url: str, tmp_path: Path
) -> None:
    shop = make_shop(amqp_url, redis_url)
    shop.environment["SETTINGS"] = json.dumps({"URL": redis_url})
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", "worker", "--pool", "solo"],
        cwd=tmp_path,
        env={**os.environ, **shop.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    assert "CannotAdopt: the broker of the Celery app" in done.stderr


def test_beat_sends_over_the_alias(make_shop: MakeShop, amqp_url: str, redis_url: str) -> None:
    shop = make_shop(amqp_url, redis_url)
    with shop.run("beat", "--loglevel", "INFO", "--schedule", f"{shop.queue}.schedule") as beat:
        with kombu.Connection(amqp_url) as connection:
            bound = shop.app.amqp.queues[shop.queue](connection.default_channel)
            bound.declare()
            found = [
                eventually(lambda: bound.get(no_ack=True), PATIENCE).properties for _ in range(3)
            ]
        # Celery's own publishing has none.
        assert all(one.get("message_id") for one in found), beat.log
        beat.signal(signal.SIGTERM)
        beat.ends()
        assert "Traceback" not in beat.log, beat.log


def test_gunicorn_preloaded(make_shop: MakeShop, amqp_url: str, tmp_path: Path) -> None:
    """The process that forks the workers has sent a task, and has a connection."""
    shop = make_shop(amqp_url, "disabled://", PUBLISH_OVER="shared")
    environment = {**shop.environment, "SENDS_AT_IMPORT": "1"}
    with gunicorn(environment, tmp_path, "--preload", application="shop:application") as server:
        server.wait_for_workers(WORKERS)
        asked = 40
        with ThreadPoolExecutor(4) as executor:
            who = list(executor.map(lambda _: server.get("/"), range(asked)))
        assert {one["producer"] for one in who} == {"TaskProducer"}
        server.signal(signal.SIGTERM)
        server.ends()
        log = server.log
    assert "Traceback" not in log, log
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(shop.queue)(connection.default_channel)
        sent = []
        while (message := bound.get(no_ack=True)) is not None:
            sent.append(message.payload[0][0])
    assert sent[0] == 0
    assert {one["pid"] for one in who} <= set(sent)
    assert len(sent) > asked
