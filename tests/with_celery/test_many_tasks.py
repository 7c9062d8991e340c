"""Each of many tasks is run, by a worker of each kind on each broker.

A file of its own, because it is a part of its own that is not counted: counting doubles its time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import pytest

from tests.broker.common import eventually
from tests.with_celery.conftest import TASK_PATIENCE, MakeShop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.threads,
    pytest.mark.timeout(900),
    # As in test_workers.py.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: Threads that send them.
THREADS = 8
#: How many there are, by the kind of the worker. Where Celery runs them in greenlets, each takes it 0.1 s, without
#: these pools as well.
TASKS = {"prefork": 5_000, "threads": 1_000, "solo": 1_000, "gevent": 300}
if "CELERY_TASKS" in os.environ:
    TASKS = dict.fromkeys(TASKS, int(os.environ["CELERY_TASKS"]))


def results_of(app: celery.Celery, ids: list[str]) -> list[Any]:
    """The results of many tasks, which is quicker than to wait for one after the other."""
    found: dict[str, Any] = {}

    def take() -> int:
        """How many there are now."""
        missing = [one for one in ids if one not in found]
        for task, meta in app.backend.get_many(missing, interval=0.05, max_iterations=1):
            found[task] = meta["result"]
        return len(found)

    while len(found) < len(ids):
        before = len(found)
        eventually(lambda before=before: take() > before, TASK_PATIENCE)
    return [found[one] for one in ids]


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
@pytest.mark.parametrize("kind", TASKS)
def test_each_of_many_tasks_is_run(
    kind: str, broker: str, make_shop: MakeShop, amqp_url: str, redis_url: str
) -> None:
    """Plain Celery runs each of them as well, where nothing is in its way; and takes longer to send them."""
    shop = make_shop(amqp_url if broker == "rabbitmq" else redis_url, redis_url, QUIET=True)
    add, count = shop.app.tasks["add"], TASKS[kind]

    def send(first: int) -> list[tuple[int, str]]:
        return [(number, add.delay(number, 1).id) for number in range(first, count, THREADS)]

    with shop.worker(kind) as worker, ThreadPoolExecutor(THREADS) as executor:
        sent = sorted(one for chunk in executor.map(send, range(THREADS)) for one in chunk)
        assert len({task_id for _, task_id in sent}) == count
        results = results_of(shop.app, [task_id for _, task_id in sent])
        shop.ends(worker)
    assert results == [number + 1 for number in range(count)]
