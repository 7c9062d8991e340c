"""The socket under an AMQP connection: py-amqp's transports with deadlines, and with one writer at a time.

py-amqp bounds each ``recv`` and each ``send``, never the sum of them: a peer that sends one byte a second keeps a
reader for as long as it likes. And it expects one thread: a heartbeat that another thread sends could end up inside a
frame. The subclasses here bound all reads and writes by one deadline, and write one frame at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time

# The system's own, even if `socket` is patched: only it understands MSG_DONTWAIT. A green one would wait all the same.
from _socket import socket as native_socket
from collections.abc import Callable
from typing import Any, Protocol

from amqp import transport as pyamqp

from ..own_errors import mark, raised_by_library
from ..sockets import GONE, Bounded, Timer, system_poll
from ..tls import forget_errors, wrap_unchecked
from .adopting import change_class, subclass

__all__ = [
    "HEARTBEAT",
    "LAST_WORD",
    "Opening",
    "TCPTransport",
    "TLSTransport",
    "Transport",
    "adopt_transport",
]

#: A heartbeat frame: type 8, channel 0, no payload.
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
#: Seconds that a close waits: for a heartbeat that another thread is writing, 8 bytes, into a buffer with room; and for
#: the answer to TLS's goodbye.
LAST_WORD = 1.0
#: Bytes that are read at most while a write waits: twice the bodies that may come back, because there is more to each.
MOST_AHEAD = 8 << 20

#: Seconds, for a poller counts milliseconds in 32 bits.
_LONGEST_POLL = 86_400.0
_CHUNK = 65536

_monotonic = time.monotonic
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", None)
#: Part of what a poller raises that two threads ask at once. That two threads publish on one connection is not
#: recommended, but possible.
_CONCURRENT = "concurrent poll"
#: What a non-blocking operation of TLS raises instead of waiting.
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


def _is_anothers(error: BaseException) -> bool:
    """Whether a signal handler raised what came out of a call of the system's own socket, which has no frame."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def _await(
    sock: Any, *, readable: bool, writable: bool, seconds: float | None
) -> tuple[bool, bool]:
    """Whether *sock* gets readable, and whether writable, within so many seconds; other greenlets run meanwhile.

    A failed one is ready for whatever was asked of it.
    """
    # Looked up now: gevent's while it is patched, and eventlet leaves only select(), which is its own then.
    make_poller = getattr(select, "poll", None)
    if make_poller is None:
        asked = [sock]
        ready = select.select(asked if readable else [], asked if writable else [], asked, seconds)
        return bool(ready[0] or (readable and ready[2])), bool(ready[1] or (writable and ready[2]))
    poller = make_poller()
    ways = (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0)
    poller.register(sock.fileno(), ways)
    found = poller.poll(None if seconds is None else seconds * 1000)
    events = found[0][1] if found else 0
    failed = bool(events & ~(select.POLLIN | select.POLLOUT))
    return (
        readable and (failed or bool(events & select.POLLIN)),
        writable and (failed or bool(events & select.POLLOUT)),
    )


def _is_closed_meanwhile(error: BaseException) -> bool:
    """Whether *error* is what an object of TLS says of an operation after its socket was closed."""
    return (
        isinstance(error, ValueError)
        and not isinstance(error, OSError)
        and raised_by_library(error)
    )


def _patience(left: float) -> float | None:
    return None if left == float("inf") else left


class Opening(Protocol):
    """What a transport asks until its connection is open."""

    #: Whether TLS compares the certificate's name; otherwise the name is only sent.
    checks_name: bool

    def connect(self, host: str, port: int) -> Any:
        """Return a socket that is connected."""
        ...

    def set_up(self, set_up: Callable[[], None]) -> None:
        """Call *set_up*, which shakes hands where TLS is used."""
        ...

    def read(self, size: int) -> bytes:
        """Read some bytes; *size* are asked for."""
        ...

    def write(self, data: Any) -> None:
        """Write *data*."""
        ...


