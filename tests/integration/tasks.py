"""A Celery application whose tasks publish through the pools.

Celery's own broker is of files, so the connections at RabbitMQ are those of the pools alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import celery
import served

folder = Path(os.environ["TASKS"])
app = celery.Celery("tasks", broker="filesystem://", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=False,
    broker_transport_options={
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.05,
    },
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


@app.task(name="publish")
def publish(number: int) -> None:
    """Publish a number through the pools of the child that this runs in."""
    served.publish(number)


@app.task(name="hold")
def hold(number: int, file: str) -> None:
    """The same, through a lease that is held as long as *file* is there."""
    served.hold(number, Path(file))
