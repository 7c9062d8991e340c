"""The socket under an AMQP connection, with what py-amqp's transport lacks: one writer at a time, and deadlines.

py-amqp bounds each ``recv`` and each ``send``, never the sum of them: a peer that sends one byte a second keeps a
reader for as long as it likes. And it knows one thread: a heartbeat sent by another one could come to lie inside a
frame. A :class:`Wire` puts itself into the transport, below the frames, and mends both.
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

# The system's own, whoever patched `socket`: only it understands MSG_DONTWAIT. A green one would wait all the same.
from _socket import socket as native_socket
from collections.abc import Callable
from typing import Any

from amqp.transport import SSLTransport

from .own_errors import mark, raised_by_carrier
from .sockets import GONE, Within, system_poll
from .tls import forget_errors
from .wire_tls import OverTls

__all__ = ["HEARTBEAT", "Wire"]

#: A heartbeat frame: type 8, channel 0, no payload.
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
#: Seconds that a close waits: for a heartbeat that another thread is writing, 8 bytes, into a buffer with room; and for
#: the answer to TLS's goodbye.
LAST_WORD = 1.0

#: Seconds, for a poller counts milliseconds in 32 bits.
_LONGEST_POLL = 86_400.0

_monotonic = time.monotonic
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", None)
#: Part of what a poller raises that two threads ask at once. To publish in both on one connection is nothing to be
#: recommended, but goes.
_CONCURRENT = "concurrent poll"


def _is_anothers(error: BaseException) -> bool:
    """Whether a signal handler raised what came out of a call of the system's own socket, which has no frame."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


