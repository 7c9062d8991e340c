"""Find out whether the fast path may be taken: whether kombu and py-amqp, as installed, would write the same bytes.

The fast path leaves out work that has no effect, and writes the frames itself. It is only taken if the methods that it
replaces have the expected parameters, and if a few messages, published both ways without a broker, give the same bytes.
It is not taken where something else has wrapped those methods, to trace each publish for example.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any

import amqp
import kombu
from amqp import spec
from amqp import transport as amqp_transport
from amqp.abstract_channel import AbstractChannel
from amqp.method_framing import frame_writer
from kombu.transport import pyamqp

from ..own_errors import raised_by_library
from . import json_encoder
from .frames import encode

__all__ = ["fits", "is_plain", "is_unchanged"]

logger = logging.getLogger("kombu_pools_ext")

#: What stands on the way of a publish, with its parameters after ``self``.
_METHODS: tuple[tuple[type[Any], str, tuple[str, ...]], ...] = (
    (
        kombu.Producer,
        "publish",
        (
            *("body", "routing_key", "delivery_mode", "mandatory", "immediate", "priority"),
            *("content_type", "content_encoding", "serializer", "headers", "compression"),
            *("exchange", "retry", "retry_policy", "declare", "expiration", "timeout"),
            *("confirm_timeout", "properties"),
        ),
    ),
    (
        kombu.Producer,
        "_publish",
        (
            *("body", "priority", "content_type", "content_encoding", "headers", "properties"),
            *("routing_key", "mandatory", "immediate", "exchange", "declare", "timeout"),
            *("confirm_timeout", "retry", "retry_policy"),
        ),
    ),
    (
        kombu.Producer,
        "_prepare",
        (
            *("body", "serializer", "content_type", "content_encoding"),
            *("compression", "headers"),
        ),
    ),
    (
        pyamqp.Channel,
        "prepare_message",
        (
            *("body", "priority", "content_type", "content_encoding", "headers", "properties"),
            "_Message",
        ),
    ),
    (
        amqp.Channel,
        "_basic_publish",
        (
            *("msg", "exchange", "routing_key", "mandatory", "immediate", "timeout"),
            *("confirm_timeout", "argsig"),
        ),
    ),
    (
        AbstractChannel,
        "send_method",
        ("sig", "format", "args", "content", "wait", "callback", "returns_tuple"),
    ),
    (amqp.Connection, "drain_events", ("timeout",)),
    (amqp.Connection, "blocking_read", ("timeout",)),
    (amqp_transport._AbstractTransport, "read_frame", ("unpack",)),
    (amqp_transport._AbstractTransport, "write", ("s",)),
)
_PRODUCERS = ("publish", "_publish", "_prepare", "channel")

_fits: bool | None = None
#: One word, for one log line: the thread that takes it writes it.
_words = ["messages are published by kombu %s and py-amqp %s alone, which takes longer: %s"]


def fits() -> bool:
    """Whether the fast path writes what kombu would; checked at the first call, and logged once if it does not."""
    global _fits
    # Without a lock, which a fork could leave taken: at the worst two threads find out the same.
    if _fits is None:
        problem = next(problems(), None)
        _fits = problem is None
        if problem is not None:
            with contextlib.suppress(IndexError):
                logger.warning(_words.pop(), kombu.__version__, amqp.__version__, problem)
    return _fits


def problems() -> Iterator[str]:
    """What is not as it is known to be."""
    for owner, name, parameters in _METHODS:
        method = owner.__dict__.get(name)
        where = f"{owner.__module__}.{owner.__name__}.{name}"
        if method is None or not _is_its_own(method, owner):
            yield f"{where} is none of its own methods"
        elif tuple(inspect.signature(method).parameters)[1:] != parameters:
            yield f"{where} has other parameters"
    if amqp.Channel.basic_publish is not amqp.Channel._basic_publish:
        yield "amqp.Channel.basic_publish is not its own"
    yield from json_encoder.problems()
    try:
        yield from _trials()
    except Exception as error:
        if not raised_by_library(error) and not _fails_again(error):
            # A signal handler's: it says nothing of the installed versions.
            raise
        yield f"a trial failed: {error!r}"


def _fails_again(error: Exception) -> bool:
    """Whether what raised *error* stands in the way of each trial, as somebody's wrapper does."""
    try:
        list(_trials())
    except Exception as newer:
        return type(newer) is type(error)
    return False


