"""The first channel of a connection, which producers publish on: opened together with it.

The connection, a channel on it and confirms on that are three requests, each of which py-amqp sends when it has the
answer to the one before. RabbitMQ answers them in order even if they come together, so they take the time of one.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

import amqp
from amqp import spec
from amqp.abstract_channel import AbstractChannel
from kombu.transport import pyamqp

from .channel import Channel
from .connection import Connection

__all__ = ["FirstChannel"]

#: How AMQP's other brokers read ahead is not known.
PRODUCT = "RabbitMQ"

#: What is done here in another order, each with its parameters: if one was replaced, nothing is done here.
_METHODS: tuple[tuple[type[Any], str, tuple[str, ...]], ...] = (
    (pyamqp.Transport, "create_channel", ("self", "connection")),
    (amqp.Connection, "channel", ("self", "channel_id", "callback")),
    (amqp.Channel, "__init__", ("self", "connection", "channel_id", "auto_decode", "on_open")),
    (amqp.Channel, "open", ("self",)),
    (amqp.Channel, "confirm_select", ("self", "nowait")),
    (
        AbstractChannel,
        "send_method",
        ("self", "sig", "format", "args", "content", "wait", "callback", "returns_tuple"),
    ),
    (AbstractChannel, "dispatch_method", ("self", "method_sig", "payload", "content")),
)


class FirstChannel:
    """The first channel of a connection that *transport* makes; the connection counts as open once the channel is.

    A broker that refuses channels, or hangs up when it is asked for one, has opened nothing, because a connection
    without a channel is useless.

    :param transport: kombu's, for py-amqp.
    :param kept: whether a borrower is likely to use the channel; otherwise it is closed at once.
    """

    def __init__(self, transport: Any, *, kept: bool) -> None:
        self._transport = transport
        self._kept = kept
        self._opened = self._selected = False
        #: There once it was asked for.
        self.channel: Any = None

    def ask(self, established: Any) -> None:
        """Send the requests behind that for the connection, if it is known how its broker reads them.

        :param established: an ``amqp.Connection`` that has just asked to be opened.
        """
        if not (
            type(established) is Connection
            and established.Channel is Channel
            and isinstance(self._transport, pyamqp.Transport)
            and established.server_properties.get("product") == PRODUCT
            and _is_known(type(self._transport))
        ):
            return
        channel = self.channel = established.Channel(established, on_open=self._note_opened)
        channel.send_method(spec.Channel.Open, "s", ("",))
        if not self._kept:
            channel.send_method(spec.Channel.Close, "BsBB", (0, "", 0, 0))
            return
        self._selected = not established.confirm_publish
        if not self._selected:
            channel._callbacks[spec.Confirm.SelectOk] = self._note_selected
            channel.send_method(spec.Confirm.Select, "b", (False,))

    def _note_opened(self, channel: Any) -> None:
        self._opened = True

    def _note_selected(self) -> None:
        self._selected = True

    def wait(self, established: Any) -> Any:
        """Wait for all answers and return the channel; ``None`` if it was not kept.

        :param established: the open connection.
        :raises Exception: py-amqp's, as for any other channel: the broker's error, or the socket's.
        """
        if self.channel is None:
            channel = self._transport.create_channel(established)
            if not self._kept:
                channel.close()
                return None
            if established.confirm_publish:
                channel.confirm_select()
            return channel
        channel = self.channel
        while channel.connection is not None and not (
            self._kept and self._opened and self._selected
        ):
            established.drain_events()
        if not self._opened or (self._kept and channel.connection is None):
            raise amqp.RecoverableConnectionError("the first channel was closed")
        channel._callbacks.pop(spec.Confirm.SelectOk, None)
        return channel if self._kept else None


def _is_known(transport_class: type[Any]) -> bool:
    """Whether kombu and py-amqp open channels as they are known to. Looked at each time: it takes microseconds."""
    return transport_class.create_channel is pyamqp.Transport.create_channel and all(
        _is_its_own(owner, name, parameters) for owner, name, parameters in _METHODS
    )


def _is_its_own(owner: type[Any], name: str, parameters: tuple[str, ...]) -> bool:
    # A wrapper may have the name of what it wraps, but not its globals.
    method = owner.__dict__.get(name)
    return (
        isinstance(method, FunctionType)
        and method.__globals__ is vars(sys.modules[owner.__module__])
        and method.__code__.co_name == name
        and method.__code__.co_varnames[: method.__code__.co_argcount] == parameters
    )