class Wire(OverTls):
    """Installs itself in the transport of *established*, an ``amqp.Connection`` that has shaken hands.

    Reads belong to whoever holds the connection, and so does :attr:`deadline`. Writes are his as well, but for
    :meth:`beat`, which any thread may call at any time.
    """

    __slots__ = (
        "_ahead",
        "_deaf",
        "_ended",
        "_frame_max",
        "_gathered",
        "_lock",
        "_native",
        "_poll",
        "_recv",
        "_send",
        "_sendall",
        "_sock",
        "_tls",
        "_transport",
        "beaten",
        "deadline",
        "gathered",
        "heard",
        "interrupted",
        "spoken",
        "torn",
    )

    def __init__(self, established: Any) -> None:
        transport = established._transport
        sock = transport.sock
        self._transport, self._sock = transport, sock
        #: Whether a write was cut short, so that half a frame may be out: the connection is of no use then.
        self.torn = False
        #: Whether a read was broken off by something that is no error of the socket's, a signal handler's exception or
        #: gevent's time-out: the answer, or the rest of a frame, is still to come, and nothing for another borrower.
        self.interrupted = False
        #: Set by whoever holds the connection to ``False``; ``True`` once something was, or may have been, written.
        self.spoken = False
        #: When all of it must have ended, in seconds of ``time.monotonic``; ``None`` is never.
        self.deadline: float | None = None
        #: When the last heartbeat was sent, in seconds of ``time.monotonic``.
        self.beaten = _monotonic()
        #: When something had come since the last look, and how many frames had come by then.
        self.heard = self.beaten, established.bytes_recv
        #: Bytes that wait for the next write, which sends them first. Nothing is read before that.
        self.gathered = 0
        self._gathered: list[bytes] = []
        # What was read while a write waited, and whether that came to the end.
        self._ahead = bytearray()
        self._deaf = False
        self._ended = False
        # Made now, not at import: whoever patches threads may have done it in between.
        self._lock = threading.Lock()
        self._frame_max: int = established.frame_max
        self._native = isinstance(transport.sock, native_socket) and _AT_ONCE is not None
        self._recv: Callable[..., bytes] = transport._quick_recv
        self._tls = isinstance(transport, SSLTransport)
        # gevent's send() of TLS returns 0 where it would wait.
        self._send: Callable[..., int] = sock.write if self._tls else sock.send
        self._sendall: Callable[[Any], Any] = sock.sendall
        # Kept: whatever is patched later, this one asks the system.
        self._poll: Callable[[int], Any] | None = None
        make_poller = system_poll
        if make_poller is not None:
            poller = make_poller()
            poller.register(sock.fileno(), select.POLLIN | GONE)
            self._poll = poller.poll
        if self._tls:
            transport._quick_recv, transport._write = self._read_tls, self._write_tls
        else:
            transport._quick_recv, transport._write = self._read, self._write
        transport.close = self._close

    def __repr__(self) -> str:
        state = "torn" if self.torn else "ended" if self._ended else "whole"
        return f"<Wire: {state}, descriptor {self._sock.fileno()}>"

    def carries(self, established: Any) -> bool:
        """Whether this is still what *established* talks through, and has not been found gone."""
        transport = self._transport
        return (
            established._transport is transport
            and transport.connected
            and transport.sock is not None
        )

    def look(self) -> str | None:
        """``None`` if nothing came, ``"readable"`` if something did, ``"gone"`` if the peer hung up.

        For whoever holds the connection, like reading.
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
        if (
            events
            or self._ahead
            or self._transport._read_buffer
            or (self._tls and self._sock.pending())
        ):
            return "readable"
        return None

    def gather(self, frames: bytes) -> None:
        """Keep *frames*, whole ones, for the next write, to be sent in one with it; :meth:`flush` is one."""
        with self._lock:
            self.spoken = True
            # In this order: what is there is known of, whatever interrupts.
            self.gathered += len(frames)
            self._gathered.append(frames)

    def flush(self) -> None:
        """Write what was gathered."""
        if self.gathered:
            self._transport.write(b"")

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
            return count

    def _with_gathered(self, data: Any) -> Any:
        # Within the write: if that is cut short, nothing is ever written again.
        data = b"".join((*self._gathered, data))
        self._gathered.clear()
        self.gathered = 0
        return data

    def receive(self, size: int) -> bytes:
        """At most *size* bytes, by the deadline, of what has not come yet: it waits first, in one call.

        For whoever holds the connection, like reading. No bytes are the end of the connection.

        :raises TimeoutError: if nothing came in time.
        """
        if self.gathered:
            self.flush()
        if self._ahead:
            return self._take_ahead(size)
        deadline, poll, read = self.deadline, self._poll, self._transport._quick_recv
        if (
            deadline is None
            or poll is None
            or self._tls
            or not self._native
            or self._sock.gettimeout() is not None
        ):
            return read(size)  # type: ignore[no-any-return]  # bytes
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
        return read(size)  # type: ignore[no-any-return]  # bytes

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        """Within, every read and write has ended by *deadline*, in total, with a :class:`TimeoutError`.

        :param deadline: in seconds of ``time.monotonic``; ``None`` sets none. Of nested ones the earlier holds.
        """
        return Within(self, deadline)

    def beat(self) -> bool:
        """Send a heartbeat, from any thread, without waiting; whether it was sent.

        It is not if somebody is writing at this moment, which is as good as a heartbeat, or if nothing more fits
        into the socket's buffer.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._ended or self.torn or not self._has_room():
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

    # -- what the transport calls -----------------------------------------------------------------------

    def _read(self, size: int) -> bytes:
        """At most *size* bytes, as ``recv`` gives them."""
        if self.gathered:
            self.flush()
        if size > self._frame_max:
            raise self._absurd(size)
        if self._ahead:
            return self._take_ahead(size)
        deadline = self.deadline
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
                        # It has not come yet.
            elif patience <= left:
                return self._recv(size)
            sock.settimeout(left)
            try:
                return self._recv(size)
            finally:
                sock.settimeout(patience)
        except OSError as error:
            self._blame(error)
            if isinstance(error, BlockingIOError) and raised_by_carrier(error):
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
            self.spoken = True
            try:
                if self.gathered:
                    data = self._with_gathered(data)
                deadline = self.deadline
                if deadline is None:
                    self._sendall(data)
                    return
                self._in_time("write")
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
            if not raised_by_carrier(error):
                raise
            return 0

    def _recv_at_once(self, size: int) -> bytes:
        if self._tls:
            # Within a write, which does not block.
            return self._recv(size)
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

    def _close(self) -> None:
        """The transport's own, at a moment when nobody sends a heartbeat: the descriptor may be another's after it."""
        taken = self._lock.acquire(timeout=LAST_WORD)
        self._ended = True
        if taken:
            self._lock.release()
        sock = self._transport.sock
        if self._tls and sock is not None:
            # TLS says goodbye, and waits for an answer, which may never come.
            with contextlib.suppress(OSError):
                patience = sock.gettimeout()
                sock.settimeout(LAST_WORD if patience is None else min(patience, LAST_WORD))
        try:
            type(self._transport).close(self._transport)
        finally:
            if self._tls:
                forget_errors()

    # -- what went wrong --------------------------------------------------------------------------------

    def _blame(self, error: BaseException) -> None:
        """Mark what the socket raised; note what somebody else raised in the middle of an operation."""
        if isinstance(error, OSError) and raised_by_carrier(error):
            mark(error, self)
        else:
            self.interrupted = True

    def _tear(self) -> None:
        self.torn = True
        # Not fit for another borrower, and no word more: it would be taken for the rest of the frame.
        self._transport.connected = False

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
        self._transport.connected = False
        return OSError(
            errno.EBADMSG,
            f"{os.strerror(errno.EBADMSG)}: a frame of {size} bytes, where {self._frame_max} were agreed on",
        )
