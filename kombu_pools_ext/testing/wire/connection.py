"""A connection, as the broker sees it: the handshake, the channels, and what is sent and received."""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any, Protocol

from amqp import spec

from ..model.message import Message
from ..model.refusals import Refusal
from ..model.vhost import VirtualHost
from .channel import Channel, Incoming
from .frames import BODY, FORMATS, HEADER, HEARTBEAT, METHOD, arguments_of, frame, method, split

__all__ = ["Connection", "Server"]

#: What a client says first.
GREETING = b"AMQP\x00\x00\x09\x01"
#: The channels, the bytes of a frame and the seconds between heartbeats that RabbitMQ proposes.
CHANNEL_MAX, FRAME_MAX, HEARTBEAT_EVERY = 2047, 131072, 60
#: What RabbitMQ says of itself; the version is one whose answers the model gives.
PROPERTIES: dict[str, Any] = {
    "product": "RabbitMQ",
    "version": "3.10.8",
    "platform": "kombu-pools-ext, in memory",
    "capabilities": {
        "publisher_confirms": True,
        "exchange_exchange_bindings": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "consumer_priorities": False,
        "authentication_failure_close": True,
        "per_consumer_qos": True,
        "direct_reply_to": False,
    },
}


class Server(Protocol):
    """The broker of a connection."""

    def vhost(self, name: str) -> VirtualHost:
        """Return the virtual host of this name."""
        ...

    def take(
        self, connection: Connection, channel: Channel, incoming: Incoming, sent: Message
    ) -> None:
        """Take a message that is complete.

        :raises Refusal: what the broker says instead.
        """
        ...

    def holds(self, connection: Connection) -> bool:
        """Whether what *connection* publishes is not read for now."""
        ...


