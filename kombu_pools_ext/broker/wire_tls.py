"""Reading and writing over TLS, for a wire: OpenSSL knows one thread at a time, and nobody waits with its lock."""

from __future__ import annotations

import errno
import select
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .own_errors import mark, raised_by_carrier
from .tls import forget_errors

__all__ = ["OverTls"]

_monotonic = time.monotonic
#: Bytes that are read at most while a write waits: the bodies that may come back, twice, for there may be more to each.
MOST_AHEAD = 8 << 20
_CHUNK = 65536
#: What a non-blocking operation of TLS raises instead of waiting.
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


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
        and raised_by_carrier(error)
    )


def _patience(left: float) -> float | None:
    return None if left == float("inf") else left


class OverTls:
    """The part of a :class:`~.wire.Wire` that speaks TLS, and what it takes to wait until a deadline."""

    __slots__ = tuple[str, ...]()

    if TYPE_CHECKING:
        _ahead: bytearray
        _deaf: bool
        deadline: float | None
        gathered: int
        interrupted: bool
        spoken: bool
        torn: bool
        _frame_max: int
        _lock: Any
        _recv: Callable[..., bytes]
        _send: Callable[..., int]
        _sock: Any

        def flush(self) -> None: ...

        def _recv_at_once(self, size: int) -> bytes: ...

        def _with_gathered(self, data: Any) -> Any: ...

        def _tear(self) -> None: ...

        def _blame(self, error: BaseException) -> None: ...

        def _absurd(self, size: int) -> OSError: ...

        @staticmethod
        def _late(what: str) -> TimeoutError: ...

        @staticmethod
        def _torn_before() -> OSError: ...

    def _read_tls(self, size: int) -> bytes:
        """:meth:`_read`. OpenSSL knows one thread at a time, so the lock is held; but never while waiting."""
        if self.gathered:
            self.flush()
        if size > self._frame_max:
            raise self._absurd(size)
        if self._ahead:
            return self._take_ahead(size)
        try:
            return self._read_tls_once(size)
        except BaseException as error:
            self._blame(error)
            forget_errors()
            raise

    def _read_tls_once(self, size: int) -> bytes:
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
                    if not raised_by_carrier(want):
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

    def _write_tls(self, data: Any) -> None:
        """:meth:`_write`."""
        sock = self._sock
        with self._lock:
            if self.torn:
                raise self._torn_before()
            self.spoken = True
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
                        if not raised_by_carrier(want):
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

    def _in_time(self, what: str) -> None:
        if self.deadline is not None and self.deadline <= _monotonic():
            raise self._late(what)

    def _until(self, patience: float | None) -> float:
        """When an operation ends that begins now on a socket with a time-out of *patience*."""
        until = float("inf") if self.deadline is None else self.deadline
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
            data = self._recv_at_once(_CHUNK)
        except _WANTS as error:
            if not raised_by_carrier(error):
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
