"""Bound what a peer may send: the size of messages, the channels, and the bytes on an idle connection.

py-amqp keeps the parts of a message until the last one has come, for any channel number and any announced size. An
:class:`Inbound` checks each frame before py-amqp keeps anything of it.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any

from amqp.exceptions import UnexpectedFrame

__all__ = ["MOST_FRAME", "MOST_MESSAGE", "MOST_UNASKED", "SMALLEST_FRAME_MAX", "Inbound"]

#: The largest ``frame_max`` in bytes, unless the connection's own is larger: py-amqp has a buffer of that size for each
#: connection. RabbitMQ proposes an eighth of it unless it is configured otherwise.
MOST_FRAME = 1 << 20
#: The smallest ``frame_max`` in bytes: AMQP 0-9-1's ``frame-min-size``.
SMALLEST_FRAME_MAX = 4096
#: The most bytes of all incomplete messages; no RabbitMQ can be configured to take a larger message.
MOST_MESSAGE = 512 << 20
#: The most bytes in total that may come while a connection is idle, heartbeats not counted, such as returned messages
#: of earlier leases.
MOST_UNASKED = 8 << 20

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
#: The least that a message on an idle connection counts as, because it is a line in the log.
_LINE = 1024
#: About how many bytes a part of a message takes in memory besides its content.
_PART = 64
#: The most that all parts may take in memory: as much as the largest message in the smallest frames.
_HEAVIEST = MOST_MESSAGE + MOST_MESSAGE // SMALLEST_FRAME_MAX * _PART * 2


class Inbound:
    """Checks each frame of a connection, and passes it on to py-amqp's handler.

    :param make: makes that handler from *connection* and *callback*: py-amqp's ``frame_handler``.
    :param connection: an ``amqp.Connection`` that can be :attr:`~.connection.ConnectionBase.idle`.
    """

    __slots__ = ("_connection", "_handle", "_parts", "_unasked")

    def __init__(
        self, make: Callable[[Any, Any], Callable[[Any], Any]], connection: Any, callback: Any
    ) -> None:
        self._handle = make(connection, callback)
        self._connection = connection
        # By channel: the bytes of a message that are still missing, and the memory that its parts take.
        self._parts: dict[int, tuple[int, int]] = {}
        self._unasked = 0

    def __call__(self, frame: tuple[int, int, bytes]) -> Any:
        kind, channel, payload = frame
        connection = self._connection
        if connection.idle and kind != _HEARTBEAT:
            self._unasked += len(payload) + (_LINE if kind == _HEADER else 8)
            if self._unasked > MOST_UNASKED:
                raise UnexpectedFrame(
                    f"more than {MOST_UNASKED} bytes came while nobody used the connection"
                )
        channels = connection.channels
        if kind != _HEARTBEAT and channels is not None and channel not in channels:
            raise UnexpectedFrame(f"a frame came for channel {channel}, which is not open")
        if kind == _HEADER:
            self._begin(channel, payload)
        elif kind == _BODY:
            self._go_on(channel, len(payload))
        return self._handle(frame)

    def _begin(self, channel: int, payload: bytes) -> None:
        (size,) = unpack_from(">Q", payload, 4)
        coming = size + sum(left for left, _ in self._parts.values())
        if not channel or coming > MOST_MESSAGE:
            raise UnexpectedFrame(
                f"a message of {size} bytes came on channel {channel}; incomplete ones may have {MOST_MESSAGE} in all"
            )
        if size:
            self._parts[channel] = size, len(payload)

    def _go_on(self, channel: int, size: int) -> None:
        left, weight = self._parts.pop(channel, (0, 0))
        if not 0 < size <= left:
            raise UnexpectedFrame(
                f"{size} bytes of a message came on channel {channel}, but {left} were expected"
            )
        if size == left:
            return
        self._parts[channel] = left - size, weight + size + _PART
        if sum(weight for _, weight in self._parts.values()) > _HEAVIEST:
            raise UnexpectedFrame("messages came in parts too small to be kept")