class Transport(pyamqp._AbstractTransport):
    """Mixed into a transport class of py-amqp; until the connection is open, an :class:`Opening` bounds it.

    Reads and writes belong to the thread that holds the connection, but for :meth:`beat`, which any thread may call at
    any time.
    """

    # None of these has a value in the class: CPython 3.11 looks an attribute up more slowly where one does.

    #: What bounds it until the connection is open.
    opening: Opening | None
    #: Whether a write was cut short, so that half a frame may be out: the connection is of no use then.
    torn: bool
    #: Whether a read was broken off by something that is no error of the socket's, a signal handler's exception or
    #: gevent's time-out: the answer, or the rest of a frame, is still to come, and nothing for another borrower.
    interrupted: bool
    #: What knows the deadline, and is told of what is written; the connection's session once the pool has opened it.
    session: Bounded
    #: Bytes that wait for the next write, which sends them first. Nothing is read before that.
    gathered: int
    #: Whether what is gathered begins in the middle of a frame: nothing else may be written before it.
    unfinished: bool
    #: When the last heartbeat was sent, in seconds of ``time.monotonic``.
    beaten: float
    #: When something had come since the last look, and how many frames had come by then.
    heard: tuple[float, int]

    # Of the socket, once the connection is open.
    _recv: Callable[..., bytes]
    _send: Callable[..., int]
    _sendall: Callable[[Any], Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.adopted()

    def adopted(self) -> None:
        """Begin as one of the pool's; another class has made it."""
        self.opening = None
        self.torn = self.interrupted = self.unfinished = False
        self.gathered = 0
        # Whether the peer's last word was read, and whether close() was called.
        self._deaf = self._ended = False

    def opened(self, frame_max: int, frames: int = 0) -> None:
        """Bound everything by the deadline of :attr:`session` from now on.

        :param frame_max: the bytes of a frame that were agreed on.
        :param frames: how many have come.
        """
        sock = self.sock
        # Without the methods of the opening, or py-amqp's own. And a new dict: once the class of an object was changed,
        # CPython 3.11 looks attributes up more slowly in the old one, which costs a batch 5 % of its instructions.
        hidden = "_quick_recv", "_write"
        self.__dict__ = {name: one for name, one in self.__dict__.items() if name not in hidden}
        self.opening = None
        self.session = Timer()
        self._note_socket()
        # The transport lets go of its own when it is closed; another thread may be in the middle of a heartbeat then.
        self._sock = sock
        self._frame_max = frame_max
        self.beaten = _monotonic()
        self.heard = self.beaten, frames
        self._gathered: list[bytes] = []
        # What was read while a write waited.
        self._ahead = bytearray()
        # Made now, not at import: threads may have been patched in between.
        self._lock = threading.Lock()
        self._native = isinstance(sock, native_socket) and _AT_ONCE is not None
        # Kept: whatever is patched later, this one asks the system.
        self._poll: Callable[[int], Any] | None = None
        make_poller = system_poll
        if make_poller is not None:
            poller = make_poller()
            poller.register(sock.fileno(), select.POLLIN | GONE)
            self._poll = poller.poll

    def __repr__(self) -> str:
        state = "torn" if self.torn else "ended" if self._ended else "whole"
        return f"{super().__repr__()[:-1]}, {state}>"

    def belongs_to(self, established: Any) -> bool:
        """Whether this is still what *established* talks through, and has not been found gone."""
        return established._transport is self and self.connected and self.sock is not None

    def look(self) -> str | None:
        """``None`` if nothing came, ``"readable"`` if something did, ``"gone"`` if the peer hung up.

        Only for the thread that holds the connection, like reading.
        """
        if self._poll is None:  # pragma: no cover - platforms without poll()
            events: Any = select.select([self._sock], [], [], 0)[0]
        else:
            try:
                events = self._poll(0)
            except RuntimeError as error:
                if _CONCURRENT not in str(error):
                    raise
                return "readable"
            if events and events[0][1] & GONE:
                return "gone"
        return "readable" if events or self._ahead or self._read_buffer else None

    @property
    def has_read(self) -> int:
        """Bytes of a frame that has not come to its end yet."""
        return len(self._read_buffer)

    def gather(self, frames: bytes) -> None:
        """Keep *frames*, whole ones, for the next write, which sends them first; :meth:`flush` is such a write."""
        with self._lock:
            self.session.spoken = True
            # In this order: what is there is known of, whatever interrupts.
            self.gathered += len(frames)
            self._gathered.append(frames)

    def flush(self) -> None:
        """Write what was gathered."""
        if self.gathered:
            self.write(b"")

    def forget(self) -> int:
        """Give up what was gathered.

        :returns: how often something was; it was not written.
        """
        if not self.gathered:
            return 0
        with self._lock:
            count = len(self._gathered)
            self._gathered.clear()
            self.gathered = 0
            if self.unfinished:
                # The end of a frame, which the peer waits for.
                self._tear()
            return count

    def _with_gathered(self, data: Any) -> Any:
        # Within the write: if that is cut short, nothing is ever written again.
        data = b"".join((*self._gathered, data))
        self._gathered.clear()
        self.gathered = 0
        self.unfinished = False
        return data

    def write_at_once(self, data: bytes) -> bool:
        """Write of *data*, whole frames, what the socket takes now, and gather the rest, which begins within a frame.

        Another thread may read meanwhile. It waits for nobody but another thread that writes.

        :returns: whether all of it was written, and what was gathered before.
        :raises OSError: if the connection ended; it is torn then.
        """
        with self._lock:
            if self.torn:
                raise self._torn_before()
            self.session.spoken = True
            try:
                if self.gathered:
                    data = self._with_gathered(data)
                sent = self._send_some(data)
                if sent < len(data):
                    rest = data[sent:]
                    self.unfinished = True
                    self._gathered.append(rest)
                    self.gathered = len(rest)
            except BaseException as error:
                self._tear()
                self._blame(error)
                raise
            return not self.unfinished

    def _send_some(self, data: Any) -> int:
        """Send what the socket takes now, and return how many bytes that were."""
        raise NotImplementedError

    def wait_for_room(self, seconds: float) -> None:
        """Wait until the socket takes more, or for *seconds*. Another thread may read meanwhile."""
        _await(self._sock, readable=False, writable=True, seconds=seconds)

    def beat(self) -> bool:
        """Send a heartbeat, from any thread, without waiting; whether it was sent.

        It is not if somebody is writing at this moment, which is as good as a heartbeat, or if nothing more fits
        into the socket's buffer.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._ended or self.torn or self.unfinished or not self._has_room():
                return False
            # Not by py-amqp's frame writer, which packs all frames into one buffer.
            if self._send(HEARTBEAT) != len(HEARTBEAT):
                self._tear()
                return False
            self.beaten = _monotonic()
            return True
        except ssl.SSLWantWriteError:
            self._tear()  # begun, and OpenSSL takes no other data before it has ended
            return False
        except (OSError, ValueError):
            return False  # gone, or TLS has something to read first: its reader will find out
        finally:
            self._lock.release()

    def _has_room(self) -> bool:
        make_poller = system_poll
        if make_poller is None:  # pragma: no cover - platforms without poll()
            return bool(select.select([], [self._sock], [], 0)[1])
        poller = make_poller()
        poller.register(self._sock.fileno(), select.POLLOUT)
        return bool(poller.poll(0))

    def receive(self, size: int) -> bytes:
        """At most *size* bytes, by the deadline, of what has not come yet.

        Only for the thread that holds the connection. No bytes are the end of the connection.

        :raises TimeoutError: if nothing came in time.
        """
        if self.gathered:
            self.flush()
        return self._quick_recv(size)

    # -- while the connection is opened -------------------------------------------------------------------

    def send_all(self, data: Any) -> None:
        """Write *data* by py-amqp's own means, within the time-out of the socket."""
        raise NotImplementedError

    def receive_some(self, size: int) -> bytes:
        """Read at most *size* bytes by py-amqp's own means, within the time-out of the socket."""
        return self._recv(size)

    def _connect(self, host: str, port: int, timeout: float | None) -> None:
        opening = self.opening
        if opening is None:
            super()._connect(host, port, timeout)
        else:
            self.sock = opening.connect(host, port)

    def _setup_transport(self) -> None:
        opening = self.opening
        if opening is None:
            super()._setup_transport()
            return
        opening.set_up(super()._setup_transport)
        self._note_socket()
        # These hide the class's own for as long as the opening lasts; it is where py-amqp puts those of the socket.
        self._quick_recv, self._write = opening.read, opening.write

    def _note_socket(self) -> None:
        raise NotImplementedError

    def _get_tcp_socket_defaults(self, sock: Any) -> dict[Any, Any]:
        # py-amqp writes back what it reads. Linux does not take the segment size of its own loopback, once the peer has
        # spoken.
        options: dict[Any, Any] = super()._get_tcp_socket_defaults(sock)
        options.pop(getattr(socket, "TCP_MAXSEG", None), None)
        return options

    # -- once it is open ----------------------------------------------------------------------------------

    def close(self) -> None:
        if self.opening is not None or self.sock is None:
            super().close()
            return
        # At a moment when nobody sends a heartbeat: the descriptor may be another's after it.
        taken = self._lock.acquire(timeout=LAST_WORD)
        self._ended = True
        if taken:
            self._lock.release()
        super().close()

    def _in_time(self, what: str) -> None:
        if self.session.deadline is not None and self.session.deadline <= _monotonic():
            raise self._late(what)

    def _until(self, patience: float | None) -> float:
        """When an operation ends that begins now on a socket with a time-out of *patience*."""
        until = float("inf") if self.session.deadline is None else self.session.deadline
        return until if patience is None else min(until, _monotonic() + patience)

    def _wait_until(self, until: float, *, writable: bool, what: str) -> None:
        left = until - _monotonic()
        if left <= 0 or not any(
            _await(self._sock, readable=not writable, writable=writable, seconds=_patience(left))
        ):
            raise self._late(what)

    def _wait_for_room(self, until: float) -> None:
        """Wait until the socket takes more, and read meanwhile: the peer may do nothing else until it is read from."""
        while True:
            left = until - _monotonic()
            hears = not self._deaf and len(self._ahead) < MOST_AHEAD
            readable, writable = (
                _await(self._sock, readable=hears, writable=True, seconds=_patience(left))
                if left > 0
                else (False, False)
            )
            if readable:
                self._read_ahead()
            if writable:
                return
            if not readable:
                raise self._late("write")

    def _read_ahead(self) -> None:
        try:
            data = self._receive_at_once(_CHUNK)
        except _WANTS as error:
            if not raised_by_library(error):
                raise
            return  # less than TLS can make something of
        if data:
            self._ahead += data
        else:
            # It may still read, and what it has said is there.
            self._deaf = True

    def _take_ahead(self, size: int) -> bytes:
        data = bytes(self._ahead[:size])
        del self._ahead[:size]
        return data

    # -- what went wrong --------------------------------------------------------------------------------

    def _blame(self, error: BaseException) -> None:
        """Mark what the socket raised; note what somebody else raised in the middle of an operation."""
        if isinstance(error, OSError) and raised_by_library(error):
            mark(error, self)
        else:
            self.interrupted = True

    def _tear(self) -> None:
        self.torn = True
        # Not fit for another borrower, and no word more: it would be taken for the rest of the frame.
        self.connected = False

    @staticmethod
    def _torn_before() -> OSError:
        return OSError(
            errno.EPIPE,
            "an earlier write was cut short, so nothing more can be said on this connection",
        )

    @staticmethod
    def _late(what: str) -> TimeoutError:
        return TimeoutError(f"the {what} did not end in time")

    def _absurd(self, size: int) -> OSError:
        self.connected = False
        return OSError(
            errno.EBADMSG,
            f"{os.strerror(errno.EBADMSG)}: a frame of {size} bytes, where {self._frame_max} were agreed on",
        )


class TCPTransport(Transport, pyamqp.TCPTransport):
    """Without TLS."""

    def send_all(self, data: Any) -> None:
        self._sendall(data)

    def _send_some(self, data: Any) -> int:
        return self._send_at_once(data)

    def _note_socket(self) -> None:
        self._recv, self._send, self._sendall = self.sock.recv, self.sock.send, self.sock.sendall

    def receive(self, size: int) -> bytes:
        # It waits first, in one call, which is faster than to ask before.
        if self.gathered:
            self.flush()
        if self._ahead:
            return self._take_ahead(size)
        deadline, poll, read = self.session.deadline, self._poll, self._quick_recv
        if (
            deadline is None
            or poll is None
            or not self._native
            or self._sock.gettimeout() is not None
        ):
            return read(size)
        try:
            left = deadline - _monotonic()
            if left > 0 and poll(int(min(left, _LONGEST_POLL) * 1000) + 1):
                return self._recv(size, _AT_ONCE)
        except BlockingIOError as error:
            # Else there was nothing after all.
            if _is_anothers(error):
                self.interrupted = True
                raise
        except OSError as error:
            self._blame(error)
            raise
        except BaseException as error:
            if not isinstance(error, RuntimeError) or _CONCURRENT not in str(error):
                self.interrupted = True
                raise
        return read(size)

    def _quick_recv(self, size: int) -> bytes:
        """At most *size* bytes, as ``recv`` gives them."""
        if self.gathered:
            self.flush()
        if size > self._frame_max:
            raise self._absurd(size)
        if self._ahead:
            return self._take_ahead(size)
        deadline = self.session.deadline
        try:
            if deadline is None:
                return self._recv(size)
            left = deadline - _monotonic()
            if left <= 0:
                raise self._late("read")
            sock = self._sock
            patience = sock.gettimeout()
            if patience is None:
                if self._native:
                    try:
                        return self._recv(size, _AT_ONCE)
                    except BlockingIOError as error:
                        if _is_anothers(error):
                            raise
                        # It has not come yet. Not settimeout(), which would be in force for who writes meanwhile, too.
                        seconds = max(0.0, deadline - _monotonic())
                        if not _await(sock, readable=True, writable=False, seconds=seconds)[0]:
                            # As the socket says it.
                            raise TimeoutError("timed out") from None
                        return self._recv(size, _AT_ONCE)
            elif patience <= left:
                return self._recv(size)
            sock.settimeout(left)
            try:
                return self._recv(size)
            finally:
                sock.settimeout(patience)
        except OSError as error:
            self._blame(error)
            if isinstance(error, BlockingIOError) and raised_by_library(error):
                # py-amqp would ask again and again for the rest of a frame, as fast as it can.
                raise TimeoutError("nothing to read") from None
            raise
        except BaseException:
            self.interrupted = True
            raise

    def _write(self, data: Any) -> None:
        """All of *data*, which is one frame or more."""
        with self._lock:
            if self.torn:
                raise self._torn_before()
            self.session.spoken = True
            try:
                if self.gathered:
                    data = self._with_gathered(data)
                deadline = self.session.deadline
                if deadline is None:
                    self._sendall(data)
                    return
                if deadline <= _monotonic():
                    raise self._late("write")
                sent = self._send_at_once(data)
                if sent < len(data):
                    self._write_slowly(memoryview(data)[sent:], deadline)
            except BaseException as error:
                # Whatever it was, a signal handler's exception too: nobody knows how much of the frame is out.
                self._tear()
                self._blame(error)
                raise

    def _write_slowly(self, view: memoryview, deadline: float) -> None:
        patience = self._sock.gettimeout()
        until = deadline if patience is None else min(deadline, _monotonic() + patience)
        while view:
            self._wait_for_room(until)
            view = view[self._send_at_once(view) :]

    def _send_at_once(self, data: Any) -> int:
        """Send what the socket takes now, and say how many bytes that were."""
        try:
            if self._native and self._sock.gettimeout() is None:
                return self._send(data, _AT_ONCE)
            return self._unblocked(self._send, data)  # type: ignore[no-any-return]  # an int
        except BlockingIOError as error:
            if not raised_by_library(error):
                raise
            return 0

    def _receive_at_once(self, size: int) -> bytes:
        if self._native and self._sock.gettimeout() is None:
            return self._recv(size, _AT_ONCE)
        return self._unblocked(self._recv, size)  # type: ignore[no-any-return]  # bytes

    def _unblocked(self, operation: Callable[[Any], Any], argument: Any) -> Any:
        sock = self._sock
        patience = sock.gettimeout()
        # Not settimeout(0), in which eventlet's lets other greenlets run.
        sock.setblocking(False)
        try:
            return operation(argument)
        finally:
            sock.setblocking(True)
            if patience is not None:
                sock.settimeout(patience)


class TLSTransport(Transport, pyamqp.SSLTransport):
    """With TLS: OpenSSL knows one thread at a time, so its lock is held; but never while waiting."""

    def send_all(self, data: Any) -> None:
        pyamqp.SSLTransport._write(self, data)

    def _send_some(self, data: Any) -> int:
        sock, view = self._sock, memoryview(data)
        patience = sock.gettimeout()
        try:
            sock.setblocking(False)
            # Nothing: gevent's, where it would wait.
            while view and (sent := self._send(view)):
                view = view[sent:]
        except _WANTS as want:
            forget_errors()
            if not raised_by_library(want):
                raise
        except ValueError as error:
            if not _is_closed_meanwhile(error):
                raise
            raise OSError(errno.EBADF, str(error)) from error
        finally:
            if patience != 0:
                sock.settimeout(patience)
        return len(data) - len(view)

    def _note_socket(self) -> None:
        # gevent's send() of TLS returns 0 where it would wait.
        self._recv, self._send = self.sock.read, self.sock.write
        self._sendall = self.sock.sendall

    def _wrap_socket_sni(self, *args: Any, **options: Any) -> Any:
        opening = self.opening
        if opening is None or opening.checks_name:
            return super()._wrap_socket_sni(*args, **options)
        return wrap_unchecked(*args, **options)

    def _shutdown_transport(self) -> None:
        # TLS says goodbye, and waits for an answer, which may never come; while it is opened it does neither.
        if self.opening is None:
            sock = self.sock
            with contextlib.suppress(OSError):
                patience = sock.gettimeout()
                sock.settimeout(LAST_WORD if patience is None else min(patience, LAST_WORD))
            super()._shutdown_transport()

    def look(self) -> str | None:
        # What OpenSSL has read from the socket already, a look at that does not show.
        return super().look() or ("readable" if self._sock.pending() else None)

    def close(self) -> None:
        try:
            super().close()
        finally:
            forget_errors()

    def _quick_recv(self, size: int) -> bytes:
        """At most *size* bytes, as ``read`` gives them."""
        if self.gathered:
            self.flush()
        if size > self._frame_max:
            raise self._absurd(size)
        if self._ahead:
            return self._take_ahead(size)
        try:
            return self._read_once(size)
        except BaseException as error:
            self._blame(error)
            forget_errors()
            raise

    def _read_once(self, size: int) -> bytes:
        sock = self._sock
        until: float | None = None
        self._in_time("read")
        while True:
            with self._lock:
                patience = sock.gettimeout()
                try:
                    # Not settimeout(0), in which eventlet's lets other greenlets run.
                    sock.setblocking(False)
                    data: bytes = self._recv(size)
                    return data
                except _WANTS as want:
                    if not raised_by_library(want):
                        raise
                    writable = isinstance(want, ssl.SSLWantWriteError)
                except ValueError as error:
                    if not _is_closed_meanwhile(error):
                        raise
                    raise OSError(errno.EBADF, str(error)) from error
                finally:
                    if patience != 0:
                        sock.settimeout(patience)
            if until is None:
                until = self._until(patience)
            self._wait_until(until, writable=writable, what="read")

    def _write(self, data: Any) -> None:
        """All of *data*, which is one frame or more."""
        sock = self._sock
        with self._lock:
            if self.torn:
                raise self._torn_before()
            self.session.spoken = True
            patience = sock.gettimeout()
            until = self._until(patience)
            try:
                view = memoryview(self._with_gathered(data) if self.gathered else data)
                self._in_time("write")
                sock.setblocking(False)
                while view:
                    try:
                        view = view[self._send(view) :]
                    except _WANTS as want:
                        if not raised_by_library(want):
                            raise
                        if isinstance(want, ssl.SSLWantReadError):
                            self._wait_until(until, writable=False, what="write")
                        else:
                            self._wait_for_room(until)
            except BaseException as error:
                forget_errors()
                self._tear()
                if _is_closed_meanwhile(error):
                    closed = OSError(errno.EBADF, str(error))
                    mark(closed, self)
                    raise closed from error
                self._blame(error)
                raise
            finally:
                if patience != 0:
                    sock.settimeout(patience)

    def _receive_at_once(self, size: int) -> bytes:
        # Within a write, which does not block.
        return self._recv(size)


#: By class of py-amqp's transports.
_classes: dict[type[Any], type[Any]] = {
    pyamqp.TCPTransport: TCPTransport,
    pyamqp.SSLTransport: TLSTransport,
}


def adopt_transport(transport: Any) -> Any:
    """Return *transport*, of py-amqp's class or of the application's, as one of the pool's."""
    kind = type(transport)
    if not issubclass(kind, Transport):
        over_tls = issubclass(kind, pyamqp.SSLTransport)
        change_class(
            transport, subclass(kind, TLSTransport if over_tls else TCPTransport, _classes)
        )
        transport.adopted()
    return transport
