"""Making one AMQP connection, bounded as a whole.

py-amqp bounds each step by ``connect_timeout``, never their sum: each address of a name, each byte that comes, TLS's
goodbye after a failure. It stops at the first address that accepts, whatever comes of it; here each address is one
attempt, and whoever makes it goes on to the next. And of whatever comes first py-amqp takes the seven bytes for a
frame's header: of the greeting of an HTTP server it would wait for a frame of a gigabyte. Until the connection is open,
a :class:`Handshake` stands between py-amqp and its socket; then it lets go, and nothing of it stays.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import amqp
from amqp import spec
from amqp.transport import SSLTransport

from .addresses import Addresses
from .amqp_leftovers import noting
from .inbound import MOST_FRAME, SMALLEST_FRAME_MAX
from .tls import wrap_unchecked

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


#: What of py-amqp's transport is taken for as long as it lasts.
_TAKEN = (
    "_connect",
    "_setup_transport",
    "_shutdown_transport",
    "_get_tcp_socket_defaults",
    "_wrap_socket_sni",
)


#: Methods that come once in each connection; a second one would change what was agreed on.
_ONCE = (
    spec.Connection.Start,
    spec.Connection.Secure,
    spec.Connection.Tune,
    spec.Connection.OpenOk,
)


class WrongProtocol(ConnectionError):
    """What answers is no AMQP 0-9-1 broker; it will not be one when asked again."""


def _refuse(*args: Any) -> None:
    raise amqp.exceptions.UnexpectedFrame("the broker begins the handshake again")


def _nothing() -> None:
    """In place of TLS's goodbye, which would wait for the peer's."""


class Handshake:
    """Within its ``with`` block, *transport* connects by a deadline, or raises and leaves no descriptor behind.

    :param transport: kombu's, for py-amqp.
    :param addresses: takes the next of these, and its share of their time.
    :param checks_name: whether TLS compares the certificate's name; otherwise the name is only sent.
    :param ask: is called with the ``amqp.Connection``, to send what need not wait until it is open.
    """

    def __init__(
        self,
        transport: Any,
        addresses: Addresses,
        ask: Callable[[Any], object] | None = None,
        *,
        checks_name: bool = True,
    ) -> None:
        self._kombu = transport
        self._addresses = addresses
        self._ask = ask
        self._checks_name = checks_name
        self._seconds = addresses.seconds
        self._deadline = 0.0
        # What has not come yet.
        self._phase = ""
        self._is_open = False
        self._head: bytes | None = b""
        # The real ones, while their places are taken.
        self._established: Any = None
        self._wire: Any = None
        self._make_wire: Any = None
        self._set_up_wire: Any = None
        self._read_options: Any = None
        self._recv: Any = None
        self._send: Any = None
        self._own_send = False
        # What is kept for one write.
        self._kept: list[bytes] | None = None
        self._on_tune: Any = None

    def __enter__(self) -> None:
        self._kombu.Connection = self._make

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        del self._kombu.Connection
        if error is None:
            self._let_go()
            return
        self._give_up()
        # A certificate's error is a ValueError too.
        garbled = isinstance(error, _GARBLED) and not isinstance(error, OSError)
        if garbled and self._recv is not None:
            raise self._no_amqp(repr(error)) from error

    def _no_amqp(self, what: str) -> OSError:
        words = f"{self._where} sends what is no AMQP: {what}"
        # A peer that has opened the connection is a broker, so its frames were garbled on the way.
        return OSError(errno.EBADMSG, words) if self._is_open else WrongProtocol(words)

    def opened(self) -> None:
        """Note that the connection is open, so that the handshake now waits for its first channel."""
        self._phase = "it opened no channel"
        self._is_open = True

    # -- what py-amqp calls in place of its own --------------------------------------------------------

    def _make(self, **options: Any) -> Any:
        # The class's own, which the instance's attribute hides.
        established = self._established = noting(type(self._kombu).Connection)(**options)
        self._deadline = self._addresses.begin(established.connect_timeout)
        self._seconds = self._addresses.seconds
        self._make_wire, established.Transport = established.Transport, self._make_transport
        self._on_tune = established._callbacks[spec.Connection.Tune]
        established._callbacks[spec.Connection.Tune] = self._tuned
        return established

    def _make_transport(self, *args: Any, **options: Any) -> Any:
        wire = self._wire = self._make_wire(*args, **options)
        self._set_up_wire = wire._setup_transport
        wire._connect, wire._setup_transport = self._connect, self._set_up
        wire._shutdown_transport = _nothing
        if not self._checks_name:
            wire._wrap_socket_sni = wrap_unchecked
        self._read_options = wire._get_tcp_socket_defaults
        wire._get_tcp_socket_defaults = self._options
        return wire

    def _options(self, sock: Any) -> dict[Any, Any]:
        # py-amqp writes back what it reads. Linux does not take the segment size of its own loopback, once the peer has
        # spoken.
        options: dict[Any, Any] = self._read_options(sock)
        options.pop(getattr(socket, "TCP_MAXSEG", None), None)
        return options

    def _connect(self, host: str, port: int, timeout: float | None) -> None:
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
        self._wire.sock = sock

    def _set_up(self) -> None:
        wire = self._wire
        self._phase = "the TLS handshake did not end"
        timeout, wire.connect_timeout = wire.connect_timeout, self._left()
        try:
            # With a context of the user's, py-amqp shakes hands while it wraps the socket.
            wire.sock.settimeout(wire.connect_timeout)
            self._set_up_wire()
        except TimeoutError:
            raise self._late() from None
        finally:
            wire.connect_timeout = timeout
        self._phase = "it accepted, and said nothing"
        self._recv, wire._quick_recv = wire._quick_recv, self._read
        self._own_send = "_write" in wire.__dict__
        self._send, wire._write = wire._write, self._write

    def _read(self, size: int) -> bytes:
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
            self._wire.sock.settimeout(self._left())
            # What is more than was asked for, py-amqp keeps for its next read.
            data: bytes = self._recv(MOST_AT_ONCE)
        except TimeoutError:
            raise self._late() from None
        if not data:
            when = "when it was asked for a channel" if self._is_open else "in the handshake"
            raise ConnectionResetError(f"{self._where} closed the connection {when}")
        return data

    def _tuned(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        if 0 < frame_max < SMALLEST_FRAME_MAX:
            raise WrongProtocol(
                f"{self._where} wants frames of at most {frame_max} bytes, but AMQP needs {SMALLEST_FRAME_MAX} at least"
            )
        established = self._established
        # Before py-amqp makes a buffer of that size. A client may ask for less than is proposed.
        frame_max = min(frame_max, max(MOST_FRAME, established.frame_max))
        established._callbacks[spec.Connection.Tune] = _refuse
        # The answer, and all that may follow it unasked, in one write.
        kept: list[bytes] = []
        self._kept = kept
        try:
            self._on_tune(channel_max, frame_max, heartbeat)
            if self._ask is not None:
                self._ask(established)
        finally:
            self._kept = None
        self._wire.write(b"".join(kept))

    def _write(self, data: Any) -> None:
        if self._kept is not None:
            # py-amqp packs the next frame into the same buffer.
            self._kept.append(bytes(data))
            return
        self._wire.sock.settimeout(self._left())
        try:
            self._send(data)
        except TimeoutError:
            raise self._late() from None
        except OSError:
            # Before it hung up, the peer may have said why: TLS's word on our certificate comes after the handshake.
            self._read_some()
            raise

    # -- its end -----------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        wire, established = self._wire, self._established
        if wire is None:
            return
        wire._quick_recv = self._recv
        if self._own_send:
            wire._write = self._send
        else:
            del wire._write
        for name in _TAKEN:
            wire.__dict__.pop(name, None)
        # As py-amqp leaves it: TCP blocks, TLS keeps the time-out.
        wire.sock.settimeout(wire.connect_timeout if isinstance(wire, SSLTransport) else None)
        del established.Transport
        for method in _ONCE:
            established._callbacks[method] = _refuse

    def _give_up(self) -> None:
        # py-amqp closes the socket after an OSError alone, not after the broker's refusal, say.
        if self._wire is not None:
            self._wire.close()
        if self._established is not None:
            self._established.collect()

    # -- what went wrong ---------------------------------------------------------------------------------

    def reason(self, error: BaseException) -> str:
        """What *error*, which ended it, says besides the broker's name."""
        said = str(error) or type(error).__name__
        if self._wire is None:
            return said
        return said.removeprefix(f"no connection to {self._where} ").removeprefix(f"{self._where} ")

    @property
    def _where(self) -> str:
        return f"{self._wire.host}:{self._wire.port}"

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
