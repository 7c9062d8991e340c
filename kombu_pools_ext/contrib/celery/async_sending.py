"""Send a task in a coroutine, over the alias of its application, without blocking the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from celery import signals
from kombu.exceptions import LimitExceeded

from ...broker.publish_keywords import MessageKeywords
from .adopted_amqp import AdoptedAMQP
from .adoption import Adoption
from .errors import CannotAdopt, as_operational

__all__ = ["asend_task"]

#: The keywords of a publish; other options of a task are no properties of its message.
_KNOWN = frozenset({"exchange", "routing_key", *MessageKeywords.__annotations__})


class _Recorded(BaseException):
    """Celery has made its message. Not an ``Exception``, so that Celery does not take it for a failed publish."""


class _Recorder:
    """Stands for a producer: it publishes nothing, and keeps what it was to publish.

    :param connection: one that Celery may ask for the errors of its transport.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.body: Any = None
        self.arguments: dict[str, Any] = {}

    def publish(self, body: Any, **arguments: Any) -> None:
        """Keep the message, and end the call of Celery.

        :raises _Recorded: always.
        """
        self.body, self.arguments = body, arguments
        raise _Recorded


async def asend_task(
    app: Any, name: str, args: Any = None, kwargs: Any = None, *, task_id: str, **options: Any
) -> None:
    """Send a task by its name, as ``app.send_task(name, args, kwargs, ignore_result=True)``, in a coroutine.

    Celery makes the message and chooses its queue, with its signals; the message is published by
    :meth:`.Pools.apublish`. No result is asked for, because result backends block.

    :param app: an adopted application.
    :param options: those of ``send_task``.
    :raises CannotAdopt: if *app* is not adopted, or its broker is not that of the alias.
    :raises OperationalError: as :meth:`.Pools.publish`; also if all connections are in use.
    """
    amqp_cls = app.amqp_cls
    if not isinstance(amqp_cls, AdoptedAMQP):
        raise CannotAdopt(
            f"the Celery app {app.main!r} publishes over pools of its own, which block; adopt() it first"
        )
    adoption = amqp_cls.join(app)
    adoption.check()
    producer = _Recorder(adoption.template)
    with suppress(_Recorded):
        app.send_task(
            *(name, args, kwargs), task_id=task_id, producer=producer, ignore_result=True, **options
        )
    body, sent = producer.body, producer.arguments
    await _publish(adoption, body, sent)
    adoption.count_task()
    headers, where = sent["headers"], {one: sent[one] for one in ("exchange", "routing_key")}
    signals.after_task_publish.send(sender=name, body=body, headers=headers, **where)
    # Messages of protocol 1 have no headers.
    if app.conf.task_send_sent_event and "id" in headers:
        await _publish_event(app, adoption, name, headers, where, sent.get("declare"))


async def _publish(adoption: Adoption, body: Any, arguments: Mapping[str, Any]) -> None:
    """Publish what a producer was to publish, with the alias's ``RETRY`` in place of the application's policy."""
    known = {name: one for name, one in arguments.items() if name in _KNOWN and one is not None}
    retry, policy = known.pop("retry", True), known.pop("retry_policy", None)
    if not retry:
        known["retry"] = False
    elif policy and policy != adoption.default_policy:
        known.update(retry=True, retry_policy=policy)
    pools, using = adoption.find_pools(), adoption.using
    try:
        await pools.apublish(body, using=using, acquire_timeout=adoption.patience(None), **known)
    except LimitExceeded as error:
        raise as_operational(error, using) from (error.__cause__ or error)


async def _publish_event(
    app: Any, adoption: Adoption, name: str, headers: Any, where: Mapping[str, Any], declare: Any
) -> None:
    fields = {
        "uuid": headers["id"],
        "name": name,
        "args": headers["argsrepr"],
        "kwargs": headers["kwargsrepr"],
        **{one: headers[one] for one in ("root_id", "parent_id", "retries", "eta", "expires")},
        "queue": declare[0].name if declare else where["routing_key"],
        "exchange": getattr(where["exchange"], "name", where["exchange"]),
        "routing_key": where["routing_key"],
    }
    dispatcher = app.events.Dispatcher(enabled=False)
    producer = _Recorder(adoption.template)
    with suppress(_Recorded):
        dispatcher.publish("task-sent", fields, producer, retry=True)
    await _publish(adoption, producer.body, {**producer.arguments, "mandatory": False})
