"""Prepare a message now, to publish it later unchanged."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from kombu.abstract import Object
from kombu.entity import Exchange, Queue
from kombu.exceptions import EncodeError

from .broker.amqp.json_encoder import serialized
from .broker.arguments import checked
from .broker.message_id import new_message_id
from .broker.publish_keywords import PublishKeywords
from .broker.unbound_producer import unbound_producer
from .engine.lease import Borrower, outside

if TYPE_CHECKING:
    from .aliases import Pools

__all__ = ["Destination", "PreparedMessage", "calling_line", "kept", "prepare", "prepare_checked"]

_UNCHANGEABLE = frozenset({str, bool, int, float, bytes, type(None)})


class Destination(NamedTuple):
    """Where a message goes, and the line of the application that it is from; a text for errors and logs."""

    using: str
    exchange: str
    routing_key: str
    line: Borrower | None

    def __str__(self) -> str:
        line = self.line or "an unknown line"
        return f"alias {self.using!r}, exchange {self.exchange!r}, routing key {self.routing_key!r}, from {line}"


class PreparedMessage:
    """A checked and serialized message. Nothing that the caller changes later changes it.

    Its ``repr`` shows neither body nor headers, because they may contain secrets.
    """

    __slots__ = ("arguments", "body", "line", "using")

    def __init__(
        self, using: str, body: bytes, arguments: dict[str, Any], line: Borrower | None
    ) -> None:
        #: The alias.
        self.using = using
        #: The serialized body, compressed if the message has a compression.
        self.body = body
        #: The keywords of :meth:`.Pools.publish`, always with a ``message_id``.
        self.arguments = arguments
        #: The line of the application that prepared it.
        self.line = line

    @property
    def message_id(self) -> str:
        """The same for each attempt, so that a consumer can recognise duplicates."""
        message_id: str = self.arguments["message_id"]
        return message_id

    @property
    def where(self) -> str:
        """Its destination and the line that prepared it, for errors and logs."""
        exchange, key = self.arguments["exchange"], self.arguments["routing_key"]
        return str(Destination(self.using, exchange, key, self.line))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.message_id}: {self.where}>"


def prepare(
    pools: Pools,
    body: Any,
    routing_key: str | Queue | None = None,
    *,
    exchange: str | Exchange | None = None,
    using: str = "default",
    **kwargs: Unpack[PublishKeywords],
) -> PreparedMessage:
    """Check and serialize the message that ``pools.publish()`` would send with these arguments. Opens nothing.

    The message that is published later has the same body and properties, to the byte. Serializer and compression are
    those of the arguments, or else of the alias, and the ``message_id`` is chosen now.

    :raises UnknownAlias: if no pool is configured under *using*.
    :raises TypeError, ValueError: for invalid arguments, as in :meth:`.Pools.publish`.
    :raises EncodeError: if *body* cannot be serialized.
    """
    # An unknown alias is told before anything else is.
    pools.settings_of(using)
    key, to, options = checked(routing_key, exchange, kwargs, body)
    return prepare_checked(pools, using, body, key, to, kept(options), calling_line())


def prepare_checked(
    pools: Pools,
    using: str,
    body: Any,
    routing_key: str,
    exchange: str | Exchange | None,
    arguments: dict[str, Any],
    line: Borrower | None,
) -> PreparedMessage:
    """Serialize a message whose arguments were checked, and kept; they become those of the prepared message.

    :raises EncodeError: if *body* cannot be serialized.
    """
    settings = pools.settings_of(using)
    producer = unbound_producer(pools.producers[using])
    headers = arguments["headers"] = arguments.get("headers") or {}
    # Only the name is kept, because an Exchange can be changed later.
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
        # The body is compressed already, so the alias's compression must not apply.
        compression="",
    )
    if isinstance(content, str) and encoding != "utf-8" and not settings.is_amqp:
        # kombu's other transports decode text as UTF-8, whatever the encoding says.
        encoding = "utf-8"
    return PreparedMessage(using, _octets(content, encoding), arguments, line)


def kept(options: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of *options*, which nothing changes that the caller does later."""
    return {
        name: value if type(value) in _UNCHANGEABLE else _kept(value)
        for name, value in options.items()
    }


def _kept(value: Any) -> Any:
    """Return a deep copy of the containers in *value*, so that the caller cannot change them."""
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
        # Not copy(), because the copy of a kombu entity shares exchange and arguments, and ignores subclasses.
        copy = object.__new__(type(value))
        copy.__dict__.update((name, _kept(one)) for name, one in vars(value).items())
        return copy
    return value


def _octets(content: Any, encoding: str | None) -> bytes:
    """Return *content* as the bytes to send.

    :raises EncodeError: if it cannot be encoded.
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


def calling_line() -> Borrower | None:
    """Return the line of the application that has called us; ``None`` if nobody but us is on the stack."""
    frame = outside(sys._getframe(1))
    return None if frame is None else Borrower(frame.f_code, frame.f_lasti)
