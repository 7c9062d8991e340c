"""Making one AMQP connection, bounded as a whole.

py-amqp bounds each step by ``connect_timeout``, never their sum: each address of a name, each byte that comes, TLS's
goodbye after a failure. It stops at the first address that accepts, whatever comes of it; here each address is one
attempt, and whoever makes it goes on to the next. And of whatever comes first py-amqp takes the seven bytes for a
frame's header: of the greeting of an HTTP server it would wait for a frame of a gigabyte. Until the connection is open,
its transport reads and writes by a :class:`Handshake`; nothing of that stays once it is.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Self

import amqp
from amqp.transport import SSLTransport

from ..addresses import Addresses
from ..failed_openings import WrongProtocol
from .inbound import MOST_FRAME, SMALLEST_FRAME_MAX

__all__ = ["Handshake", "WrongProtocol"]

#: Bytes read at once: frames are no longer than 4096 until the peers have agreed on more.
MOST_AT_ONCE = 16384

#: The type of a frame that carries a method, which a broker's first word is.
METHOD = b"\x01"

#: What a server says first, or answers to ``AMQP\0\0\x09\x01``, and what it is then.
_SPEAKERS = (
    (b"HTTP", "an HTTP server"),
    (b"<htm", "an HTTP server"),
    (b"<!DO", "an HTTP server"),
    (b"SSH-", "an SSH server"),
    (b"-ERR", "a Redis server"),
    (b"-NOA", "a Redis server"),
    (b"-DEN", "a Redis server"),
    (b"220 ", "a mail or FTP server"),
    (b"\x15\x03", "a server that speaks TLS; write amqps://, or set SSL"),
)

#: What py-amqp makes of frames that are none.
_GARBLED = (
    struct.error,
    LookupError,
    ValueError,
    OverflowError,
    RecursionError,
    amqp.exceptions.FrameError,
    amqp.exceptions.FrameSyntaxError,
    amqp.exceptions.UnexpectedFrame,
    amqp.exceptions.AMQPNotImplementedError,
)


class Handshake:
    """Bounds the opening of one connection: within its ``with`` block, it ends by a deadline, or raises.

    No descriptor is left behind then. It is an :class:`.Opening` for the transport.

    :param addresses: takes the next of these, and its share of their time.
    :param checks_name: whether TLS compares the certificate's name; otherwise the name is only sent.
    :param ask: is called with the connection, to send what need not wait until it is open.
    :param dial: returns a socket that is connected to a host and a port, in the place of the system's.
    """

    def __init__(
        self,
        addresses: Addresses,
        ask: Callable[[Any], object] | None = None,
        *,
        checks_name: bool = True,
        dial: Callable[[str, int], Any] | None = None,
    ) -> None:
        self.checks_name = checks_name
        self._addresses = addresses
        self._ask = ask
        self._dial = dial
        self._seconds = addresses.seconds
        self._deadline = 0.0
        # What has not come yet.
        self._phase = ""
        self._is_open = False
        self._head: bytes | None = b""
        self._established: Any = None
        self._transport: Any = None
        # Whether the peer may have said something.
        self._is_set_up = False
        # What bounds a connection that was opened without it.
        self._timer: Any = None
        # What is kept for one write.
        self._kept: list[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._let_go()
            return
        self._give_up()
        # A certificate's error is a ValueError too.
        garbled = isinstance(error, _GARBLED) and not isinstance(error, OSError)
        if garbled and self._is_set_up:
            raise self._no_amqp(repr(error)) from error

    def _no_amqp(self, what: str) -> OSError:
        words = f"{self._where} sends what is no AMQP: {what}"
        # A peer that has opened the connection is a broker, so its frames were garbled on the way.
        return OSError(errno.EBADMSG, words) if self._is_open else WrongProtocol(words)

    def opened(self) -> None:
        """Note that the connection is open, so that the handshake now waits for its first channel."""
        self._phase = "it opened no channel"
        self._is_open = True

    # -- what the connection calls -----------------------------------------------------------------------

    def begin(self, established: Any, transport: Any) -> None:
        """Bound what *established* does on *transport*, which is about to connect."""
        self._established, self._transport = established, transport
        self._deadline = self._addresses.begin(established.connect_timeout)
        self._seconds = self._addresses.seconds

    def opened_by_another(self, established: Any, timer: Any) -> None:
        """Note that somebody's own code has opened *established*, and bound what is left to do.

        :param timer: has the deadline of its transport.
        """
        self._established, self._timer = established, timer
        timer.deadline = self._addresses.begin(established.connect_timeout)

    def frame_max(self, proposed: int) -> int:
        """Return the bytes of a frame to agree on, where *proposed* are what the broker wants; 0 is any number.

        :raises WrongProtocol: if they are fewer than AMQP needs.
        """
        if 0 < proposed < SMALLEST_FRAME_MAX:
            raise WrongProtocol(
                f"{self._where} wants frames of at most {proposed} bytes, but AMQP needs {SMALLEST_FRAME_MAX} at least"
            )
        # Before py-amqp makes a buffer of that size. A client may ask for less than is proposed.
        largest: int = max(MOST_FRAME, self._established.frame_max)
        return min(proposed, largest)

    def answer(self, tune: Callable[[], None]) -> None:
        """Write in one what *tune* sends, and all that may follow it unasked."""
        kept: list[bytes] = []
        self._kept = kept
        try:
            tune()
            if self._ask is not None:
                self._ask(self._established)
        finally:
            self._kept = None
        self._transport.write(b"".join(kept))

    # -- what the transport calls ------------------------------------------------------------------------

    def connect(self, host: str, port: int) -> Any:
        """Return a socket that is connected to the next of the addresses."""
        if self._dial is not None:
            return self._dial(host, port)
        self._phase = "its name was still being looked up"
        family, kind, protocol, _, address = self._addresses.take(host, port)
        share = self._addresses.share()
        if share is not None and share > 0:
            self._seconds = round(share, 2)
            self._deadline = time.monotonic() + share
        left = self._left()
        self._phase = "it did not accept"
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left)
            sock.connect(address)
        except TimeoutError:
            sock.close()
            raise self._late() from None
        except BaseException:
            sock.close()
            raise
        return sock

    def set_up(self, set_up: Callable[[], None]) -> None:
        """Call *set_up*, which shakes hands where TLS is used."""
        transport = self._transport
        self._phase = "the TLS handshake did not end"
        timeout, transport.connect_timeout = transport.connect_timeout, self._left()
        try:
            # With a context of the user's, py-amqp shakes hands while it wraps the socket.
            transport.sock.settimeout(transport.connect_timeout)
            set_up()
        except TimeoutError:
            raise self._late() from None
        finally:
            transport.connect_timeout = timeout
        self._phase = "it accepted, and said nothing"
        self._is_set_up = True

    def read(self, size: int) -> bytes:
        """Read some bytes; *size* are asked for."""
        largest = self._established.frame_max
        if size > largest:
            raise self._no_amqp(f"a frame of more than {largest} bytes")
        data = self._read_some()
        while self._head is not None:
            self._head += data[: 8 - len(self._head)]
            if self._head.startswith(METHOD):
                self._head = None
                self._phase = "the AMQP handshake did not end"
            elif len(self._head) >= 8 or not b"AMQP".startswith(self._head[:4]):
                raise WrongProtocol(f"{self._where} is {self._speaker(self._head)}")
            else:
                data = self._read_some()
        return data

    def _read_some(self) -> bytes:
        try:
            self._transport.sock.settimeout(self._left())
            # What is more than was asked for, py-amqp keeps for its next read.
            data: bytes = self._transport.receive_some(MOST_AT_ONCE)
        except TimeoutError:
            raise self._late() from None
        if not data:
            when = "when it was asked for a channel" if self._is_open else "in the handshake"
            raise ConnectionResetError(f"{self._where} closed the connection {when}")
        return data

    def write(self, data: Any) -> None:
        """Write *data*, or keep it for :meth:`answer`."""
        if self._kept is not None:
            # py-amqp packs the next frame into the same buffer.
            self._kept.append(bytes(data))
            return
        self._transport.sock.settimeout(self._left())
        try:
            self._transport.send_all(data)
        except TimeoutError:
            raise self._late() from None
        except OSError:
            # Before it hung up, the peer may have said why: TLS's word on our certificate comes after the handshake.
            self._read_some()
            raise

    # -- its end -----------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        transport = self._transport
        if self._timer is not None:
            self._timer.deadline = None
        if transport is None or self._established._transport is not transport:
            return
        # As py-amqp leaves it: TCP blocks, TLS keeps the time-out.
        over_tls = isinstance(transport, SSLTransport)
        transport.sock.settimeout(transport.connect_timeout if over_tls else None)
        self._established.opened()

    def _give_up(self) -> None:
        # py-amqp closes the socket after an OSError alone, not after the broker's refusal, say.
        if self._transport is not None:
            self._transport.close()
        if self._established is not None:
            self._established.collect()

    # -- what went wrong ---------------------------------------------------------------------------------

    def reason(self, error: BaseException) -> str:
        """What *error*, which ended it, says besides the broker's name."""
        said = str(error) or type(error).__name__
        if self._transport is None:
            return said
        return said.removeprefix(f"no connection to {self._where} ").removeprefix(f"{self._where} ")

    @property
    def _where(self) -> str:
        return f"{self._transport.host}:{self._transport.port}"

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> TimeoutError:
        return TimeoutError(
            f"no connection to {self._where} within {self._seconds:g} s: {self._phase}"
        )

    @staticmethod
    def _speaker(head: bytes) -> str:
        if head.startswith(b"AMQP"):
            version = "-".join(map(str, head[4:]))
            return f"a server that speaks another version of AMQP ({version}), and refuses 0-9-1"
        for beginning, name in _SPEAKERS:
            if head.startswith(beginning[: len(head)]):
                return f"no AMQP broker, but {name}"
        return f"no AMQP broker: it begins with {head!r}"
