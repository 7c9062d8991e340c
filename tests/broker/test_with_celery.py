"""Celery's own use of kombu's pools, and ours, side by side in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import celery
import kombu.pools
import pytest
from kombu import Connection
from kombu.exceptions import ConnectionLimitExceeded

from kombu_pools_ext import connections, get_limit, pools, producers, reset, set_limit

from .common import KOMBU, PATIENCE
from .conftest import Inbox

MakeInbox = Callable[[str], Inbox]


@pytest.fixture
def app(amqp_url: str) -> Iterator[celery.Celery]:
    """An application with three connections for publishing."""
    app = celery.Celery("shop", broker=amqp_url, set_as_current=False)
    app.conf.update(
        broker_pool_limit=3,
        broker_connection_retry_on_startup=False,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
    )
    yield app
    app.close()


@pytest.fixture
def send(app: celery.Celery) -> Callable[[str, int], Any]:
    """Sends a task to a queue, as `task.delay()` does."""

    @app.task(name="shop.add")
    def add(number: int) -> None:
        """Never run here."""

    def send(queue: str, number: int) -> Any:
        return add.apply_async(args=[number], queue=queue, retry=False)

    app.conf.task_create_missing_queues = True
    app.conf.task_queues = ()
    app.amqp.queues.create_missing = True
    return send


def numbers(inbox: Inbox, count: int) -> list[Any]:
    """The arguments of the tasks in a queue, and whatever else is in it, once there are *count* messages."""
    return [
        body[0][0] if isinstance(body, list) else body
        for body in (message.payload for message in inbox.messages(count))
    ]


@pytest.fixture
def tasks(amqp_url: str, queue: str, app: celery.Celery) -> Iterator[Inbox]:
    """A queue as Celery declares them."""
    made = Inbox(amqp_url, queue)
    app.amqp.queues.add(kombu.Queue(queue, durable=False, exchange=""))
    yield made
    made.delete()


Send = Callable[[str, int], Any]


def test_each_has_a_limit_of_its_own(app: celery.Celery, amqp_url: str, memory_url: str) -> None:
    ours = connections[amqp_url]
    assert app.pool.limit == KOMBU.get_limit() == 3
    assert (ours.limit, get_limit()) == (10, 10)
    set_limit(20)
    assert (ours.limit, get_limit()) == (20, 20)
    assert app.pool.limit == app.amqp.producer_pool.limit == KOMBU.get_limit() == 3
    KOMBU.set_limit(4)
    assert app.pool.limit == 4
    assert (ours.limit, connections[memory_url].limit, get_limit()) == (20, 10 * 2, 20)


def test_celery_sets_its_limit_while_ours_are_in_use(app: celery.Celery, amqp_url: str) -> None:
    # Pools of ours in kombu's groups would be shrunk, and refuse it: inside Celery.
    lent = [connections[amqp_url].acquire(timeout=PATIENCE) for _ in range(5)]
    with app.pool.acquire(block=True) as theirs:
        assert theirs.connected or theirs.connect()
    for one in lent:
        assert one.connected
        one.release()


def test_ours_are_limited_while_celerys_are_in_use(app: celery.Celery, amqp_url: str) -> None:
    with app.pool.acquire(block=True), app.pool.acquire(block=True):
        set_limit(1)
        assert app.pool.limit == 3
    assert connections[amqp_url].limit == 1


def test_the_pools_are_not_the_same(app: celery.Celery, amqp_url: str) -> None:
    lent = [app.pool.acquire() for _ in range(3)]
    with pytest.raises(ConnectionLimitExceeded):
        app.pool.acquire()
    with connections[amqp_url].acquire(timeout=PATIENCE) as ours:
        assert ours.connected
    for one in lent:
        one.release()


def test_tasks_are_sent_while_ours_publish(send: Send, tasks: Inbox, amqp_url: str) -> None:
    failures: list[BaseException] = []

    def in_thread(work: Callable[[int], Any]) -> threading.Thread:
        def run() -> None:
            try:
                for number in range(50):
                    work(number)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def publish(number: int) -> None:
        with producers[amqp_url].acquire(timeout=PATIENCE) as producer:
            producer.publish(f"ours {number}", routing_key=tasks.name)

    threads = [in_thread(lambda number: send(tasks.name, number)), in_thread(publish)]
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    found = numbers(tasks, 100)
    assert [one for one in found if isinstance(one, int)] == list(range(50))
    assert [one for one in found if isinstance(one, str)] == [f"ours {n}" for n in range(50)]


def test_our_reset_leaves_celery_alone(send: Send, tasks: Inbox, amqp_url: str) -> None:
    send(tasks.name, 1)
    kept = list(kombu.pools.connections.values()), list(kombu.pools.producers.values())
    with producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish(2, routing_key=tasks.name)
    reset()
    assert kept == (
        list(kombu.pools.connections.values()),
        list(kombu.pools.producers.values()),
    )
    assert kept[1]
    send(tasks.name, 3)
    assert sorted(numbers(tasks, 3)) == [1, 2, 3]


def test_kombus_reset_leaves_ours_alone(send: Send, tasks: Inbox, amqp_url: str) -> None:
    send(tasks.name, 1)
    pool = producers[amqp_url]
    with pool.acquire(timeout=PATIENCE) as producer:
        producer.publish(2, routing_key=tasks.name)
        used = producer.connection.connection
        KOMBU.reset()
        producer.publish(3, routing_key=tasks.name)
    assert producers[amqp_url] is pool
    with pool.acquire(timeout=PATIENCE) as producer:
        assert producer.connection.connection is used
        producer.publish(4, routing_key=tasks.name)
    assert sorted(numbers(tasks, 4)) == [1, 2, 3, 4]


def test_celery_closes_its_pools_and_ours_go_on(
    app: celery.Celery, send: Send, tasks: Inbox, amqp_url: str
) -> None:
    send(tasks.name, 1)
    with producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        app.close()
        producer.publish(2, routing_key=tasks.name)
    with pools.producers[Connection(amqp_url)].acquire(timeout=PATIENCE) as producer:
        producer.publish(3, routing_key=tasks.name)
    assert sorted(numbers(tasks, 3)) == [1, 2, 3]


def test_250_threads_send_tasks_over_our_pools_and_lose_none(
    app: celery.Celery, send: Send, tasks: Inbox, amqp_url: str
) -> None:
    """Celery takes its producers with `acquire(block=True)`; here from pools of ours, as with a swapped import."""
    threads_count, each = 250, 4
    app._pool, app.amqp._producer_pool = connections[amqp_url], producers[amqp_url]
    failures: list[BaseException] = []
    begin = threading.Barrier(threads_count)

    def run(number: int) -> None:
        try:
            begin.wait(PATIENCE)
            for turn in range(each):
                send(tasks.name, number * each + turn)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads_count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    # How many, is up to the machine.
    assert connections[amqp_url].stats().waits
    assert sorted(numbers(tasks, threads_count * each)) == list(range(threads_count * each))
