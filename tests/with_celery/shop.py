"""An adopted Celery application for workers, beat and gunicorn, by environment variables."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from typing import Any

import celery

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import adopt

#: Tasks that beat sends when it starts; the next are due an hour later.
OVERDUE = 3


def make(broker: str, backend: str, queue: str, **settings: Any) -> celery.Celery:
    """Make an application whose queue is *queue*.

    PLAIN among *settings* leaves it with Celery's own pools, QUIET without events of its tasks.
    """
    quiet = settings.pop("QUIET", False)
    app = celery.Celery(queue, broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=queue,
        task_default_exchange=queue,
        task_default_routing_key=queue,
        task_send_sent_event=not quiet,
        control_exchange=f"{queue}-control",
        event_exchange=f"{queue}-events",
        result_expires=600,
        worker_prefetch_multiplier=8,
        worker_send_task_events=not quiet,
        beat_schedule={
            f"overdue-{number}": {
                "task": "add",
                "schedule": 3600.0,
                "args": (number, 1),
                "last_run_at": datetime(2000, 1, 1, tzinfo=UTC),
            }
            for number in range(OVERDUE)
        },
    )
    plain = settings.pop("PLAIN", False)
    if not plain:
        url = {"URL": broker, "ACQUIRE_TIMEOUT": 10.0, **settings}
        adopt(app, pools=Pools({"default": url}))
    add_tasks(app)
    return app


def add_tasks(app: celery.Celery) -> None:
    """Define the tasks."""

    @app.task(name="add", shared=False)
    def add(a: int, b: int = 0) -> int:
        return a + b

    @app.task(name="total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="whoami", shared=False)
    def whoami() -> dict[str, Any]:
        with app.producer_or_acquire() as producer:
            return {
                "pid": os.getpid(),
                "producer": type(producer).__name__,
                "pool": type(app.pool).__name__,
                "thread": threading.current_thread().name,
            }

    @app.task(name="again", shared=False, bind=True, max_retries=5)
    def again(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(name="fan", shared=False)
    def fan(count: int) -> list[str]:
        """Sends tasks from within a worker."""
        return [add.delay(number, 1).id for number in range(count)]

    @app.task(name="fails", shared=False)
    def fails() -> None:
        raise ValueError("as the test wants")

    @app.task(name="failed", shared=False)
    def failed(task_id: str) -> str:
        """Called with a message: a task of one argument is."""
        return task_id


if "QUEUE" in os.environ:
    app = make(
        os.environ["BROKER"],
        os.environ["BACKEND"],
        os.environ["QUEUE"],
        **json.loads(os.environ["SETTINGS"]),
    )
    if os.environ.get("SENDS_AT_IMPORT"):
        app.tasks["add"].apply_async((0, 0), ignore_result=True)


def application(environ: Any, start_response: Any) -> list[bytes]:
    """What gunicorn serves: sends a task, and says what this process publishes with."""
    app.tasks["add"].apply_async((os.getpid(), 0), ignore_result=True)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(app.tasks["whoami"]()).encode()]
