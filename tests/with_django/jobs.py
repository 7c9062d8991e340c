"""Django's own tasks, for Django 6 and newer."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from celery.exceptions import Ignore
from django.tasks import TaskContext, task


@task
def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def slowly(a: int) -> int:
    await asyncio.sleep(0)
    return a


@task
def fails(text: str) -> None:
    raise LookupError(text)


@task
def returns_no_json() -> Any:
    return object()


@task(takes_context=True)
def tells(context: TaskContext) -> dict[str, Any]:
    result = context.task_result
    return {
        "id": result.id,
        "attempt": context.attempt,
        "status": result.status,
        "queue": result.task.queue_name,
        "priority": result.task.priority,
    }


@task(queue_name="mail", priority=50)
def send_mail(to: str) -> str:
    return to


@task
def ignores() -> None:
    raise Ignore


@task
def ends_the_process() -> None:
    os._exit(1)


@task
def naps(seconds: float) -> None:
    time.sleep(seconds)


@task
def exits() -> None:
    raise SystemExit("this task exits")


@task
def is_interrupted() -> None:
    raise KeyboardInterrupt


def plain() -> None:
    """Not a task."""
