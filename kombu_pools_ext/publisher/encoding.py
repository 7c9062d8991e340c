"""Make a message for the shared road out of the arguments of a publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu.entity import Queue

from ..broker.amqp.compat import fits, is_unchanged
from ..broker.amqp.frames import encode
from ..broker.amqp.json_encoder import octets_of, serialized
from ..broker.leased_producer import REPLY_TO
from ..broker.message_id import new_message_id
from ..broker.producers import ProducerPool
from ..broker.retrying import LONGEST_TRY
from ..broker.unbound_producer import unbound_producer
from .outgoing import Outgoing

__all__ = ["LARGEST", "outgoing"]

#: Bytes of a body up to which a message is shared: nobody stands behind a larger one, which has a lease for itself.
LARGEST = 131072
#: Arguments with which a message is published over a lease: they are about the producer or its retries.
_ON_A_LEASE = ("compression", "immediate", "retry_policy")

#: Arguments that are no properties of the message, and are dealt with before.
_NO_PROPERTIES = frozenset((*_ON_A_LEASE, "declare"))


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
    declare = tuple(options.get("declare") or ())
    if not _can_be_shared(producer, options, declare):
        return None
    options = {name: value for name, value in options.items() if name not in _NO_PROPERTIES}
    retry = options.pop("retry", None)
    timeout, confirm_timeout = options.pop("timeout", None), options.pop("confirm_timeout", None)
    name, delivery_mode = producer._delivery_details(
        exchange or producer.exchange, options.pop("delivery_mode", None)
    )
    mandatory = _is_mandatory(pool, name, routing_key, options)
    message_id = options.pop("message_id", None) or new_message_id()
    body_and_properties = _serialize(producer, body, options)
    if body_and_properties is None:
        return None
    parts: tuple[Any, ...] = (name, routing_key, mandatory, message_id, delivery_mode)
    parts += body_and_properties
    encode_for: Callable[[int, int], bytes] = partial(_frames, *parts)
    message = Outgoing(
        message_id,
        name,
        routing_key,
        mandatory,
        encode=encode_for,
        size=len(body_and_properties[0]),
        **_times(pool, acquire_timeout, timeout, confirm_timeout),
        tries=_tries(pool, retry),
        declare=declare,
    )
    return message if message.frames(number_of(name), frame_max) else None


def _serialize(
    producer: Any, body: Any, options: dict[str, Any]
) -> tuple[bytes, str | None, str | None, int, dict[str, Any], dict[str, Any]] | None:
    """Return body, content type, encoding, priority, headers and the other properties; ``None`` for a lease."""
    headers = options.pop("headers", None) or {}
    expiration = options.pop("expiration", None)
    if expiration is not None:
        options["expiration"] = str(int(expiration * 1000))
    content, content_type, content_encoding = serialized(
        producer,
        body,
        options.pop("serializer", None),
        options.pop("content_type", None),
        options.pop("content_encoding", None),
        headers,
    )
    octets = octets_of(content, content_encoding)
    if octets is None or len(octets) > LARGEST:
        return None
    priority = options.pop("priority", None) or 0
    return octets, content_type, content_encoding, priority, headers, options


def _can_be_shared(producer: Any, options: dict[str, Any], declare: tuple[Any, ...]) -> bool:
    """Whether a message with these arguments may be published over a connection that others use."""
    return (
        not producer.compression
        and not any(options.get(name) for name in _ON_A_LEASE)
        and all(_outlasts_a_lease(entity) for entity in declare)
        and fits()
        and is_unchanged()
    )


def _is_mandatory(
    pool: ProducerPool, exchange: str, routing_key: str, options: dict[str, Any]
) -> bool:
    """Whether the message comes back if no queue takes it; takes that out of *options*."""
    if "mandatory" in options:
        return bool(options.pop("mandatory"))
    wanted = pool.mandatory is True or (bool(pool.mandatory) and not exchange)
    return wanted and not routing_key.startswith(REPLY_TO)


def _times(
    pool: ProducerPool,
    acquire_timeout: float | None,
    timeout: float | None,
    confirm_timeout: float | None,
) -> dict[str, Any]:
    """Return until when a message must be written, and how long it waits for its confirm, in seconds."""
    now = time.monotonic()
    usual = pool.confirm_timeout if confirm_timeout is None else confirm_timeout
    return {
        "began": now,
        "until": float("inf") if acquire_timeout is None else now + acquire_timeout,
        # As over a lease: *timeout* is for all tries; else they have the time of one.
        "seconds": min(usual if timeout is None else timeout, LONGEST_TRY),
    }


def _frames(
    name: str,
    routing_key: str,
    mandatory: bool,
    message_id: str,
    delivery_mode: int,
    octets: bytes,
    content_type: str | None,
    content_encoding: str | None,
    priority: int,
    headers: dict[str, Any],
    properties: dict[str, Any],
    channel: int,
    frame_max: int,
) -> bytes:
    made = encode(
        *(channel, frame_max, name, routing_key, mandatory, False, octets, message_id),
        *(content_type, content_encoding, priority, delivery_mode, headers, properties),
    )
    return made or b""


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
