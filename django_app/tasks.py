"""Django's own tasks on Celery: a backend for the setting ``TASKS``, which needs Django 6.0 and Celery.

::

    TASKS = {"default": {"BACKEND": "django_app.tasks.CeleryBackend"}}
    KOMBU_POOLS_CELERY = "default"

``docs/howto/django-tasks.md`` says how to use it. Celery's ``autodiscover_tasks`` imports this module because of its
name, and so registers the task that runs Django's.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import django

try:
    from django.tasks.backends.base import BaseTaskBackend
except ModuleNotFoundError as error:
    # With this name Celery's autodiscover_tasks takes it for a module that does not exist, and goes on.
    raise ModuleNotFoundError(
        f"django_app.tasks needs Django 6.0 or newer, which has django.tasks; this is Django {django.__version__}",
        name=__name__,
    ) from error
try:
    import celery  # noqa: F401  # what follows needs it
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'django_app.tasks needs Celery: pip install "kombu-pools-ext[celery]"', name=__name__
    ) from error

from asgiref.sync import sync_to_async
from celery.exceptions import QueueNotFound
from celery.utils.nodenames import gethostname
from celery.utils.saferepr import saferepr
from django.core.checks import CheckMessage, Error
from django.db import transaction
from django.tasks.base import (
    DEFAULT_TASK_QUEUE_NAME,
    TASK_MAX_PRIORITY,
    TASK_MIN_PRIORITY,
    Task,
    TaskResult,
    TaskResultStatus,
)
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone

from kombu_pools_ext.contrib.celery import CannotAdopt, adoption_of, wrong_with
from kombu_pools_ext.contrib.celery.async_sending import asend_task
from kombu_pools_ext.contrib.celery.priorities import priority_for
from kombu_pools_ext.contrib.celery.task_checks import check_task
from kombu_pools_ext.engine.lease import Borrower, outside
from kombu_pools_ext.errors import PublishUnknown, SettingsError, UnknownAlias

from .after_commit import register
from .conf import pools
from .outbox.celery_apps import has_outbox
from .outbox.writing import tasks_in
from .task_options import TaskOptions
from .task_running import RUN, execute
from .task_store import TaskStore, about_of, change
from .waiting_task import WaitingTask, send_tasks

__all__ = ["CeleryBackend"]


class CeleryBackend(BaseTaskBackend):
    """Sends Django's tasks to the workers of a Celery application, over the alias that it publishes over.

    Options, all of which may be left out: ``app``, the path of the application, by default the one that the project
    imports; ``using``, the alias, by default that of ``KOMBU_POOLS_CELERY``; ``on_commit``, to send tasks after the
    commit of a transaction, of the default database (``True``) or of another one (its alias); ``results``, ``False`` if
    none are to be stored.
    """

    supports_defer = True
    supports_async_task = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._options = TaskOptions(self.options)
        self._problems = [*self._options.problems()]

    @property
    def supports_get_result(self) -> bool:  # type: ignore[override, unused-ignore]  # it depends on Celery's settings
        """Whether Celery's result backend can be read by any process, and ``results`` is not off."""
        try:
            return self._store_of(self._app()) is not None
        except InvalidTaskBackend:
            return False

    @property
    def store(self) -> TaskStore:
        """The results.

        :raises InvalidTaskBackend: if the options are wrong, or there is no Celery application.
        """
        return TaskStore(self._app())

    def _store_of(self, app: Any) -> TaskStore | None:
        """Return where results of *app* are stored; ``None`` if they are not."""
        store = TaskStore(app)
        return store if self._options.wants_results and store.can_store else None

    def _app(self) -> Any:
        if self._problems:
            raise InvalidTaskBackend(f"TASKS[{self.alias!r}]: {'; '.join(self._problems)}")
        try:
            return self._options.app()
        except (ImportError, LookupError) as error:
            raise InvalidTaskBackend(f"TASKS[{self.alias!r}]: {error}") from error

    def enqueue(self, task: Task[..., Any], args: Any, kwargs: Any) -> Any:
        """Send *task*, or with ``on_commit`` have it sent after the commit; then ``enqueued_at`` is set by then.

        If the alias has ``OUTBOX``, the message becomes a row of the transaction, and a relay sends it; its result is
        stored at once, and stays as "ready" after a rollback, until the result backend forgets it.

        :raises InvalidTask: if its queue is not configured in Celery, or has no priorities and the task has one.
        :raises InvalidTaskBackend: if the options are wrong, or there is no adopted Celery application.
        :raises TypeError, ValueError: if an argument is not JSON.
        :raises CannotAdopt: if the broker of the application is not that of the alias.
        :raises OperationalError: if it cannot be sent; with ``PublishUnknown`` it may have been.
        """
        self.validate_task(task)
        app = self._app()
        result = self._result_of(task, args, kwargs)
        database = self._options.database
        if app.conf.task_always_eager:
            run = partial(self._run_eagerly, app, result)
            if database is None:
                run()
            else:
                transaction.on_commit(run, using=database)
            return result
        options = self._publish_options(app, result)
        send = partial(self._send, app, result, options)
        if database is None:
            send()
        elif has_outbox(app):
            with tasks_in(database):
                send()
        else:
            check_task(app.tasks[RUN], **self._message_of(result), **options)
            waiting = WaitingTask(app, task.module_path, result.id, send, _calling_line())
            register(waiting, db=database, robust=False, send=send_tasks)
        return result

    async def aenqueue(self, task: Task[..., Any], args: Any, kwargs: Any) -> Any:
        """Send *task* without a thread, and without blocking the event loop, whatever the broker does.

        Only what blocks by its nature runs in a thread: storing that the task waits, unless ``results`` are off; and
        the task itself with ``task_always_eager``. There are no transactions in coroutines, so ``on_commit`` has no
        effect.

        Errors are those of :meth:`enqueue`.
        """
        self.validate_task(task)
        app = self._app()
        if app.conf.task_always_eager:
            return await sync_to_async(self.enqueue)(task, args, kwargs)
        result = self._result_of(task, args, kwargs)
        options = self._publish_options(app, result)
        store = self._store_of(app)
        change(result, enqueued_at=timezone.now())
        if store is not None:
            await sync_to_async(store.save)(result)
        try:
            await asend_task(app, RUN, **self._message_of(result), **options)
        except Exception as error:
            if store is not None:
                await sync_to_async(_forget)(store, result, error)
            raise
        if any(one[-1] for one in task_enqueued.receivers):
            # A receiver is a coroutine function.
            await task_enqueued.asend(type(self), task_result=result)  # codespell:ignore asend
        else:
            # The other way calls receivers that are no coroutines in a thread.
            task_enqueued.send(type(self), task_result=result)
        return result

    def _send(self, app: Any, result: TaskResult[..., Any], options: dict[str, Any]) -> None:
        store = self._store_of(app)
        change(result, enqueued_at=timezone.now())
        if store is not None:
            # Before it is sent, because a worker may be faster.
            store.save(result)
        try:
            app.tasks[RUN].apply_async(**self._message_of(result), **options)
        except Exception as error:
            change(result, enqueued_at=None)
            if store is not None:
                _forget(store, result, error)
            raise
        task_enqueued.send(type(self), task_result=result)

    def _run_eagerly(self, app: Any, result: TaskResult[..., Any]) -> None:
        change(result, enqueued_at=timezone.now())
        task_enqueued.send(type(self), task_result=result)
        try:
            execute(result, gethostname(), type(self))
        except KeyboardInterrupt:
            raise
        except BaseException:
            if app.conf.task_eager_propagates:
                raise

    def _result_of(self, task: Task[..., Any], args: Any, kwargs: Any) -> TaskResult[..., Any]:
        return TaskResult(
            task=task,
            id=str(uuid.uuid4()),
            status=TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )

    def _message_of(self, result: TaskResult[..., Any]) -> dict[str, Any]:
        """Return the arguments of the Celery task, and its id."""
        args = [result.task.module_path, result.args, result.kwargs]
        return {"args": args, "kwargs": {"about": about_of(result)}, "task_id": result.id}

    def _publish_options(self, app: Any, result: TaskResult[..., Any]) -> dict[str, Any]:
        """Return the options of ``apply_async``: queue, priority and time, and what logs show in place of :data:`RUN`.

        Django's default queue is Celery's default queue, unless Celery has one of that name; ``task_routes`` applies to
        the path of the task.
        """
        task = result.task
        name = task.queue_name
        queues, router = app.amqp.queues, app.amqp.router
        chosen = {} if name == DEFAULT_TASK_QUEUE_NAME and name not in queues else {"queue": name}
        try:
            options = router.route(chosen, task.module_path, result.args, result.kwargs)
        except QueueNotFound as error:
            raise InvalidTask(
                f"Queue {name!r} is not in task_queues of the Celery app {app.main!r}, and task_create_missing_queues "
                "is off; add it there"
            ) from error
        priority = self._priority_of(app, task, options.get("queue"))
        if priority is not None:
            options["priority"] = priority
        if task.run_after is not None:
            after = task.run_after
            options["eta"] = timezone.make_aware(after) if timezone.is_naive(after) else after
        return {
            **options,
            "shadow": task.module_path,
            "argsrepr": saferepr(result.args),
            "kwargsrepr": saferepr(result.kwargs),
        }

    def _priority_of(self, app: Any, task: Task[..., Any], queue: Any) -> int | None:
        urgency = (task.priority - TASK_MIN_PRIORITY) / (TASK_MAX_PRIORITY - TASK_MIN_PRIORITY)
        settings = pools.settings_of(cast("str", adoption_of(app)))
        priority = priority_for(urgency, settings, queue)
        if priority is None and task.priority:
            raise InvalidTask(
                f"priority is {task.priority}, but messages in the queue {getattr(queue, 'name', queue)!r} have no "
                "priorities; give it x-max-priority in Celery's task_queues, or set task_queue_max_priority"
            )
        return priority

    def get_result(self, result_id: str) -> TaskResult[..., Any]:
        """Return the result of a task, as its worker has stored it until now.

        :raises TaskResultDoesNotExist: if there is none, or no more: Celery deletes it after ``result_expires``.
        :raises NotImplementedError: if no results are stored.
        """
        store = self._store_of(self._app())
        if store is None:
            return super().get_result(result_id)
        try:
            result = store.load(result_id)
        except (ImportError, ValueError) as error:
            raise TaskResultDoesNotExist(f"{result_id}: {error}") from error
        if result is None:
            raise TaskResultDoesNotExist(result_id)
        return result

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Report E009 and E010, and opens nothing; ``docs/reference/checks.md`` has an entry for each."""
        return [*super().check(**kwargs), *self._wrong()]

    def _wrong(self) -> Iterator[CheckMessage]:
        try:
            app = self._app()
            wrong = wrong_with(app)
            if wrong is not None:
                if self._options.using is not None:
                    # Else E008 tells it.
                    yield self._error("has an app with another broker.", wrong, "kombu_pools.E009")
                return
            app_conf, queues = app.conf, app.amqp.queues
        except (InvalidTaskBackend, CannotAdopt, UnknownAlias) as error:
            yield self._error(
                "has wrong options, or no Celery app.", str(error), "kombu_pools.E009"
            )
            return
        except SettingsError:
            # E001 tells it.
            return
        if not app_conf.task_create_missing_queues:
            missing = sorted(self.queues - {DEFAULT_TASK_QUEUE_NAME} - set(queues))
            if missing:
                hint = (
                    f"QUEUES has {', '.join(map(repr, missing))}, and task_create_missing_queues is off; add "
                    f"{'it' if len(missing) == 1 else 'them'} to Celery's task_queues."
                )
                yield self._error("has queues that Celery does not have.", hint, "kombu_pools.E010")

    def _error(self, message: str, hint: str, id: str) -> Error:
        return Error(f"TASKS[{self.alias!r}] {message}", hint=hint, id=id)


def _forget(store: TaskStore, result: TaskResult[..., Any], error: Exception) -> None:
    """Delete a result whose task was not sent because of *error*. If it may have been, a worker may end it."""
    if isinstance(error, PublishUnknown):
        return
    try:
        store.forget(result.id)
    except Exception as other:
        error.add_note(f"its result {result.id} was not deleted: {type(other).__name__}")


def _calling_line() -> Borrower | None:
    """Return the line of the application that has called a task's ``enqueue``, which is Django's."""
    frame = outside(sys._getframe(1))
    while frame is not None and frame.f_globals.get("__name__") == Task.__module__:
        frame = frame.f_back
    return None if frame is None else Borrower(frame.f_code, frame.f_lasti)
