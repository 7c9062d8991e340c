"""Publishing one message: now, or after the transaction."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue

from .conf import pools

__all__ = ["publish", "publish_on_commit"]


def publish(
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Any,
) -> Any:
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
    return pools.publish(body, routing_key, exchange=exchange, using=using, **kwargs)


def publish_on_commit(
    body: Any,
    routing_key: str | None = None,
    *,
    exchange: Any = None,
    using: str = "default",
    db: str | None = None,
    robust: bool = False,
    **kwargs: Any,
) -> None:
    """:func:`publish`, once the current transaction is committed; not at all after a rollback.

    Outside a transaction it publishes at once. The alias is looked up now, so that a wrong one fails where it stands.
    The body is kept, not copied.

    As with every callback of Django's ``on_commit``, an error of the publish is raised where the transaction ends,
    which is committed by then, and keeps the callbacks after it from running.

    :param db: the alias of the database; the default one if ``None``.
    :param robust: log an error of the publish instead, as Django's ``on_commit(robust=True)`` does.
    :raises UnknownAlias: if no pool is configured under *using*.
    :raises ImproperlyConfigured: if the setting is wrong.
    """
    from django.db import transaction

    pools.settings_of(using)

    # A function and not a partial: when it fails, Django logs its name.
    def publish_after_commit() -> None:
        publish(body, routing_key, exchange=exchange, using=using, **kwargs)

    transaction.on_commit(publish_after_commit, using=db, robust=robust)
