"""Children of an adopted application, however they are forked."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import billiard
import celery
import pytest

from kombu_pools_ext import Pools
from tests.broker.common import PATIENCE
from tests.broker.rig import in_child
from tests.with_celery.conftest import tasks_of

MakeApp = Callable[..., celery.Celery]

pytestmark = [pytest.mark.forks, pytest.mark.threads]


def answer(app: celery.Celery, number: int) -> dict[str, Any]:
    """Send a task, and say what this process publishes with."""
    app.tasks["add"].delay(number)
    with app.producer_or_acquire() as producer:
        return {
            "pid": os.getpid(),
            "producer": type(producer).__name__,
            "pool": type(app.pool).__name__,
            "mailbox": type(app.control.mailbox.producer_pool).__name__,
        }


EXPECTED = {"producer": "TaskProducer", "pool": "ConnectionsFace", "mailbox": "ProducersFace"}


def test_os_fork(pools: Pools, make_app: MakeApp, amqp_url: str) -> None:
    app = make_app(amqp_url, pools)
    app.tasks["add"].delay(0)
    told = in_child(lambda: answer(app, 1))
    assert told.pop("pid") != os.getpid()
    assert told == EXPECTED
    app.tasks["add"].delay(2)
    assert sorted(one.payload[0][0] for one in tasks_of(app, 3)) == [0, 1, 2]
    assert pools.connections["default"].stats().opened <= 2


@pytest.mark.parametrize("library", [billiard, multiprocessing], ids=lambda one: one.__name__)
def test_a_child_in_which_celery_forgets_its_pools(
    library: Any, pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    heard: list[int] = []

    @app.on_after_fork.connect(weak=False)
    def hear(**kwargs: Any) -> None:
        heard.append(os.getpid())

    app.control.mailbox.producer_pool
    app.tasks["add"].delay(0)
    context = library.get_context("fork")
    results = context.Queue()

    def work() -> None:
        results.put({**answer(app, 1), "heard": heard == [os.getpid()]})

    child = context.Process(target=work)
    child.start()
    told = results.get(timeout=PATIENCE)
    child.join(PATIENCE)
    assert told.pop("pid") != os.getpid()
    # Celery's hook was called, also for the application's own receivers.
    assert told.pop("heard")
    assert told == EXPECTED
    app.tasks["add"].delay(2)
    assert sorted(one.payload[0][0] for one in tasks_of(app, 3)) == [0, 1, 2]
