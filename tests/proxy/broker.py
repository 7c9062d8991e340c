"""A server that shakes hands as a broker of AMQP does, and answers each method as a test wants."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from struct import pack, unpack

from amqp.serialization import dumps

from .frames import KINDS, METHODS
from .peer import Peer

__all__ = ["FakeBroker", "frame", "method"]

#: What is said to a method: frames, ``None`` to hang up, or what a function does with the socket and the channel.
Answer = bytes | None | Callable[[socket.socket, int], None]

#: Channels, bytes of a frame and seconds between heartbeats that RabbitMQ proposes.
TUNE = (2047, 131072, 60)


def frame(kind: str, channel: int, payload: bytes) -> bytes:
    """A whole frame of a kind, such as ``"method"``."""
    return pack(">BHI", KINDS[kind], channel, len(payload)) + payload + b"\xce"


def method(name: str, channel: int, form: str = "", *arguments: object) -> bytes:
    """The frame of a method, such as ``"connection.tune"``, with arguments of py-amqp's *form*."""
    head = pack(">HH", *METHODS[name])
    return frame("method", channel, head + (dumps(form, arguments) if form else b""))


class FakeBroker(Peer):
    """Opens connections and channels for whoever comes.

    :param answers: by method, what to say in place of the usual.
    :param tune: what is proposed: channels, bytes of a frame, seconds between heartbeats.
    :param product: what it calls itself.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        *,
        tune: tuple[int, int, int] = TUNE,
        product: str = "RabbitMQ",
    ) -> None:
        super().__init__(self._converse)
        self._tune, self._product = tune, product
        #: By method, what is said in place of the usual.
        self.answers = dict(answers or {})
        #: The methods that were heard, in their order, and the arguments of the latest of each.
        self.heard: list[str] = []
        self.arguments: dict[str, bytes] = {}
        #: The socket of the newest connection.
        self.newest: socket.socket | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"amqp://guest:guest@{self.address}//"

    def say(self, frames: bytes) -> None:
        """Say *frames* on the newest connection, unasked."""
        assert self.newest is not None
        self.newest.sendall(frames)

    def _usual(self, name: str, channel: int) -> Answer:
        return {
            "connection.start-ok": method("connection.tune", 0, "BlB", *self._tune),
            "connection.open": method("connection.open-ok", 0, "s", ""),
            "connection.close": method("connection.close-ok", 0),
            "channel.open": method("channel.open-ok", channel, "S", ""),
            "channel.close": method("channel.close-ok", channel),
            "confirm.select": method("confirm.select-ok", channel),
            "basic.qos": method("basic.qos-ok", channel),
        }.get(name, b"")

    def _converse(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as stream:
            assert stream.read(8).startswith(b"AMQP")
            self.newest = sock
            properties = {"product": self._product, "capabilities": {"publisher_confirms": True}}
            start = (0, 9, properties, "PLAIN AMQPLAIN", "en_US")
            sock.sendall(method("connection.start", 0, "ooFSS", *start))
            names = {number: name for name, number in METHODS.items()}
            while head := stream.read(7):
                kind, channel, size = unpack(">BHI", head)
                payload = stream.read(size + 1)
                if kind != KINDS["method"]:
                    continue
                name = names[unpack(">HH", payload[:4])]
                self.heard.append(name)
                self.arguments[name] = payload[4:-1]
                answer = self.answers.get(name, self._usual(name, channel))
                if answer is None:
                    return
                if callable(answer):
                    answer(sock, channel)
                elif answer:
                    sock.sendall(answer)
