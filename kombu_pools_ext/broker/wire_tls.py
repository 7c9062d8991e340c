"""Reading and writing over TLS, for a wire: OpenSSL knows one thread at a time, and nobody waits with its lock."""

from __future__ import annotations

import errno
import select
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .own_errors import mark, raised_by_carrier

__all__ = ["OverTls"]

_monotonic = time.monotonic
#: What a non-blocking operation of TLS raises instead of waiting.
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


def _await(sock: Any, *, writable: bool, seconds: float | None) -> bool:
    """Whether *sock* gets ready within so many seconds; other greenlets run meanwhile."""
    # Looked up now: gevent's while it is patched, and eventlet leaves only select(), which is its own then.
    make_poller = getattr(select, "poll", None)
    if make_poller is None:
        asked = [sock]
        ready = select.select([] if writable else asked, asked if writable else [], asked, seconds)
        return any(ready)
    poller = make_poller()
    poller.register(sock.fileno(), select.POLLOUT if writable else select.POLLIN)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


def _is_closed_meanwhile(error: BaseException) -> bool:
    """Whether *error* is what an object of TLS says of an operation after its socket was closed."""
    return (
        isinstance(error, ValueError)
        and not isinstance(error, OSError)
        and raised_by_carrier(error)
    )


class OverTls:
    """The part of a :class:`~.wire.Wire` that speaks TLS, and what it takes to wait until a deadline."""

    __slots__ = tuple[str, ...]()

    if TYPE_CHECKING:
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
        try:
            return self._read_tls_once(size)
        except BaseException as error:
            self._blame(error)
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
                        writable = not isinstance(want, ssl.SSLWantReadError)
                        self._wait_until(until, writable=writable, what="write")
            except BaseException as error:
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
        if left <= 0 or not _await(
            self._sock, writable=writable, seconds=None if left == float("inf") else left
        ):
            raise self._late(what)
