"""Publish one message: now, in the background, in a coroutine, or after the transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from kombu.entity import Exchange, Queue

from kombu_pools_ext import PublishKeywords
from kombu_pools_ext.prepared import PreparedMessage, prepare
from kombu_pools_ext.whole_imports import import_whole

from .async_safety import refuse_in_event_loop
from .conf import pools
from .lazy_text import rendered

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["apublish", "publish", "publish_on_commit", "submit"]


def publish(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Unpack[PublishKeywords],
) -> None:
    """Publish one message on a producer of the pool, as :meth:`kombu_pools_ext.Pools.publish`, which lists the errors.

    With ``CONFIRM``, which is the default, it returns when the broker has the message. If the connection breaks, it is
    tried again on another one, as ``RETRY`` says. Lazy text is rendered in the current language.

    :param body: any object that the serializer accepts.
    :param routing_key: with the default exchange, the name of a queue; a :class:`kombu.Queue` stands for its name.
    :param exchange: a name or a :class:`kombu.Exchange`; by default the default exchange.
    :param using: the alias of the pool.
    :param kwargs: ``acquire_timeout`` in seconds, in place of ``ACQUIRE_TIMEOUT``, and those of
        :meth:`kombu.Producer.publish`, such as ``declare``, ``headers``, ``priority`` and ``expiration``.
    :raises ImproperlyConfigured: if the setting is wrong.
    :raises SynchronousOnlyOperation: in a thread whose event loop is running, unless ``DJANGO_ALLOW_ASYNC_UNSAFE`` is
        set; there, await :func:`apublish`.
    """
    refuse_in_event_loop("publish()", "await apublish(…), with the same arguments")
    body, routing_key, options = _rendered(body, routing_key, using, kwargs)
    pools.publish(body, routing_key, exchange=rendered(exchange), using=using, **options)


def submit(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Unpack[PublishKeywords],
) -> Future[None]:
    """Publish one message in the background, as :meth:`kombu_pools_ext.Pools.submit`, which lists the errors.

    The message is made now: lazy text is rendered in the current language, and the body is serialized. The transaction
    is not waited for; :func:`publish_on_commit` does that.

    The arguments are those of :func:`publish`.

    :returns: a future whose result is ``None``, and whose exception is what :func:`publish` would have raised.
    :raises ImproperlyConfigured: if the setting is wrong.
    """
    body, routing_key, options = _rendered(body, routing_key, using, kwargs)
    return pools.submit(body, routing_key, exchange=rendered(exchange), using=using, **options)


async def apublish(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Unpack[PublishKeywords],
) -> None:
    """Publish one message in a coroutine, as :meth:`kombu_pools_ext.Pools.apublish`: it never blocks the event loop.

    Lazy text is rendered in the current language. Arguments and errors are those of :func:`publish`.

    :raises ImproperlyConfigured: if the setting is wrong.
    """
    body, routing_key, options = _rendered(body, routing_key, using, kwargs)
    await pools.apublish(body, routing_key, exchange=rendered(exchange), using=using, **options)


def publish_on_commit(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    db: str | None = None,
    robust: bool = False,
    outbox: bool | None = None,
    key: str | None = None,
    **kwargs: Unpack[PublishKeywords],
) -> str:
    """Publish one message, as :func:`publish`, once the current transaction is committed; not at all after a rollback.

    The message is made now: alias and arguments are checked, lazy text is rendered in the current language, the body is
    serialized, and the ``message_id`` is chosen. So a message that cannot be sent raises here, before the commit, and
    later changes of the objects do not change the message. Outside a transaction it is published at once.

    With *outbox* the message becomes a row of the transaction, and a relay publishes it, however long the broker is
    away. Outside a transaction, the row is a transaction of its own. :func:`django_app.outbox.bulk` writes many at
    once.

    Without it, messages that are registered in a row in one transaction, without another callback between them, are
    sent together when the first of them is due: those of one alias in their order, and if the broker confirms, as one
    batch.

    A message that was not published, or may not have been, is logged by ``kombu_pools_ext.django``, and becomes a note
    on the error, with alias, exchange, routing key, ``message_id`` and the line that called this function. As with all
    callbacks of Django's ``on_commit``, the error is raised where the transaction ends, when it is already committed,
    and the callbacks after it do not run.

    :param db: the alias of the database; ``None`` means the default one.
    :param robust: whether Django logs the error and goes on, as with ``on_commit(robust=True)``; no matter with
        *outbox*.
    :param outbox: whether the message becomes a row; ``None`` is what the alias's setting ``OUTBOX`` says.
    :param key: with the outbox, messages of an alias with the same key arrive in the order of their commits.
    :returns: the ``message_id``.
    :raises TypeError, ValueError: for invalid arguments.
    :raises UnknownAlias: if no pool is configured under *using*.
    :raises EncodeError: if *body* cannot be serialized.
    :raises ImproperlyConfigured: if the setting is wrong, or ``"django_app.outbox"`` is not installed.
    :raises DatabaseError: if the row cannot be written.
    """
    if outbox is not None and not isinstance(outbox, bool):
        raise TypeError(f"outbox must be True, False or None, not {outbox!r}")
    body, routing_key, options = _rendered(body, routing_key, using, kwargs)
    message = prepare(pools, body, routing_key, exchange=rendered(exchange), using=using, **options)
    in_outbox = pools.settings_of(using).outbox if outbox is None else outbox
    if in_outbox:
        _write(message, key, db)
    elif key is not None:
        raise ValueError(
            f"key {key!r} is for messages of the outbox, and this is none: write outbox=True, or set OUTBOX for the "
            f"alias {using!r}"
        )
    else:
        _register(message, db, robust)
    return message.message_id


def _write(message: PreparedMessage, key: str | None, db: str | None) -> None:
    import_whole(f"{__package__}.outbox.writing")
    from kombu_pools_ext.outbox.row import check_alias

    from .outbox.writing import write

    check_alias(message.using, pools.settings_of(message.using))
    write(message, key, db)


def _register(message: PreparedMessage, db: str | None, robust: bool) -> None:
    import_whole(f"{__package__}.after_commit")
    from .after_commit import register

    register(message, db=db, robust=robust)


def _rendered(
    body: Any, routing_key: Any, using: str, kwargs: Mapping[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """Return body, routing key and keywords with text in place of lazy text."""
    serializer = kwargs.get("serializer") or pools.settings_of(using).serializer
    # kombu's JSON serializer renders lazy text within the body itself.
    body = rendered(body, levels=serializer not in (None, "json"))
    return body, rendered(routing_key), {name: rendered(one) for name, one in kwargs.items()}
