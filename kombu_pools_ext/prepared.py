"""A message that is made now and published later, as it was when it was made."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import kombu
from kombu.abstract import Object
from kombu.exceptions import EncodeError

from .broker.arguments import checked
from .broker.confirms import new_message_id
from .broker.serializing import serialized
from .engine.lease import Borrower, outside

if TYPE_CHECKING:
    from .aliases import Pools

__all__ = ["PreparedMessage", "prepare"]

#: By producer pool, what tells how its producers make a message.
_producers: MutableMapping[Any, Any] = WeakKeyDictionary()


class PreparedMessage:
    """What :meth:`.Pools.publish` is to send, checked and serialized; nothing that its maker does later changes it.

    It shows neither body nor headers: they may hold what no log should.
    """

    __slots__ = ("arguments", "body", "line", "using")

    def __init__(
        self, using: str, body: bytes, arguments: dict[str, Any], line: Borrower | None
    ) -> None:
        #: The alias.
        self.using = using
        #: The serialized body, compressed if that was asked for.
        self.body = body
        #: The keywords of :meth:`.Pools.publish`; among them is always a ``message_id``.
        self.arguments = arguments
        #: The line outside this distribution that had it made.
        self.line = line

    @property
    def message_id(self) -> str:
        """The same for each try, by which a consumer tells copies."""
        message_id: str = self.arguments["message_id"]
        return message_id

    @property
    def where(self) -> str:
        """Where it is to go, and who wanted that, for errors and logs."""
        exchange, key = self.arguments["exchange"], self.arguments["routing_key"]
        line = self.line or "an unknown line"
        return f"alias {self.using!r}, exchange {exchange!r}, routing key {key!r}, from {line}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.message_id}: {self.where}>"


def prepare(
    pools: Pools,
    body: Any,
    routing_key: str | kombu.Queue | None = None,
    *,
    exchange: str | kombu.Exchange | None = None,
    using: str = "default",
    **kwargs: Any,
) -> PreparedMessage:
    """Check and serialize what ``pools.publish()`` would send with these arguments; nothing is opened.

    The message that is published later is the same, in each byte and property, as it would be now: the serializer and
    the compression are those of the arguments or else the alias's, and the ``message_id`` is given now.

    :raises UnknownAlias: if no pool is configured under *using*.
    :raises TypeError, ValueError: for arguments that cannot be, as :meth:`.Pools.publish` does.
    :raises EncodeError: if *body* cannot be serialized.
    """
    settings = pools.settings_of(using)
    producer = _producer_of(pools.producers[using])
    routing_key, exchange, kwargs = checked(routing_key, exchange, kwargs, body)
    arguments: dict[str, Any] = {name: _kept(value) for name, value in kwargs.items()}
    headers = arguments["headers"] = arguments.get("headers") or {}
    # An Exchange may be changed later, too.
    name, delivery_mode = producer._delivery_details(
        exchange or producer.exchange, arguments.get("delivery_mode")
    )
    serializer, compression = arguments.pop("serializer", None), arguments.get("compression")
    if compression is None:
        compression = producer.compression
    given = arguments.get("content_type"), arguments.get("content_encoding")
    if compression:
        made = producer._prepare(body, serializer, *given, compression, headers)
    else:
        made = serialized(producer, body, serializer, *given, headers)
    content, content_type, encoding = made
    if arguments.get("message_id") is None:
        arguments["message_id"] = new_message_id()
    arguments.update(
        exchange=name,
        routing_key=routing_key,
        delivery_mode=delivery_mode,
        content_type=content_type,
        content_encoding=encoding,
        # Done already, whatever the alias says.
        compression="",
    )
    if isinstance(content, str) and encoding != "utf-8" and not settings.is_amqp:
        # Whatever the encoding says, kombu's other transports take text for UTF-8.
        encoding = "utf-8"
    return PreparedMessage(using, _octets(content, encoding), arguments, _caller())


def _producer_of(pool: Any) -> Any:
    """A producer of the pool's class, with the alias's serializer and compression, but without a channel."""
    producer = _producers.get(pool)
    if producer is None:
        producer = _producers[pool] = pool.Producer(None)
    return producer


def _kept(value: Any) -> Any:
    """*value*, which nobody else can change: containers are copied, with those within."""
    if isinstance(value, dict):
        return {key: _kept(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(_kept, value))
    if isinstance(value, tuple):
        return tuple(map(_kept, value))
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, set):
        return set(map(_kept, value))
    if isinstance(value, Object):
        # An entity of kombu's, whose own copy shares exchange and arguments, and knows nothing of a subclass.
        kept = object.__new__(type(value))
        kept.__dict__.update((name, _kept(one)) for name, one in vars(value).items())
        return kept
    return value


def _octets(content: Any, encoding: str | None) -> bytes:
    """*content* as it is sent.

    :raises EncodeError: if it cannot be.
    """
    if isinstance(content, str):
        try:
            return content.encode(encoding or "utf-8")
        except (LookupError, ValueError) as error:
            raise EncodeError(str(error)) from error
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise EncodeError(
        f"the serializer made a {type(content).__name__} of the body, not text or bytes"
    )


def _caller() -> Borrower | None:
    frame = outside(sys._getframe(1))
    return None if frame is None else Borrower(frame.f_code, frame.f_lasti)
