"""Publish with the transaction of an SQLAlchemy session."""

from __future__ import annotations

from typing import Any, Unpack

from kombu.entity import Exchange, Queue
from sqlalchemy.orm import Session, scoped_session

from ...aliases import Pools, configured_pools
from ...broker.publish_keywords import PublishKeywords
from ...outbox import claim_once
from ...outbox.row import check_alias, check_row
from ...prepared import prepare
from .execution import Execution, vendor_of
from .waiting import waiting_of

__all__ = ["claim", "publish_on_commit"]


def publish_on_commit(
    session: Session | scoped_session[Any],
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    outbox: bool | None = None,
    key: str | None = None,
    pools: Pools | None = None,
    **kwargs: Unpack[PublishKeywords],
) -> str:
    """Publish one message once the current transaction of *session* is committed; not at all after a rollback.

    The message is made now: alias and arguments are checked, the body is serialized, and the ``message_id`` is chosen.
    So a message that cannot be sent raises here, before the commit, and later changes of the objects do not change it.

    With the outbox the message becomes a row of the same transaction, and a relay publishes it, however long the broker
    is away. All messages of a transaction are written by one statement, right before the commit.

    Without it the message is published when the transaction is over. One that was not published then, or may not have
    been, is logged by ``kombu_pools_ext.sqlalchemy``, and the error is raised by ``session.commit()``, when all is
    already committed.

    For an ``AsyncSession`` call it by ``await session.run_sync(publish_on_commit, body, …)``.

    :param session: SQLAlchemy's, or Flask-SQLAlchemy's ``db.session``.
    :param body: any object that the serializer accepts.
    :param routing_key: with the default exchange, the name of a queue; a :class:`kombu.Queue` stands for its name.
    :param using: the alias of the pool.
    :param outbox: whether the message becomes a row; ``None`` is what the alias's setting ``OUTBOX`` says.
    :param key: with the outbox, messages with the same key arrive in the order of their commits.
    :param pools: where the alias is configured; ``None`` means by ``configure()``.
    :param kwargs: those of :meth:`.Pools.publish`.
    :returns: the ``message_id``.
    :raises TypeError, ValueError: for invalid arguments.
    :raises UnknownAlias: if no pool is configured under *using*.
    :raises EncodeError: if *body* cannot be serialized.
    """
    found = configured_pools() if pools is None else pools
    message = prepare(found, body, routing_key, exchange=exchange, using=using, **kwargs)
    settings = found.settings_of(using)
    in_outbox = settings.outbox if outbox is None else outbox
    if in_outbox:
        check_alias(using, settings)
        check_row(message, key)
    elif key is not None:
        raise ValueError(
            f"key {key!r} is for messages of the outbox, and this is none; write outbox=True, or set OUTBOX for alias "
            f"{using!r}"
        )
    real = session() if isinstance(session, scoped_session) else session
    waiting_of(real).add(real, found, message, key, in_outbox=in_outbox)
    return message.message_id


def claim(session: Session | scoped_session[Any], message_id: str, consumer: str) -> bool:
    """Note in the transaction of *session* that *consumer* handles a message; return whether it is for the first time.

    :param message_id: of the message.
    :param consumer: a name for those who handle a message once together: a queue's, say.
    :raises TypeError, ValueError: for a text that is none, or is too long.
    """
    real = session() if isinstance(session, scoped_session) else session
    connection = real.connection()
    return claim_once(
        Execution(connection), vendor_of(connection.dialect.name), message_id, consumer
    )
