"""Real workers of each kind, beat and gunicorn, with an adopted application on both sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery
import kombu
import pytest
from celery import chain, chord, group

from tests.broker.common import eventually
from tests.integration.rig import Served
from tests.integration.servers import WORKERS, gunicorn
from tests.with_celery.conftest import TASK_PATIENCE, MakeShop, get
from tests.with_celery.shop import OVERDUE

pytestmark = [
    pytest.mark.threads,
    pytest.mark.timeout(280),
    # Each thread has a result backend of its own, whose connections Celery never closes.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: Tasks that several threads send at once.
MANY, THREADS = 24, 8
slow = pytest.mark.slow


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
    if not chords:
        # An rpc result goes to the thread that sent the task.
        results = [add.delay(number) for number in range(MANY)]
        assert [get(one) for one in results] == list(range(MANY))
        return

    def send(first: int) -> list[str]:
        return [add.delay(number).id for number in range(first, MANY, THREADS)]

    with ThreadPoolExecutor(THREADS) as executor:
        chunks = list(executor.map(send, range(THREADS)))
    ids = [chunks[number % THREADS][number // THREADS] for number in range(MANY)]
    assert [get(app.AsyncResult(one)) for one in ids] == list(range(MANY))


def reached(app: celery.Celery, worker: Served) -> None:
    """Remote control reaches the worker once it listens, and answers."""
    eventually(lambda: " ready." in worker.log, TASK_PATIENCE)
    (answer,) = eventually(lambda: app.control.ping(timeout=3, limit=1), TASK_PATIENCE)
    assert list(answer.values()) == [{"ok": "pong"}]
    inspect = app.control.inspect(timeout=10, limit=1)
    assert "add" in next(iter(inspect.registered().values()))
    app.control.rate_limit("fails", "1000/m")


#: All but one are slow: that one runs with each release of Celery, Python and RabbitMQ.
@pytest.mark.parametrize(
    "kind, road",
    [
        *(pytest.param(kind, "leased", marks=slow) for kind in ("solo", "threads", "prefork")),
        *(pytest.param(kind, "shared", marks=slow) for kind in ("solo", "threads")),
        *(pytest.param("gevent", road, marks=slow) for road in ("leased", "shared")),
        ("prefork", "shared"),
    ],
)
def test_a_worker_of_each_kind_on_rabbitmq(
    kind: str, road: str, make_shop: MakeShop, amqp_url: str, redis_url: str
) -> None:
    shop = make_shop(amqp_url, redis_url, PUBLISH_OVER=road)
    with shop.worker(kind) as worker:
        reached(shop.app, worker)
        play(shop.app, chords=True)
        shop.ends(worker)


@slow
@pytest.mark.parametrize("kind", ["threads", "prefork"])
def test_results_over_rpc(kind: str, make_shop: MakeShop, amqp_url: str) -> None:
    shop = make_shop(amqp_url, "rpc://", PUBLISH_OVER="shared")
    with shop.worker(kind) as worker:
        reached(shop.app, worker)
        play(shop.app, chords=False)
        shop.ends(worker)


@slow
@pytest.mark.parametrize("kind", ["solo", "threads", "prefork", "gevent"])
def test_a_worker_on_redis(kind: str, make_shop: MakeShop, redis_url: str) -> None:
    shop = make_shop(redis_url, redis_url)
    with shop.worker(kind) as worker:
        reached(shop.app, worker)
        play(shop.app, chords=True)
        shop.ends(worker)


@slow
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

            eventually(all_are_heard, TASK_PATIENCE)
            shop.ends(worker)


@slow
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


@slow
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
        timeout=TASK_PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    assert "CannotAdopt: the broker of the Celery app" in done.stderr


@slow
def test_beat_sends_over_the_alias(make_shop: MakeShop, amqp_url: str, redis_url: str) -> None:
    shop = make_shop(amqp_url, redis_url)
    with shop.run("beat", "--loglevel", "DEBUG", "--schedule", f"{shop.queue}.schedule") as beat:
        with kombu.Connection(amqp_url) as connection:
            bound = shop.app.amqp.queues[shop.queue](connection.default_channel)
            bound.declare()
            found = [
                eventually(lambda: bound.get(no_ack=True), TASK_PATIENCE) for _ in range(OVERDUE)
            ]
        # Celery's own publishing has none.
        assert all(one.properties.get("message_id") for one in found), beat.log
        assert sorted(one.payload[0][0] for one in found) == list(range(OVERDUE))
        # A signal closes the schedule wherever beat is, and while it sends that is an error of Celery's own.
        eventually(lambda: "beat: Waking up" in beat.log, TASK_PATIENCE)
        beat.signal(signal.SIGTERM)
        beat.ends()
        assert "Traceback" not in beat.log, beat.log


@slow
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
