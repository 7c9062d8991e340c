"""A broker that restarts, dies, falls silent or closes connections, under an adopted application."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery
import pytest
from celery.exceptions import OperationalError

from kombu_pools_ext.errors import PublishUnknown
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRabbitMQ, PrivateRedis
from tests.with_celery.conftest import MakePools, MakeShop, get, tasks_of

MakeApp = Callable[..., celery.Celery]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.threads,
    pytest.mark.timeout(280),
    # As in test_workers.py.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROADS = pytest.mark.parametrize("road", ["leased", "shared"])
#: Seconds.
ACQUIRE_TIMEOUT, CONFIRM_TIMEOUT = 3.0, 5.0
#: What a call may take besides, because the machine is busy.
BUSY = 4.0


class Senders:
    """Threads that send numbered tasks, until the block ends."""

    def __init__(self, app: celery.Celery, threads: int = 4) -> None:
        self._app = app
        self._numbers = itertools.count()
        self._over = threading.Event()
        #: What `delay()` returned for, with the ids of the tasks; and what it raised.
        self.sent: dict[int, str] = {}
        self.errors: list[Exception] = []
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def _send(self) -> None:
        add = self._app.tasks["add"]
        while not self._over.wait(0.005):
            number, began = next(self._numbers), time.monotonic()
            try:
                self.sent[number] = add.delay(number, 0).id
            except Exception as error:
                self.errors.append(error)
            self.longest = max(self.longest, time.monotonic() - began)

    def more(self, count: int = 20) -> None:
        """Wait until so many more were sent."""
        before = len(self.sent)
        eventually(lambda: len(self.sent) >= before + count, PATIENCE)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(PATIENCE)
        assert not [one for one in self._threads if one.is_alive()]


@ROADS
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_that_was_reported_as_sent_is_missing_after_a_restart(
    end: str,
    road: str,
    make_pools: MakePools,
    make_app: MakeApp,
    private_rabbitmq: PrivateRabbitMQ,
) -> None:
    url = private_rabbitmq.url
    pools = make_pools(
        url,
        PUBLISH_OVER=road,
        ACQUIRE_TIMEOUT=ACQUIRE_TIMEOUT,
        CONFIRM_TIMEOUT=CONFIRM_TIMEOUT,
    )
    app = make_app(url, pools)
    app.tasks["add"].delay("first", "")
    private_rabbitmq.write_log()
    senders = Senders(app)
    with senders.running():
        senders.more()
        getattr(private_rabbitmq, end)()
        eventually(lambda: senders.errors, PATIENCE)
        private_rabbitmq.start()
        senders.more()
    found = {one.payload[0][0] for one in tasks_of(app, len(senders.sent))}
    assert set(senders.sent) - found == set()
    assert senders.longest < ACQUIRE_TIMEOUT + CONFIRM_TIMEOUT + BUSY
    assert {isinstance(one, OperationalError) for one in senders.errors} == {True}


@ROADS
def test_four_closes_by_the_operator_within_20_tasks_cost_no_error(
    road: str, make_pools: MakePools, make_app: MakeApp, private_rabbitmq: PrivateRabbitMQ
) -> None:
    url = private_rabbitmq.url
    app = make_app(url, make_pools(url, PUBLISH_OVER=road))
    for number in range(20):
        app.tasks["add"].delay(number)
        if number % 5 == 2:
            private_rabbitmq.close_connections()
    assert [one.payload[0][0] for one in tasks_of(app, 20)] == list(range(20))


@ROADS
def test_a_silent_broker_ends_a_call_within_its_bound(
    road: str, make_pools: MakePools, make_app: MakeApp, private_rabbitmq: PrivateRabbitMQ
) -> None:
    url = private_rabbitmq.url
    pools = make_pools(url, PUBLISH_OVER=road, ACQUIRE_TIMEOUT=1, CONFIRM_TIMEOUT=1, RETRY=None)
    app = make_app(url, pools)
    app.tasks["add"].delay(0)
    private_rabbitmq.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            app.tasks["add"].delay(1)
        assert time.monotonic() - began < 2 + BUSY
        assert isinstance(caught.value, PublishUnknown)
    finally:
        private_rabbitmq.thaw()
    eventually(lambda: not failing(app), PATIENCE)


def failing(app: celery.Celery) -> bool:
    try:
        app.tasks["add"].delay(2)
    except OperationalError:
        return True
    return False


def test_a_redis_that_was_killed(
    make_pools: MakePools, make_app: MakeApp, private_redis: PrivateRedis
) -> None:
    url = private_redis.url
    app = make_app(url, make_pools(url, ACQUIRE_TIMEOUT=1, CONFIRM_TIMEOUT=1))
    senders = Senders(app)
    with senders.running():
        senders.more()
        private_redis.kill()
        eventually(lambda: len(senders.errors) > 10, PATIENCE)
        private_redis.start()
        senders.more()
    assert senders.longest < 2 + BUSY
    assert {isinstance(one, OperationalError) for one in senders.errors} == {True}


@pytest.mark.parametrize("kind", ["threads", "prefork"])
def test_a_worker_runs_what_was_sent_while_its_broker_was_killed(
    kind: str, private_rabbitmq: PrivateRabbitMQ, redis_url: str, make_shop: MakeShop
) -> None:
    """The worker's tasks send tasks as well."""
    shop = make_shop(private_rabbitmq.url, redis_url, PUBLISH_OVER="shared")
    with shop.worker(kind) as worker:
        assert get(shop.app.tasks["add"].delay(1, 2)) == 3
        private_rabbitmq.write_log()
        senders = Senders(shop.app, threads=2)
        with senders.running():
            senders.more()
            private_rabbitmq.kill()
            private_rabbitmq.start()
            senders.more()
        results: list[Any] = [
            (number, get(shop.app.AsyncResult(task))) for number, task in senders.sent.items()
        ]
        assert all(number == result for number, result in results)
        ids = get(shop.app.tasks["fan"].delay(3))
        assert [get(shop.app.AsyncResult(one)) for one in ids] == [1, 2, 3], worker.log


def test_a_worker_runs_what_was_sent_before_its_redis_was_stopped_and_after(
    private_redis: PrivateRedis, redis_url: str, make_shop: MakeShop
) -> None:
    """A Redis without a file forgets its queues, so each task is run before it is stopped."""
    shop = make_shop(private_redis.url, redis_url, ACQUIRE_TIMEOUT=1, CONFIRM_TIMEOUT=1)
    add = shop.app.tasks["add"]
    with shop.worker("prefork") as worker:
        assert [get(add.delay(n, 1)) for n in range(20)] == list(range(1, 21))
        private_redis.kill()
        with pytest.raises(OperationalError):
            add.delay(1)
        private_redis.start()

        def is_up() -> bool:
            try:
                assert get(add.delay(1, 1)) == 2
            except OperationalError:
                return False  # nobody has looked since
            return True

        eventually(is_up, PATIENCE)
        assert [get(add.delay(n, 1)) for n in range(20)] == list(range(1, 21)), worker.log
        ids = get(shop.app.tasks["fan"].delay(3))
        assert [get(shop.app.AsyncResult(one)) for one in ids] == [1, 2, 3], worker.log
