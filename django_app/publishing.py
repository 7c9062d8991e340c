"""Publishing one message: now, or after the transaction."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue

from kombu_pools_ext.prepared import prepare

from .conf import pools
from .lazy_text import rendered

__all__ = ["publish", "publish_on_commit"]


def publish(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Any,
) -> None:
    """Publish one message: take a producer from the pool, publish, give it back.

    A publish whose connection broke is tried again on another one, as ``RETRY`` says. With ``CONFIRM``, which is the
    default, it returns when the broker has the message.

    :param body: whatever the serializer takes.
    :param routing_key: with the default exchange, the name of a queue; a :class:`kombu.Queue` stands for its name.
    :param exchange: name or :class:`kombu.Exchange`; by default the default exchange.
    :param using: the alias of the pool.
    :param kwargs: ``acquire_timeout``, in seconds, in place of the setting's ``ACQUIRE_TIMEOUT``, and those of
        :meth:`kombu.Producer.publish`: ``declare``, ``headers``, ``priority``, ``expiration``, ….
    :raises TypeError, ValueError: for arguments that cannot be, all of them at once, before anything is opened or sent.
    :raises UnknownAlias: if no pool is configured under *using*.
    :raises LimitExceeded: if no producer became free in time.
    :raises OperationalError: if the broker cannot be reached.
    :raises ImproperlyConfigured: if the setting is wrong.
    """
    body, routing_key, kwargs = _rendered(body, routing_key, using, kwargs)
    pools.publish(body, routing_key, exchange=rendered(exchange), using=using, **kwargs)


def publish_on_commit(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    db: str | None = None,
    robust: bool = False,
    **kwargs: Any,
) -> None:
    """:func:`publish`, once the current transaction is committed; not at all after a rollback.

    The message is made now: alias and arguments are checked, lazy text is rendered in the current language, the body is
    serialized, the ``message_id`` is given. What cannot be sent fails where it stands, before the commit, and what the
    caller changes later is not sent changed. Outside a transaction it is published at once.

    Messages of one transaction that are registered in a row, with no other callback between them, go out together where
    the first of them stands: those of one alias in their order, and where the broker confirms, as one batch.

    A message that could not be published, or may not have been, has a record in the log ``kombu_pools_ext.django`` and
    a note on the error, with alias, exchange, routing key, ``message_id`` and the line that called this function. As
    with every callback of Django's ``on_commit``, the error is raised where the transaction ends, which is committed by
    then, and keeps the callbacks after it from running.

    :param db: the alias of the database; the default one if ``None``.
    :param robust: have Django log the error instead, and go on, as ``on_commit(robust=True)`` does.
    :raises TypeError, ValueError: for arguments that cannot be.
    :raises UnknownAlias: if no pool is configured under *using*.
    :raises EncodeError: if *body* cannot be serialized.
    :raises ImproperlyConfigured: if the setting is wrong.
    """
    from .after_commit import register

    body, routing_key, kwargs = _rendered(body, routing_key, using, kwargs)
    message = prepare(pools, body, routing_key, exchange=rendered(exchange), using=using, **kwargs)
    register(message, db=db, robust=robust)


def _rendered(
    body: Any, routing_key: Any, using: str, kwargs: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """Body, routing key and keywords with text in place of lazy text."""
    serializer = kwargs.get("serializer") or pools.settings_of(using).serializer
    # kombu's JSON renders what is within.
    body = rendered(body, levels=serializer not in (None, "json"))
    return body, rendered(routing_key), {name: rendered(one) for name, one in kwargs.items()}
