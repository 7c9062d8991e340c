"""The one task of Celery that runs Django's tasks in a worker."""

from __future__ import annotations

from collections.abc import Callable
from traceback import format_exception
from typing import Any

from celery import shared_task
from celery.exceptions import TaskPredicate
from django.tasks import task_backends
from django.tasks.base import TaskContext, TaskResult, TaskResultStatus
from django.tasks.exceptions import InvalidTaskBackend
from django.tasks.signals import task_finished, task_started
from django.utils import timezone
from django.utils.json import normalize_json

from .task_store import change, error_of, result_of

__all__ = ["RUN", "execute", "run"]

#: The name of the task, for ``task_annotations`` and the like.
RUN = "django_app.tasks.run"


@shared_task(name=RUN, bind=True, ignore_result=True, store_errors_even_if_ignored=True)  # type: ignore[untyped-decorator, unused-ignore]  # Celery has no types
def run(
    self: Any, path: str, args: list[Any], kwargs: dict[str, Any], about: dict[str, Any]
) -> Any:
    """Run the Django task at *path*; only what is a task there is run.

    :param about: see :func:`.task_store.about_of`.
    :returns: what it returns.
    :raises Exception: what it raises, so that Celery logs and counts it as failed.
    """
    backend: Any = task_backends[about["backend"]]
    store = getattr(backend, "store", None)
    if store is None:
        raise InvalidTaskBackend(
            f"TASKS[{about['backend']!r}] of this worker is no django_app.tasks.CeleryBackend; give web processes and "
            "workers the same TASKS"
        )
    request = self.request
    result = result_of(request.id, path, args, kwargs, about)
    stores = backend.supports_get_result
    if stores and _may_have_begun_before(request):
        before = store.load(request.id)
        if before is not None:
            change(result, started_at=before.started_at, worker_ids=before.worker_ids)
    save = store.save if stores else _save_nothing
    return execute(result, request.hostname, type(backend), save)


def _may_have_begun_before(request: Any) -> bool:
    """Whether another worker may have had the task: with ``acks_late``, Celery's retries, or a broker's redelivery."""
    return bool(request.retries or (request.delivery_info or {}).get("redelivered"))


def _save_nothing(result: TaskResult[..., Any]) -> None:
    """Stand for a store where results are not wanted."""


def execute(
    result: TaskResult[..., Any],
    worker_id: str,
    sender: type,
    save: Callable[[TaskResult[..., Any]], None] = _save_nothing,
) -> Any:
    """Call the function of a task, and note in *result* what became of it, with Django's signals.

    :param worker_id: is added to ``worker_ids``.
    :param sender: of the signals.
    :param save: called when it begins and when it ends.
    :returns: what the function returns, as JSON has it.
    :raises BaseException: what it raises. ``Retry``, ``Ignore`` and ``Reject`` of Celery are no failures.
    """
    now = timezone.now()
    change(
        result,
        status=TaskResultStatus.RUNNING,
        started_at=result.started_at or now,
        last_attempted_at=now,
        worker_ids=[*result.worker_ids, worker_id],
    )
    save(result)
    task_started.send(sender=sender, task_result=result)
    context = (TaskContext(task_result=result),) if result.task.takes_context else ()
    try:
        value = normalize_json(result.task.call(*context, *result.args, **result.kwargs))
    except (KeyboardInterrupt, TaskPredicate):
        raise
    except BaseException as error:
        change(
            result,
            status=TaskResultStatus.FAILED,
            finished_at=timezone.now(),
            errors=[*result.errors, error_of(error, "".join(format_exception(error)))],
        )
        save(result)
        task_finished.send(sender, task_result=result)
        raise
    change(
        result,
        status=TaskResultStatus.SUCCESSFUL,
        finished_at=timezone.now(),
        _return_value=value,
    )
    save(result)
    task_finished.send(sender, task_result=result)
    return value
