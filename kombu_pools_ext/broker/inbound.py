"""What a peer may say: messages of a bounded size, for channels that are open, and little that nobody waits for.

py-amqp keeps the parts of a message until the last has come, for any number of a channel, however large the message is
said to be. An :class:`Inbound` stands before it, and looks at each frame before anything is kept of it.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any

from amqp.exceptions import UnexpectedFrame

__all__ = ["MOST_FRAME", "MOST_MESSAGE", "MOST_UNASKED", "SMALLEST_FRAME_MAX", "Inbound"]

#: Bytes of a frame that are agreed on at the most, unless the connection's own ``frame_max`` is more: py-amqp has a
#: buffer of that size for each connection. RabbitMQ proposes an eighth of it unless it is configured.
MOST_FRAME = 1 << 20
#: Bytes of a frame that each peer has to take: AMQP 0-9-1's ``frame-min-size``.
SMALLEST_FRAME_MAX = 4096
#: Bytes of one message, and of all together whose end has not come: no RabbitMQ can be configured to take a larger one.
MOST_MESSAGE = 512 << 20
#: Bytes that a connection hears in all while it is idle, heartbeats left out, before it is given up: what came back of
#: its leases' messages, say.
MOST_UNASKED = 8 << 20

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
#: Bytes that a message counts for at least, where nobody has asked for it: it is a line in the log.
_LINE = 1024
#: Bytes besides its content that a part of a message takes in memory, about.
_PART = 64
#: What the parts of messages may weigh together; those of the largest do, in frames of the smallest size.
_HEAVIEST = MOST_MESSAGE + MOST_MESSAGE // SMALLEST_FRAME_MAX * _PART * 2


class Inbound:
    """Stands before the handler of a connection's frames; to be called with each.

    :param make: makes that handler from *connection* and *callback*: py-amqp's ``frame_handler``.
    :param connection: an ``amqp.Connection`` that can be :attr:`~.amqp_leftovers.Connection.idle`.
    """

    __slots__ = ("_connection", "_handle", "_parts", "_unasked")

    def __init__(
        self, make: Callable[[Any, Any], Callable[[Any], Any]], connection: Any, callback: Any
    ) -> None:
        self._handle = make(connection, callback)
        self._connection = connection
        # By channel, bytes of a message that are still to come, and what weighs what has.
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
                f"a message of {size} bytes came on channel {channel}, where {MOST_MESSAGE} may be under way at most"
            )
        if size:
            self._parts[channel] = size, len(payload)

    def _go_on(self, channel: int, size: int) -> None:
        left, weight = self._parts.pop(channel, (0, 0))
        if not 0 < size <= left:
            raise UnexpectedFrame(
                f"{size} bytes of a message came on channel {channel}, where {left} were to come"
            )
        if size == left:
            return
        self._parts[channel] = left - size, weight + size + _PART
        if sum(weight for _, weight in self._parts.values()) > _HEAVIEST:
            raise UnexpectedFrame("messages came in parts too small to be kept")
