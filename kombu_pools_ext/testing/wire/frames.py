"""Frames of AMQP 0-9-1, taken apart and put together."""

from __future__ import annotations

from struct import Struct
from typing import Any

from amqp import spec
from amqp.basic_message import Message as AmqpMessage
from amqp.serialization import decode_properties_basic, dumps, loads

from ..model.message import Message

__all__ = [
    "BODY",
    "FORMATS",
    "HEADER",
    "HEARTBEAT",
    "METHOD",
    "arguments_of",
    "content",
    "frame",
    "make_message",
    "message",
    "method",
    "split",
]

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
_END = 0xCE
_head = Struct(">BHI")
_method = Struct(">HH")
_content = Struct(">HHQ")

#: What each method that a client sends is made of, in py-amqp's letters.
FORMATS: dict[tuple[int, int], str] = {
    spec.Connection.StartOk: "FsSs",
    spec.Connection.TuneOk: "BlB",
    spec.Connection.Open: "ssb",
    spec.Connection.Close: "BsBB",
    spec.Connection.CloseOk: "",
    spec.Channel.Open: "s",
    spec.Channel.Flow: "b",
    spec.Channel.Close: "BsBB",
    spec.Channel.CloseOk: "",
    spec.Exchange.Declare: "BssbbbbbF",
    spec.Exchange.Delete: "Bsbb",
    spec.Exchange.Bind: "BsssbF",
    spec.Exchange.Unbind: "BsssbF",
    spec.Queue.Declare: "BsbbbbbF",
    spec.Queue.Bind: "BsssbF",
    spec.Queue.Unbind: "BsssF",
    spec.Queue.Purge: "Bsb",
    spec.Queue.Delete: "Bsbbb",
    spec.Basic.Qos: "lBb",
    spec.Basic.Consume: "BssbbbbF",
    spec.Basic.Cancel: "sb",
    spec.Basic.Publish: "Bssbb",
    spec.Basic.Get: "Bsb",
    spec.Basic.Ack: "Lb",
    spec.Basic.Nack: "Lbb",
    spec.Basic.Reject: "Lb",
    spec.Basic.Recover: "b",
    spec.Basic.RecoverAsync: "b",
    spec.Confirm.Select: "b",
    spec.Tx.Select: "",
    spec.Tx.Commit: "",
    spec.Tx.Rollback: "",
}


def split(data: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """Take *data* apart.

    :returns: kind, channel and payload of each whole frame, and the rest.
    :raises ValueError: if it is no frame.
    """
    frames = []
    at, end = 0, len(data)
    while end - at >= 8:
        kind, channel, size = _head.unpack_from(data, at)
        last = at + 7 + size
        if last >= end:
            break
        if data[last] != _END:
            raise ValueError("a frame does not end with its last byte")
        frames.append((kind, channel, data[at + 7 : last]))
        at = last + 1
    return frames, data[at:]


def arguments_of(sig: tuple[int, int], payload: bytes) -> list[Any]:
    """Return the arguments of a method."""
    values, _ = loads(FORMATS[sig], payload, 4)
    return list(values)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a whole frame."""
    return _head.pack(kind, channel, len(payload)) + payload + b"\xce"


def method(channel: int, sig: tuple[int, int], form: str = "", *arguments: Any) -> bytes:
    """Return the frame of a method, whose *arguments* are of py-amqp's *form*."""
    encoded = dumps(form, arguments) if form else b""
    return frame(METHOD, channel, _method.pack(*sig) + encoded)


def content(channel: int, sent: Message, frame_max: int) -> bytes:
    """Return the frames of the properties and the body of *sent*."""
    body = sent.body
    parts = [frame(HEADER, channel, _content.pack(60, 0, len(body)) + sent.encoded)]
    most = frame_max - 8
    parts += [frame(BODY, channel, body[at : at + most]) for at in range(0, len(body), most)]
    return b"".join(parts)


def _decode(encoded: bytes) -> dict[str, Any]:
    return dict(decode_properties_basic(encoded, 0)[0])


def message(exchange: str, routing_key: str, body: bytes, encoded: bytes) -> Message:
    """Return the message that came with these properties, as they are on the wire."""
    return Message(exchange, routing_key, body, encoded, _decode)


def make_message(
    exchange: str, routing_key: str, body: bytes, properties: dict[str, Any]
) -> Message:
    """Return a message with *properties*, which are encoded."""
    encoded: bytes = AmqpMessage(body, **properties)._serialize_properties()
    return message(exchange, routing_key, body, encoded)
