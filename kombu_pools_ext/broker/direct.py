"""The short way onto the wire: a message's frames, put together here, in one write."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

from amqp.exceptions import RecoverableConnectionError
from amqp.transport import SSLTransport, TCPTransport

from . import shape
from .amqp_leftovers import Channel, Connection
from .confirms import Confirms
from .frames import ANSWER, take_answers
from .own_errors import raised_by_carrier

if TYPE_CHECKING:
    from .driver import OpenConnection
    from .wire import Wire

__all__ = ["Direct", "direct_for"]

#: Bytes of messages that are gathered for one write: about what a socket's buffer takes at once.
GATHERED = 65536
#: Seconds for which they are gathered, as seen by the next message: whoever makes them slowly has them sent meanwhile.
GATHERED_FOR = 0.01
#: Messages without an answer up to which each is sent at once: the broker begins early, and a short batch is sent while
#: its block goes on.
AT_ONCE = 8
#: Bytes that are read at once: the answers to 3,000 messages.
_CHUNK = 65536
_monotonic = time.monotonic
#: What py-amqp takes for "nothing there yet".
_LATER = (errno.EAGAIN, errno.EINTR, errno.ENOENT)


class Direct:
    """What a publish needs to know of one channel.

    :param item: the connection, which has a wire.
    :param channel: one of it.
    :param confirms: who counts there, if somebody does.
    """

    __slots__ = (
        "_basic_publish",
        "_established",
        "_frame_writer",
        "_heeds",
        "_since",
        "_transport",
        "_wire",
        "channel",
        "confirms",
        "frame_max",
        "gathers",
        "heeding",
    )

    def __init__(self, item: OpenConnection, channel: Any, confirms: Confirms | None) -> None:
        established = item.established
        self.channel = channel
        self.confirms = confirms
        self.frame_max: int = established.frame_max
        #: Whether a message without confirms may wait for those that follow.
        self.gathers = False
        #: Whether :meth:`heed` is reading, or has raised: what was to be published then was not begun.
        self.heeding = False
        self._established = established
        self._frame_writer = established._frame_writer
        self._transport = established._transport
        self._wire: Wire = item.wire  # type: ignore[assignment]  # there is one
        self._basic_publish = channel.__dict__.get("basic_publish")
        capabilities = established.client_properties.get("capabilities", {})
        #: Whether the broker may say that it takes no messages: py-amqp looks for that before each publish.
        self._since = 0.0
        self._heeds: bool = capabilities.get("connection.blocked", False)

    def fits(self) -> bool:
        """Whether the channel is open, and nobody has put something of his own into the way of a publish."""
        channel, established = self.channel, self._established
        own = channel.__dict__
        return (
            channel.connection is established
            and established._transport is self._transport
            and self._transport.connected
            and established._frame_writer is self._frame_writer
            and own.get("basic_publish") is self._basic_publish
            and "send_method" not in own
            and "prepare_message" not in own
            and "drain_events" not in established.__dict__
        )

    def gather(self, frames: bytes) -> None:
        """:meth:`put`, but together with those that follow, unless it is time to."""
        wire, confirms = self._wire, self.confirms
        if not wire.gathered:
            few = confirms is not None and len(confirms.pending) <= AT_ONCE
            if few or len(frames) >= GATHERED:
                self.put(frames)
                return
            self._since = _monotonic()
        self._established.bytes_sent += 1
        wire.gather(frames)
        if wire.gathered >= GATHERED or _monotonic() - self._since >= GATHERED_FOR:
            wire.flush()

    def answers(self) -> bool:
        """Read what has come, or what comes next, and tell of the answers that it begins with; whether there are any.

        What comes after them stays for py-amqp to read.

        :raises OSError: if the connection ended, or nothing came in time.
        """
        channel, confirms, transport = self.channel, self.confirms, self._transport
        listeners = channel.events
        if (
            confirms is None
            or not self.fits()
            or channel._pending
            or channel.is_closing
            or len(listeners["basic_ack"]) != 1
            or len(listeners["basic_nack"]) != 1
        ):
            # Somebody else wants to hear of them, too.
            return False
        data = transport._read_buffer
        if not data:
            data = self._receive()
        taken = take_answers(data, channel.channel_id, confirms)
        transport._read_buffer = data[taken:]
        self._established.bytes_recv += taken // ANSWER
        return taken > 0

    def _receive(self) -> bytes:
        # As py-amqp does it, for what a frame begins with.
        transport = self._transport
        try:
            data = self._wire.receive(min(_CHUNK, self.frame_max))
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno in _LATER and raised_by_carrier(error):
                raise TimeoutError("nothing to read") from error
            transport.connected = False
            raise
        if not data:
            transport.connected = False
            raise OSError("Server unexpectedly closed connection")
        return data

    def heed(self) -> bool:
        """Read what came unasked, as py-amqp does before each publish; whether the short way is still open.

        :raises Exception: py-amqp's, for what it found there: the end of the channel or of the connection.
        """
        if not self._heeds or self._wire.look() is None:
            return True
        self.heeding = True
        try:
            self._established.drain_events(timeout=0)
        except TimeoutError as error:
            # Else half a frame, or what only TLS is interested in. What was gathered is written before, and may fail.
            if self._wire.torn or not raised_by_carrier(error):
                raise
        self.heeding = False
        return self.fits()

    def write(self, frames: bytes) -> None:
        """Write *frames*, of one message without confirms, or :meth:`gather` them.

        :raises OSError, RecoverableConnectionError: if not all of it could be written: it is not there then.
        """
        try:
            if self.gathers:
                self.gather(frames)
            else:
                self.put(frames)
        except TimeoutError as error:
            if not raised_by_carrier(error):
                raise
            # py-amqp's: the socket is of no use any more.
            raise RecoverableConnectionError("basic_publish: timed out") from error

    def put(self, frames: bytes) -> None:
        """:meth:`write`, with the socket's own error where the time was up."""
        self._transport.write(frames)
        self._established.bytes_sent += 1


def direct_for(item: OpenConnection, channel: Any) -> Direct | None:
    """The short way for *channel* of *item*; ``None`` if there is none, or if it is not known to lead to the same."""
    established = item.established
    if (
        item.wire is None
        or type(channel) is not Channel
        or type(established) is not Connection
        or type(established._transport) not in (TCPTransport, SSLTransport)
        or not shape.fits()
    ):
        return None
    confirms = item.confirms
    if confirms is None or confirms.channel is not channel:
        if established.confirm_publish:
            # Nobody counts, and py-amqp's own confirms are waited for.
            return None
        confirms = None
    return Direct(item, channel, confirms)
