"""Make a message for the shared road out of the arguments of a publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kombu.entity import Queue

from ..broker.amqp.compat import fits, is_unchanged
from ..broker.amqp.json_encoder import octets_of, serialized
from ..broker.leased_producer import REPLY_TO
from ..broker.message_id import new_message_id
from ..broker.producers import ProducerPool
from ..broker.retrying import LONGEST_TRY
from ..broker.unbound_producer import unbound_producer
from .content import Content
from .outgoing import Outgoing

__all__ = ["LARGEST", "outgoing"]

#: Bytes of a body up to which a message is shared: nobody stands behind a larger one, which has a lease for itself.
LARGEST = 131072
#: Arguments with which a message is published over a lease: they are about the producer or its retries.
_ON_A_LEASE = ("compression", "immediate", "retry_policy")


def outgoing(
    pool: ProducerPool,
    body: Any,
    routing_key: str,
    exchange: Any,
    options: dict[str, Any],
    *,
    frame_max: int,
    acquire_timeout: float | None,
    number_of: Callable[[str], int] = lambda exchange: 1,
) -> Outgoing | None:
    """Serialize a message; return ``None`` if it has to be published over a lease. Nothing is opened or sent.

    :param options: further keywords of a publish, checked.
    :param frame_max: bytes of a frame, as far as is known.
    :param acquire_timeout: seconds until it has to be written.
    :param number_of: returns the number of the channel that an exchange will have, as far as is known.
    :raises EncodeError: if *body* cannot be serialized.
    :raises ValueError: for headers that a frame has no room for.
    """
    producer = unbound_producer(pool)
    if producer.compression or not fits() or not is_unchanged():
        return None
    options = options.copy()
    take = options.pop
    for keyword in _ON_A_LEASE:
        if take(keyword, None):
            return None
    declare = tuple(take("declare", None) or ())
    if declare and not all(map(_outlasts_a_lease, declare)):
        return None
    retry, timeout = take("retry", None), take("timeout", None)
    confirm_timeout = take("confirm_timeout", None)
    if confirm_timeout is None:
        confirm_timeout = pool.confirm_timeout
    name, delivery_mode = producer._delivery_details(
        exchange or producer.exchange, take("delivery_mode", None)
    )
    mandatory = take("mandatory", None)
    if mandatory is None:
        mandatory = _is_mandatory(pool, name, routing_key)
    message_id = take("message_id", None) or new_message_id()
    content = _serialize(producer, body, delivery_mode, options)
    if content is None:
        return None
    now = time.monotonic()
    message = Outgoing(
        *(message_id, name, routing_key, bool(mandatory)),
        content=content,
        began=now,
        until=float("inf") if acquire_timeout is None else now + acquire_timeout,
        # As over a lease: *timeout* is for all tries; else they have the time of one.
        seconds=min(confirm_timeout if timeout is None else timeout, LONGEST_TRY),
        tries=_tries(pool, retry),
        declare=declare,
    )
    return message if message.frames(number_of(name), frame_max) else None


def _serialize(
    producer: Any, body: Any, delivery_mode: int, options: dict[str, Any]
) -> Content | None:
    """Return the body, serialized, with its properties; ``None`` for a lease."""
    take = options.pop
    headers = take("headers", None) or {}
    expiration = take("expiration", None)
    if expiration is not None:
        options["expiration"] = str(int(expiration * 1000))
    made, content_type, content_encoding = serialized(
        producer,
        body,
        take("serializer", None),
        take("content_type", None),
        take("content_encoding", None),
        headers,
    )
    octets = octets_of(made, content_encoding)
    if octets is None or len(octets) > LARGEST:
        return None
    return Content(
        *(octets, content_type, content_encoding, take("priority", None) or 0, delivery_mode),
        *(headers, options),
    )


def _is_mandatory(pool: ProducerPool, exchange: str, routing_key: str) -> bool:
    """Whether a message comes back if no queue takes it, where its publish does not say that itself."""
    wanted = pool.mandatory is True or (bool(pool.mandatory) and not exchange)
    return wanted and not routing_key.startswith(REPLY_TO)


def _tries(pool: ProducerPool, retry: bool | None) -> int | None:
    """Return how often the message may be sent again; ``None`` is any number."""
    if retry is False or (retry is None and pool.retry is None):
        return 0
    return None if pool.retry is None else pool.retry.max_retries


def _outlasts_a_lease(entity: Any) -> bool:
    """Whether what *entity* declares is there for other connections as well, and for longer than one."""
    if isinstance(entity, Queue) and entity.exclusive:
        return False
    return bool(getattr(entity, "can_cache_declaration", False))
