"""What would be wrong with a task, found without sending it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from numbers import Real
from typing import Any

from celery.app.task import extract_exec_options
from kombu import serialization
from kombu.utils.functional import maybe_list
from kombu.utils.json import dumps

from ...broker.arguments import checked
from ...broker.publish_keywords import MessageKeywords
from ...settings.urls import implementation_of
from .adopted_amqp import AdoptedAMQP

__all__ = ["check_task"]

#: Options of ``apply_async`` that Celery writes into the message; what remains is for the publish.
_OF_MESSAGE = frozenset(
    {
        *("countdown", "eta", "group_id", "group_index", "expires", "retries", "chord", "reply_to"),
        *("time_limit", "soft_time_limit", "root_id", "parent_id", "shadow", "chain"),
        *("argsrepr", "kwargsrepr", "stamped_headers"),
    }
)
#: Keywords of a publish, apart from the headers, which are those of the message.
_OF_PUBLISH = frozenset(MessageKeywords.__annotations__) - {"headers", "declare", "reply_to"}


def check_task(
    task: Any, args: Any = None, kwargs: Any = None, *, task_id: str, **options: Any
) -> None:
    """Check what ``task.apply_async`` with these arguments would send. Nothing is opened, and no signal is sent.

    The arguments are compared with the task's signature (unless its ``typing`` is off), the message is made and
    serialized, and the queue, the properties of the message, and, if the application is adopted, its broker are
    checked. With ``task_always_eager`` only signature and serializer are, because nothing is sent.

    :param task: a task of Celery.
    :param options: those of ``apply_async``.
    :raises TypeError: if the arguments do not fit the task, and for a value of a wrong type.
    :raises ValueError: for a value out of range.
    :raises QueueNotFound: if the queue is not configured, and Celery may not make it. It is a ``KeyError``.
    :raises EncodeError: if the message cannot be serialized.
    :raises CannotAdopt: if the broker of the application is not that of the alias.
    :raises UnknownAlias: if the alias is not configured.
    """
    app = task.app
    if task.soft_time_limit and task.time_limit and task.soft_time_limit > task.time_limit:
        raise ValueError("soft_time_limit must be less than or equal to time_limit")
    check_signature = getattr(task, "__header__", None)
    if task.typing and check_signature is not None:
        check_signature(*(args or ()), **(kwargs or {}))
    merged = {**extract_exec_options(task), **options}
    serializer = merged.get("serializer") or app.conf.task_serializer
    as_plain = getattr(task, "_dump_pydantic_arguments", None)
    if as_plain is not None and serializer != "pickle":
        args, kwargs = as_plain(args, kwargs)
    if app.conf.task_always_eager:
        serialization.dumps((args, kwargs), serializer)
        return
    if isinstance(app.amqp_cls, AdoptedAMQP):
        app.amqp_cls.join(app).check()
    routed = app.amqp.router.route(dict(merged), task.name, args, kwargs, task)
    message = app.amqp.create_task_message(
        task_id,
        task.name,
        *(args, kwargs),
        callbacks=maybe_list(routed.get("link")),
        errbacks=maybe_list(routed.get("link_error")),
        **{name: value for name, value in routed.items() if name in _OF_MESSAGE},
        **{stamp: routed[stamp] for stamp in routed.get("stamped_headers") or ()},
    )
    serialization.dumps(message.body, serializer)
    _check_publish(app, routed, {**message.headers, **(routed.get("headers") or {})})


def _check_publish(app: Any, routed: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    """Check the keywords of the publish, with the options after Celery's router."""
    known = {name: value for name, value in routed.items() if name in _OF_PUBLISH}
    if _is_on_amqp(app):
        known["headers"] = headers
    else:
        # Other transports write headers as JSON, which can carry more.
        dumps(headers)
    expires = _seconds_until(routed.get("expires"))
    if expires is not None:
        known["expiration"] = max(0.0, expires)
    queue = routed.get("queue")
    key = routed.get("routing_key") or getattr(queue, "name", queue)
    checked(key, routed.get("exchange"), known)


def _is_on_amqp(app: Any) -> bool:
    amqp_cls = app.amqp_cls
    if isinstance(amqp_cls, AdoptedAMQP):
        adoption = amqp_cls.join(app)
        settings = adoption.find_pools().settings_of(adoption.using)
        return settings.is_amqp
    return implementation_of(str(app.connection_for_write().info()["transport"])) == "pyamqp"


def _seconds_until(expires: Any) -> float | None:
    """Return the seconds until a task expires; ``None`` if it does not, or if it is text, which Celery parses."""
    if isinstance(expires, datetime):
        return expires.timestamp() - time.time()
    return float(expires) if isinstance(expires, Real) else None
