"""Which session a connection gets: the one place that asks what kind of transport there is."""

from __future__ import annotations

from typing import Any

from . import redis_sockets, virtual_leftovers
from .amqp.connection import TransportBase
from .amqp.session import AmqpSession
from .plain import PlainSession
from .redis import RedisSession
from .session import Session

__all__ = ["session_for"]


def session_for(connection: Any, transport: Any) -> Session:
    """Return a session for *connection*, which is about to be carried by *transport*.

    One of the same kind that it has already stays: the deadline of what is being done also holds for what
    *transport* connects to.
    """
    present: Session = connection.pooled_session
    if isinstance(transport, TransportBase):
        return present if isinstance(present, AmqpSession) else AmqpSession(connection)
    is_redis = getattr(transport, "driver_type", None) == "redis"
    if is_redis:
        redis_sockets.bound(transport)
    virtual_leftovers.note_channels(transport)
    if not is_redis:
        return PlainSession(connection)
    return present if isinstance(present, RedisSession) else RedisSession(connection)