class Connection:
    """One connection of one client.

    :param send: sends bytes to the client.
    :param hang_up: ends the connection.
    """

    def __init__(
        self, server: Server, send: Callable[[bytes], None], hang_up: Callable[[], None]
    ) -> None:
        self._server = server
        self._send = send
        self._hang_up = hang_up
        self._vhost: VirtualHost | None = None
        self._rest = b""
        self._held: list[tuple[int, int, bytes]] = []
        self._greeted = self._closing = False
        self.frame_max = FRAME_MAX
        self.user = "guest"
        #: What the client has told of itself.
        self.client_properties: dict[str, Any] = {}
        self.channels: dict[int, Channel] = {}
        #: Whether it was told that nothing is read from it for now.
        self.is_blocked = False
        #: Whether it has ended.
        self.ended = False

    @property
    def is_open(self) -> bool:
        """Whether the handshake has ended, and the connection has not."""
        return self._vhost is not None and not self.ended and not self._closing

    def send(self, data: bytes) -> None:
        self._send(data)

    # -- what comes ---------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the client's, and do what they say.

        :raises NotImplementedError: if that is not modelled.
        """
        if self.ended:
            return
        self._rest += data
        if not self._greeted:
            if len(self._rest) < len(GREETING):
                return
            if not self._rest.startswith(GREETING):
                self._send(GREETING)
                self.end()
                return
            self._greeted = True
            self._rest = self._rest[len(GREETING) :]
            self._start()
        try:
            frames, self._rest = split(self._rest)
        except ValueError as error:
            self._refuse_all(Refusal(501, str(error)), 0, (0, 0))
            return
        self._held += frames
        self.go_on()

    def _start(self) -> None:
        properties = PROPERTIES
        self._send(
            method(0, spec.Connection.Start, "ooFSS", 0, 9, properties, "PLAIN AMQPLAIN", "en_US")
        )

    def go_on(self) -> None:
        """Do what has come, up to a message that is held."""
        while self._held and not self.ended:
            kind, channel, payload = self._held[0]
            if (
                kind == METHOD
                and unpack_from(">HH", payload) == spec.Basic.Publish
                and self._server.holds(self)
            ):
                self._block()
                return
            del self._held[0]
            self._frame(kind, channel, payload)

    def _block(self) -> None:
        capabilities = self.client_properties.get("capabilities") or {}
        if not self.is_blocked and capabilities.get("connection.blocked"):
            self._send(method(0, spec.Connection.Blocked, "s", "low on memory"))
        self.is_blocked = True

    def unblock(self) -> None:
        """Tell the client that it is read again, and read."""
        if self.is_blocked:
            self.is_blocked = False
            capabilities = self.client_properties.get("capabilities") or {}
            if capabilities.get("connection.blocked"):
                self._send(method(0, spec.Connection.Unblocked))
            self.go_on()

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == HEARTBEAT:
            # As often as the client: it may take silence for the end.
            self._send(frame(HEARTBEAT, 0, b""))
            return
        sig = unpack_from(">HH", payload) if kind == METHOD else spec.Basic.Publish
        try:
            if len(payload) + 8 > self.frame_max:
                raise Refusal(501, f"a frame of {len(payload) + 8} bytes is too large")
            if number == 0:
                self._own(sig, payload)
            else:
                self._on_channel(kind, number, sig, payload)
        except Refusal as refusal:
            if refusal.ends_connection:
                self._refuse_all(refusal, number, sig)
            else:
                self._refuse(refusal, self.channels[number], sig)

    def _own(self, sig: tuple[int, int], payload: bytes) -> None:
        """Do what a method on channel 0 says."""
        arguments = arguments_of(sig, payload) if sig in FORMATS else []
        if sig == spec.Connection.CloseOk:
            self.end()
        elif sig == spec.Connection.Close:
            self._send(method(0, spec.Connection.CloseOk))
            self.end()
        elif self._closing:
            return
        elif sig == spec.Connection.StartOk:
            self._log_in(arguments)
            tune = CHANNEL_MAX, FRAME_MAX, HEARTBEAT_EVERY
            self._send(method(0, spec.Connection.Tune, "BlB", *tune))
        elif sig == spec.Connection.TuneOk:
            self.frame_max = arguments[1] or FRAME_MAX
        elif sig == spec.Connection.Open:
            self._vhost = self._server.vhost(arguments[0])
            self._send(method(0, spec.Connection.OpenOk, "s", ""))
        else:
            raise Refusal(503, f"unexpected method {sig} on channel 0")

    def _log_in(self, arguments: list[Any]) -> None:
        self.client_properties, mechanism, response, _ = arguments
        if mechanism == "PLAIN":
            # Any password will do.
            self.user = str(response).split("\0")[1]

    def _on_channel(self, kind: int, number: int, sig: tuple[int, int], payload: bytes) -> None:
        channel = self.channels.get(number)
        if self._closing:
            return
        if sig == spec.Channel.Open and kind == METHOD:
            if channel is not None or self._vhost is None:
                raise Refusal(504, "second 'channel.open' seen")
            self.channels[number] = Channel(self, number, self._vhost)
            self._send(method(number, spec.Channel.OpenOk, "S", ""))
            return
        if channel is None:
            raise Refusal(504, "expected 'channel.open'")
        if kind == METHOD and sig in (spec.Channel.Close, spec.Channel.CloseOk):
            del self.channels[number]
            channel.end()
            if sig == spec.Channel.Close:
                self._send(method(number, spec.Channel.CloseOk))
        elif channel.closing:
            return
        elif kind == METHOD:
            if sig not in FORMATS:
                raise Refusal(503, f"unknown method {sig}")
            channel.handle(sig, arguments_of(sig, payload))
        elif kind == HEADER:
            channel.header(payload)
        elif kind == BODY:
            channel.body(payload)
        else:
            raise Refusal(501, f"a frame of type {kind}")

    def published(self, channel: Channel, incoming: Incoming, sent: Message) -> None:
        self._server.take(self, channel, incoming, sent)

    # -- its end ------------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal, channel: Channel, sig: tuple[int, int]) -> None:
        channel.end()
        channel.send(spec.Channel.Close, "BsBB", refusal.code, refusal.text, *sig)

    def _refuse_all(self, refusal: Refusal, number: int, sig: tuple[int, int]) -> None:
        self.close(refusal.code, refusal.text, sig)

    def close(self, code: int, text: str, sig: tuple[int, int] = (0, 0)) -> None:
        """Tell the client that the broker closes the connection."""
        self._closing = True
        self._send(method(0, spec.Connection.Close, "BsBB", code, text, *sig))

    def end(self) -> None:
        """End the connection: its consumers, its exclusive queues, and what was not acknowledged."""
        if self.ended:
            return
        self.ended = True
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            channel.end()
        if self._vhost is not None:
            for queue in list(self._vhost.queues.values()):
                if queue.owner is self:
                    self._vhost.forget_queue(queue)
        self._hang_up()
