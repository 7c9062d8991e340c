"""Acks and nacks, taken straight out of what the broker has sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .deliveries import DeliveryTracker
from .frames import ANSWER, HEAD, answer_heads, unpack_answer

__all__ = ["AnswerReader"]

#: Bytes that are read at once: the answers to 3,000 messages.
_CHUNK = 65536


class AnswerReader:
    """Reads a connection, and tells the tracker of each channel of its answers.

    :param established: that of py-amqp.
    :param transport: its transport.
    """

    __slots__ = ("_by_head", "_established", "_transport")

    def __init__(self, established: Any, transport: Any) -> None:
        self._established = established
        self._transport = transport
        self._by_head: dict[bytes, Callable[[int, bool], None]] = {}

    def add(self, channel: int, tracker: DeliveryTracker) -> None:
        """Pass the answers on *channel* to *tracker*."""
        ack, nack = answer_heads(channel)
        self._by_head[ack] = tracker.ack
        self._by_head[nack] = tracker.nack

    def remove(self, channel: int) -> None:
        """Pass the answers on *channel* to nobody."""
        for head in answer_heads(channel):
            self._by_head.pop(head, None)

    def read(self) -> bool:
        """Pass on the answers that have come, or that come next, up to the first other frame.

        :returns: whether there was one; else py-amqp has to read a frame.
        :raises OSError: if the connection ended, or nothing came by the session's deadline.
        """
        transport, established = self._transport, self._established
        data = transport._read_buffer
        if not data:
            data = transport.receive(min(_CHUNK, established.frame_max))
            if not data:
                transport.connected = False
                raise OSError("Server unexpectedly closed connection")
        taken = self.take(data)
        transport._read_buffer = data[taken:]
        established.bytes_recv += taken // ANSWER
        return taken > 0

    @property
    def has_a_part(self) -> bool:
        """Whether the beginning of a frame has come, and not its end."""
        return bool(self._transport._read_buffer)

    def take(self, data: bytes) -> int:
        """Pass on the answers that *data* begins with, and return how many bytes they have.

        :param data: what the broker has sent, from the beginning of a frame on.
        """
        by_head = self._by_head
        at, last = 0, len(data) - ANSWER
        while at <= last:
            told = by_head.get(data[at : at + HEAD])
            if told is None:
                break
            tag, bits, end = unpack_answer(data, at + HEAD)
            if end != 0xCE:
                break
            told(tag, bool(bits & 1))
            at += ANSWER
        return at
