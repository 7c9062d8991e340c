"""Celery's ``delay_on_commit`` and ``apply_async_on_commit``, whose mistakes are found before the commit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import transaction

from kombu_pools_ext.prepared import calling_line
from kombu_pools_ext.whole_imports import import_whole

from .lazy_text import rendered

__all__ = ["apply_async_on_commit", "delay_on_commit", "offer_to"]

#: What is imported with the first task, because Celery may not be installed.
_FOR_TASKS = (
    "kombu_pools_ext.contrib.celery.task_checks",
    f"{__package__}.after_commit",
    f"{__package__}.outbox.celery_apps",
    f"{__package__}.outbox.writing",
    f"{__package__}.waiting_task",
)


def delay_on_commit(task: Any, /, *args: Any, **kwargs: Any) -> str:
    """Call ``task.delay(*args, **kwargs)`` once the current transaction of the default database is committed.

    It is :func:`apply_async_on_commit` without options.
    """
    return apply_async_on_commit(task, args, kwargs)


def apply_async_on_commit(
    task: Any,
    /,
    args: Any = None,
    kwargs: Any = None,
    task_id: str | None = None,
    producer: Any = None,
    link: Any = None,
    link_error: Any = None,
    shadow: str | None = None,
    *,
    db: str | None = None,
    robust: bool = False,
    **options: Any,
) -> str:
    """Call ``task.apply_async`` with these arguments once the current transaction is committed; not after a rollback.

    The call is checked now: arguments, serializer, queue, properties, and the broker of an adopted application. So a
    mistake raises here, before the commit. Later changes of lists, dicts and sets among the arguments do not change the
    task, and lazy text is rendered in the current language. ``countdown`` and the signals of Celery begin with the
    commit. Outside a transaction the task is sent at once.

    A task that was not sent after the commit is logged by ``kombu_pools_ext.django``, and becomes a note on the error,
    with its name, its id and the line that called this function; tasks in a row are all tried, as far as their broker
    can be reached. As with all callbacks of Django's ``on_commit``, the error is raised where the transaction ends.

    If the alias of an adopted application has ``OUTBOX``, the message becomes a row of the transaction instead, and a
    relay sends it. Celery's signals and ``countdown`` begin with the call then.

    With ``task_always_eager`` the task runs in this process at the commit.

    :param task: a task of Celery. Tasks of an application that ``KOMBU_POOLS_CELERY`` has adopted have this function
        as a method.
    :param task_id: the id; by default a new one.
    :param db: the alias of the database; ``None`` means the default one.
    :param robust: whether Django logs the error and goes on, as with ``on_commit(robust=True)``.
    :param options: those of ``apply_async``, as *producer*, *link*, *link_error* and *shadow* are.
    :returns: the id that the task will have.
    :raises TypeError, ValueError: for invalid arguments or options.
    :raises QueueNotFound: if the queue is not configured, and Celery may not make it.
    :raises EncodeError: if the task cannot be serialized.
    :raises CannotAdopt: if the broker of an adopted application is not that of its alias.
    """
    import_whole(*_FOR_TASKS)
    from kombu_pools_ext.contrib.celery.task_checks import check_task

    given = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
    options.update((name, value) for name, value in given.items() if value is not None)
    task_id = task_id or str(uuid.uuid4())
    args, kwargs = _kept(rendered(args)), _kept(rendered(kwargs))
    check_task(task, args, kwargs, task_id=task_id, **options)
    options = {name: _kept(value) for name, value in options.items()}
    send = partial(task.apply_async, args, kwargs, task_id=task_id, **options)
    if producer is not None or not _into_outbox(task.app, send, db):
        _after_commit(task, task_id, send, db, robust)
    return task_id


def _after_commit(
    task: Any, task_id: str, send: Callable[[], object], db: str | None, robust: bool
) -> None:
    from .after_commit import register
    from .waiting_task import WaitingTask, send_tasks

    if task.app.conf.task_always_eager:
        # What fails then is the task itself.
        transaction.on_commit(send, using=db, robust=robust)
    else:
        waiting = WaitingTask(task.app, task.name, task_id, send, calling_line())
        register(waiting, db=db, robust=robust, send=send_tasks)


def _into_outbox(app: Any, send: Callable[[], object], db: str | None) -> bool:
    """Have *send* write into the outbox, if that is where tasks of *app* go; return whether it has."""
    from .outbox.celery_apps import has_outbox
    from .outbox.writing import tasks_in

    if app.conf.task_always_eager or not has_outbox(app):
        return False
    with tasks_in(db):
        send()
    return True


def offer_to(app: Any) -> None:
    """Give these functions to the tasks of *app* as methods, in place of Celery's own.

    Only the base class that Celery has made for this application is changed. A ``task_cls`` with methods of its own
    keeps them.
    """
    from celery.contrib.django.task import DjangoTask

    base = app.Task
    for function in (delay_on_commit, apply_async_on_commit):
        name = function.__name__
        if getattr(base, name, None) is getattr(DjangoTask, name):
            setattr(base, name, function)


def _kept(value: Any) -> Any:
    """Return a copy of the containers in *value*, so that the caller cannot change them; other objects are the same."""
    try:
        return _copied(value)
    except RecursionError:
        # A value that contains itself: only pickle can write it.
        return value


def _copied(value: Any) -> Any:
    # Not of subclasses, such as Celery's signatures, because pickle would tell the difference.
    kind = type(value)
    if kind is dict:
        return {key: _copied(one) for key, one in value.items()}
    if kind in (list, tuple):
        return kind(map(_copied, value))
    return kind(value) if kind in (set, bytearray) else value
