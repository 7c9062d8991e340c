"""What Celery's result backend has of Django's tasks: one record for each, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.tasks.base import Task, TaskError, TaskResult, TaskResultStatus
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.module_loading import import_string

__all__ = ["TaskStore", "about_of", "change", "error_of", "result_of"]

_TIMES = ("enqueued_at", "started_at", "finished_at", "last_attempted_at")
#: States of Celery in which a worker, or who has revoked it, ended the task without our doing.
_ENDED = ("FAILURE", "REVOKED")


def change(result: TaskResult[..., Any], **values: Any) -> None:
    """Set attributes of *result*, which is frozen for others."""
    for name, value in values.items():
        object.__setattr__(result, name, value)


def about_of(result: TaskResult[..., Any]) -> dict[str, Any]:
    """Return what a worker has to know of *result* beside path and arguments; it is JSON."""
    task = result.task
    return {
        "backend": result.backend,
        "enqueued_at": _text(result.enqueued_at),
        "priority": task.priority,
        "queue_name": task.queue_name,
        "run_after": _text(task.run_after),
    }


def result_of(
    task_id: str, path: str, args: list[Any], kwargs: dict[str, Any], about: dict[str, Any]
) -> TaskResult[..., Any]:
    """Return the result of a task that waits.

    :param about: what :func:`about_of` has returned.
    :raises ImportError: if there is nothing at *path*.
    :raises ValueError: if it is not a task.
    """
    found = import_string(path)
    if not isinstance(found, Task):
        raise ValueError(f"{path!r} is {type(found).__name__}, not a task of Django")
    task = found.using(
        priority=about["priority"],
        queue_name=about["queue_name"],
        run_after=_time(about["run_after"]),
        backend=about["backend"],
    )
    return TaskResult(
        task=task,
        id=task_id,
        status=TaskResultStatus.READY,
        enqueued_at=_time(about["enqueued_at"]),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=about["backend"],
        errors=[],
        worker_ids=[],
    )


def error_of(error: BaseException, traceback: str) -> TaskError:
    """Return *error* as a result has it."""
    kind = type(error)
    return TaskError(
        exception_class_path=f"{kind.__module__}.{kind.__qualname__}", traceback=traceback
    )


class TaskStore:
    """The records of one application, each beside the key that Celery has for the task.

    Celery's own key is left to Celery: it has the failures that happen outside the task, such as a lost worker.

    :param app: the Celery application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def can_store(self) -> bool:
        """Whether any process can read a result: not without a result backend, nor with rpc."""
        from celery.backends.base import DisabledBackend
        from celery.backends.rpc import RPCBackend

        return not isinstance(self._app.backend, DisabledBackend | RPCBackend)

    def save(self, result: TaskResult[..., Any]) -> None:
        """Write *result*. It blocks, and raises what the result backend raises."""
        is_done = result.status == TaskResultStatus.SUCCESSFUL
        record = {
            "task": result.task.module_path,
            "args": result.args,
            "kwargs": result.kwargs,
            "about": about_of(result),
            "status": result.status.value,
            "times": {name: _text(getattr(result, name)) for name in _TIMES},
            "errors": [[one.exception_class_path, one.traceback] for one in result.errors],
            "worker_ids": result.worker_ids,
            "return_value": result.return_value if is_done else None,
        }
        self._app.backend.store_result(_key(result.id), record, result.status.value)

    def forget(self, task_id: str) -> None:
        """Delete the record of a task that was not sent."""
        self._app.backend.forget(_key(task_id))

    def load(self, task_id: str) -> TaskResult[..., Any] | None:
        """Return the result; ``None`` if there is none, or no more.

        :raises ImportError, ValueError: if its task is not there any more.
        """
        record = self._app.backend.get_task_meta(_key(task_id))["result"]
        if not isinstance(record, dict):
            return None
        result = result_of(
            task_id, record["task"], record["args"], record["kwargs"], record["about"]
        )
        change(
            result,
            status=TaskResultStatus(record["status"]),
            errors=[
                TaskError(exception_class_path=path, traceback=text)
                for path, text in record["errors"]
            ],
            worker_ids=record["worker_ids"],
            _return_value=record["return_value"],
            **{name: _time(text) for name, text in record["times"].items()},
        )
        if not result.is_finished:
            self._note_end(result)
        return result

    def _note_end(self, result: TaskResult[..., Any]) -> None:
        """Note in *result* how Celery has ended the task: its worker was lost or too slow, or it was revoked."""
        meta = self._app.backend.get_task_meta(result.id)
        error = meta["result"]
        if meta["status"] not in _ENDED or not isinstance(error, BaseException):
            return
        ended = meta.get("date_done")
        change(
            result,
            status=TaskResultStatus.FAILED,
            errors=[*result.errors, error_of(error, meta.get("traceback") or "")],
            finished_at=_as_configured(_time(ended) if isinstance(ended, str) else ended),
        )


def _key(task_id: str) -> str:
    return f"django-{task_id}"


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else parse_datetime(text)


def _as_configured(time: datetime | None) -> datetime | None:
    """Return *time*, which is UTC unless it says otherwise, as ``USE_TZ`` has it."""
    if time is None:
        return None
    aware = time.replace(tzinfo=UTC) if timezone.is_naive(time) else time
    return aware if settings.USE_TZ else timezone.make_naive(aware)
