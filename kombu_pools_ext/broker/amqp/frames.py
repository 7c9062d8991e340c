"""The frames of a publish and of its answer, byte for byte as py-amqp writes them, with what repeats encoded once.

py-amqp encodes each property of each message by itself, which takes as long as the operating system needs to send it.
Of the messages of one application next to all have the same, but for their ``message_id``, headers and times.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import isfinite
from struct import Struct, pack
from typing import Any

from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps
from amqp.spec import Basic

from .deliveries import DeliveryTracker
from .tables import encode_table

__all__ = [
    "ANSWER",
    "HEAD",
    "LONGEST",
    "answer_heads",
    "check_properties",
    "encode",
    "encode_publish",
    "take_answers",
    "unpack_answer",
]

#: Bytes of a message that are put together for one write. What is longer goes py-amqp's way, a frame at a time: one
#: more copy of it would cost more than the writes.
LONGEST = 1 << 20

#: Bytes of the frame of an answer.
ANSWER = 21

#: Encodings kept at most, of each kind. More routing keys than that are encoded anew.
_MOST_KEPT = 1024
#: Bytes of a frame besides what is in it: kind, channel, size and end.
_FRAME = 8
#: Bytes of the frame of properties besides them: that, and class, weight and size of the body.
_ABOUT_PROPERTIES = _FRAME + 12
#: py-amqp's: bytes of frames besides what is in them, on the safe side.
_OVERHEAD = 40
_END = b"\xce"
_LENGTHS = tuple(bytes((number,)) for number in range(256))
_NO_HEADERS = b"\0\0\0\0"

#: Kind, channel and size of a frame; class, weight and size of the body.
_header = Struct(">BHIHHQ").pack
#: The end of a frame, and kind, channel and size of the next.
_body = Struct(">BBHI").pack
_timestamp = Struct(">Q").pack
#: What of both differs between two messages of one kind.
_sizes = Struct(">IHHQ").pack
_size = Struct(">I").pack
#: Of an answer: kind, channel, size, class and method; then its number and bits, and the end.
_answer_head = Struct(">BHIHH").pack
unpack_answer = Struct(">QBB").unpack_from
#: Bytes of an answer before its number.
HEAD = 11

#: What :meth:`kombu.Producer.publish` lets through to the broker, in AMQP's order, with the encoding and the flag.
_BEFORE = (("content_type", "s", 0x8000), ("content_encoding", "s", 0x4000))
_MIDDLE = (("delivery_mode", "o", 0x1000), ("priority", "o", 0x0800))
_THEN = (("reply_to", "s", 0x0200), ("expiration", "s", 0x0100))
_AFTER = (
    ("type", "s", 0x0020),
    ("user_id", "s", 0x0010),
    ("app_id", "s", 0x0008),
    ("cluster_id", "s", 0x0004),
)
_HEADERS, _CORRELATION_ID, _MESSAGE_ID, _TIMESTAMP = 0x2000, 0x0400, 0x0080, 0x0040
_KNOWN = frozenset(name for part in (_BEFORE, _MIDDLE, _THEN, _AFTER) for name, _, _ in part)

#: What an encoding fails with: it is py-amqp's to say that.
_CANNOT = (
    *(struct.error, FrameSyntaxError, TypeError, ValueError, AttributeError),
    *(OverflowError, IndexError),
)

_Kept = tuple[int, bytes, bytes, bytes, bytes]
#: Bytes besides the name in the properties, bytes for name and body in the largest message; and what stands between
#: sizes, name and body.
_Kind = tuple[int, int, bytes, bytes, bytes]
# By what they are made of. A dict's operations are atomic: at the worst two threads encode the same.
_methods: dict[Any, bytes] = {}
_properties: dict[Any, _Kept] = {}
_kinds: dict[Any, _Kind] = {}


def encode_publish(
    channel: int,
    frame_max: int,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    immediate: bool,
    body: bytes,
    message_id: str,
    headers: dict[str, Any],
    properties: dict[str, Any],
) -> bytes | None:
    """All frames of one message; ``None`` if py-amqp has to send it, or has to say what is wrong with it.

    :param properties: the others, by AMQP's names; ``delivery_mode`` and ``priority`` are among them, as are
        ``content_type`` and ``content_encoding``.
    :raises ValueError: for properties that no frame of *frame_max* bytes has room for.
    """
    try:
        key = channel, exchange, routing_key, mandatory, immediate
        method = _methods.get(key)
        if method is None:
            method = _keep_method(key)
            if method is None:
                return None
        name = message_id.encode("utf-8", "surrogatepass")
        table = _encode_headers(headers) if headers else _NO_HEADERS
        flags, correlation, sent_at = 0, b"", b""
        if len(properties) > 4:
            properties = properties.copy()
            flags, correlation, sent_at = _take_own_values(properties)
        # Else equal to a number for which something is kept, and not what py-amqp takes for one: 1.0, say.
        if type(properties["delivery_mode"]) is not int or type(properties["priority"]) is not int:
            return None
        known = (flags, *properties.items())
        kept = _properties.get(known)
        if kept is None:
            kept = _keep_properties(known, flags, properties)
            if kept is None:
                return None
        size, before, middle, then, after = kept
        size += len(table) + len(correlation) + len(name) + len(sent_at)
        length = _LENGTHS[len(name)]
    except _CANNOT:
        return None
    long = len(body)
    if size + _ABOUT_PROPERTIES > frame_max:
        raise _too_large(size, frame_max, message_id, headers)
    if size + long > LONGEST:
        return None
    header = _header(2, channel, 12 + size, 60, 0, long)
    parts = [method, header, before, table, middle, correlation, then, length, name, sent_at, after]
    chunk = frame_max - _FRAME
    for start in range(0, long, chunk):
        part = body[start : start + chunk]
        parts += (_body(0xCE, 3, channel, len(part)), part)
    parts.append(_END)
    return b"".join(parts)


def _encode_headers(headers: dict[str, Any]) -> bytes:
    table = encode_table(headers)
    if _may_be_infinite(table):
        _check_finite("headers", headers)
    return table


def _take_own_values(properties: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """Take the properties that each message has another value of out of *properties*, and encode them.

    :returns: their flags, the ``correlation_id`` and the ``timestamp``.
    """
    flags, correlation, sent_at = 0, b"", b""
    correlation_id = properties.pop("correlation_id", None)
    if correlation_id is not None:
        flags = _CORRELATION_ID
        correlation = dumps("s", (correlation_id,))
    timestamp = properties.pop("timestamp", None)
    if timestamp is not None:
        flags |= _TIMESTAMP
        sent_at = _timestamp(timestamp)
    return flags, correlation, sent_at


def encode(
    channel: int,
    frame_max: int,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    immediate: bool,
    body: bytes,
    message_id: str,
    content_type: str | None,
    content_encoding: str | None,
    priority: int,
    delivery_mode: int,
    headers: dict[str, Any],
    properties: dict[str, Any],
) -> bytes | None:
    """:func:`encode_publish`, in one go for a message without headers and further *properties*.

    Of such a message all is known but for three parts.
    """
    long = len(body)
    try:
        if not headers and not properties and type(delivery_mode) is int and type(priority) is int:
            key = (
                channel, frame_max, exchange, routing_key, mandatory, immediate,
                content_type, content_encoding, priority, delivery_mode,
            )  # fmt: skip
            kind = _kinds.get(key) or _keep_kind(key)
            name = message_id.encode("utf-8", "surrogatepass")
            if kind is not None and 0 < long <= kind[1] - len(name):
                size, _, head, before, after = kind
                sizes = _sizes(size + len(name), 60, 0, long)
                length = _LENGTHS[len(name)]
                return b"".join((head, sizes, before, length, name, after, _size(long), body, _END))
    except _CANNOT:
        pass  # it says what to do
    return encode_publish(
        *(channel, frame_max, exchange, routing_key, mandatory, immediate, body, message_id),
        headers,
        {
            "content_type": content_type,
            "content_encoding": content_encoding,
            "priority": priority,
            "delivery_mode": delivery_mode,
            **properties,
        },
    )


def check_properties(message: Any, frame_max: int) -> None:
    """Whether the properties of *message*, an ``amqp.Message``, have room in a frame, and its headers finite numbers.

    A broker ends the connection for a frame that is larger than was agreed on; the body alone may be divided. RabbitMQ
    ends it for infinity and NaN in a header, too.

    :raises ValueError: if they have not. Nothing has been written then.
    """
    headers = message.properties.get("application_headers")
    # All others together are smaller than the smallest frame.
    if headers:
        encoded = message._serialize_properties()
        if _may_be_infinite(encoded):
            _check_finite("headers", headers)
        size = len(encoded)
        if size + _ABOUT_PROPERTIES > frame_max:
            raise _too_large(size, frame_max, message.properties.get("message_id"), headers)


def _may_be_infinite(table: bytes) -> bool:
    """Whether the encoded *table* has what each float that is not finite begins with; text may have it, too."""
    return b"d\x7f" in table or b"d\xff" in table


def _check_finite(path: str, value: Any) -> None:
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(
                f"{path} is {value!r}, and RabbitMQ takes finite numbers alone; write str(…) if that is meant. "
                "Nothing was sent"
            )
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_finite(f"{path}[{key!r}]", one)
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            _check_finite(f"{path}[{number}]", one)


def _too_large(size: int, frame_max: int, message_id: Any, headers: dict[str, Any]) -> ValueError:
    largest = max(headers, key=lambda name: len(dumps("F", ({name: headers[name]},))))
    return ValueError(
        f"the headers and properties of message {message_id} have {size} bytes, and a frame of this broker has room "
        f"for {frame_max - _ABOUT_PROPERTIES} (its frame_max is {frame_max}); the largest of them is {largest!r}. "
        "Nothing was sent: put it into the body, which may be larger"
    )


def _keep_kind(key: Any) -> _Kind | None:
    channel, frame_max, exchange, routing_key, mandatory, immediate, *values = key
    method = _keep_method((channel, exchange, routing_key, mandatory, immediate))
    names = "content_type", "content_encoding", "priority", "delivery_mode"
    properties: dict[str, Any] = dict(zip(names, values, strict=True))
    kept = _keep_properties((0, *properties.items()), 0, properties)
    if method is None or kept is None:
        return None
    size, before, middle, then, after = kept
    size += len(_NO_HEADERS)
    # Within one frame, by py-amqp's rule, and no longer than what is written at once.
    room = min(frame_max - 8 - _OVERHEAD - (len(method) - 12), LONGEST) - size
    kind = (
        *(12 + size, room, method + pack(">BH", 2, channel)),
        *(before + _NO_HEADERS + middle + then, after + pack(">BBH", 0xCE, 3, channel)),
    )
    if len(_kinds) >= _MOST_KEPT:
        _kinds.clear()
    _kinds[key] = kind
    return kind


def _keep_method(key: Any) -> bytes | None:
    channel, exchange, routing_key, mandatory, immediate = key
    if type(exchange) is not str or type(routing_key) is not str:
        # str() of something else may be another one each time.
        return None
    arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
    payload = pack(">HH", *Basic.Publish) + arguments
    method: bytes = pack(">BHI", 1, channel, len(payload)) + payload + _END
    if len(_methods) >= _MOST_KEPT:
        _methods.clear()
    _methods[key] = method
    return method


def _keep_properties(known: Any, flags: int, properties: dict[str, Any]) -> _Kept | None:
    if not properties.keys() <= _KNOWN:
        return None
    flags |= _HEADERS | _MESSAGE_ID
    encoded = []
    for part in (_BEFORE, _MIDDLE, _THEN, _AFTER):
        formats, values = "", []
        for name, kind, flag in part:
            value = properties.get(name)
            if value is not None:
                flags |= flag
                formats += kind
                values.append(value)
        encoded.append(dumps(formats, values))
    before = pack(">H", flags) + encoded[0]
    # One byte is the length of the message_id.
    middle, then, after = encoded[1:]
    kept = len(before) + len(middle) + len(then) + 1 + len(after), before, middle, then, after
    if len(_properties) >= _MOST_KEPT:
        _properties.clear()
    _properties[known] = kept
    return kept


def take_answers(data: bytes, channel: int, tracker: DeliveryTracker) -> int:
    """Tell *tracker* of the acks and nacks for *channel* that *data* begins with; the bytes that they take.

    :param data: what the broker said, from the beginning of a frame on.
    """
    ack, nack = answer_heads(channel)
    at, last = 0, len(data) - ANSWER
    while at <= last:
        head = data[at : at + HEAD]
        if head != ack and head != nack:
            break
        tag, bits, end = unpack_answer(data, at + HEAD)
        if end != 0xCE:
            break
        answer = tracker.ack if head == ack else tracker.nack
        answer(tag, bool(bits & 1))
        at += ANSWER
    return at


@lru_cache(maxsize=_MOST_KEPT)
def answer_heads(channel: int) -> tuple[bytes, bytes]:
    """What an ack and a nack for *channel* begin with."""
    return _answer_head(1, channel, 13, *Basic.Ack), _answer_head(1, channel, 13, *Basic.Nack)