def _is_its_own(method: Any, owner: type[Any]) -> bool:
    # A wrapper may have the name of what it wraps, but not its globals.
    return (
        isinstance(method, FunctionType)
        and method.__globals__ is vars(sys.modules[owner.__module__])
        and method.__code__.co_name == method.__name__
    )


def _trials() -> Iterator[str]:
    """A few messages, published both ways."""
    for size in (0, 1, 4040, 4096, 10_000):
        trials: tuple[dict[str, Any], ...] = (
            {"message_id": "m"},
            {
                "message_id": "é" * 100,
                "expiration": 1.5,
                "timestamp": 1 << 33,
                "correlation_id": "c",
                "reply_to": "r",
                "type": "t",
                "user_id": "u",
                "app_id": "a",
                "cluster_id": "",
                "headers": {"a": [1, {"b": None}]},
                "priority": 9,
            },
        )
        for properties in trials:
            body = bytes(size)
            if _by_kombu(body, properties) != _by_us(body, **properties):
                yield f"the frames of {size} bytes with {properties} are others"
    for method, arguments in ((spec.Basic.Ack, "Lb"), (spec.Basic.Nack, "Lb")):
        if amqp.Channel._METHODS[method].args != arguments:
            yield f"the method {method} is another"


def _by_kombu(body: bytes, properties: dict[str, Any]) -> bytes:
    written: list[bytes] = []
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    connection: Any = SimpleNamespace(frame_max=4096, bytes_sent=0, client_properties={})
    connection.frame_writer = frame_writer(connection, transport)
    channel: Any = pyamqp.Channel.__new__(pyamqp.Channel)
    channel.connection, channel.channel_id = connection, 7
    connection.transport = amqp_transport._AbstractTransport("h")
    producer = kombu.Producer(None)
    producer._channel = channel
    producer.publish(
        body,
        routing_key="key",
        mandatory=True,
        content_type="text/plain",
        content_encoding="binary",
        **properties,
    )
    if connection.bytes_sent != 1:
        raise RuntimeError("a publish counts otherwise")
    return b"".join(written)


def _by_us(
    body: bytes,
    message_id: str,
    headers: dict[str, Any] | None = None,
    priority: int = 0,
    expiration: float | None = None,
    **properties: Any,
) -> bytes | None:
    if expiration is not None:
        properties["expiration"] = str(int(expiration * 1000))
    return encode(
        *(7, 4096, "", "key", True, False, body, message_id, "text/plain", "binary", priority, 2),
        headers or {},
        properties,
    )


_KOMBUS = tuple(kombu.Producer.__dict__.get(name) for name in _PRODUCERS)
_publish, _later, _prepare, _channel = _KOMBUS
_prepare_message = pyamqp.Channel.prepare_message
_basic_publish = amqp.Channel.basic_publish
_send_method = AbstractChannel.send_method
_drain_events = amqp.Connection.drain_events


def is_plain(producer_class: type[Any]) -> bool:
    """Whether *producer_class* publishes as :class:`kombu.Producer` does: it may add what it likes besides."""
    return all(
        getattr(producer_class, name, None) is kombus
        for name, kombus in zip(_PRODUCERS, _KOMBUS, strict=True)
    )


def is_unchanged() -> bool:
    """Whether nobody has put something else into the classes since; asked at each publish."""
    producer, channel = kombu.Producer, pyamqp.Channel
    return (
        producer.publish is _publish
        and producer._publish is _later
        and producer._prepare is _prepare
        and channel.prepare_message is _prepare_message
        and channel.basic_publish is _basic_publish
        and channel.send_method is _send_method
        and pyamqp.Connection.drain_events is _drain_events
    )
