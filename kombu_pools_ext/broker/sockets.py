"""What the sockets of AMQP and of Redis have in common: the system's own poll, and a deadline for a block of code."""

from __future__ import annotations

import contextlib
import select
import socket
from types import BuiltinFunctionType
from typing import Any, Protocol

from ..engine.loaded import loaded

__all__ = ["GONE", "Bounded", "Timer", "Within", "close_inherited", "forget_socket", "system_poll"]

#: What a peer that hung up looks like; POLLRDHUP is Linux only.
GONE = (
    select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
    if hasattr(select, "POLLHUP")
    else 0
)


def _find_poll() -> Any:
    found = getattr(select, "poll", None)
    if isinstance(found, BuiltinFunctionType):
        return found
    gevent, eventlet = loaded("gevent.monkey"), loaded("eventlet.patcher")
    if gevent is not None and found is not None:
        return gevent.get_original("select", "poll")
    return None if eventlet is None else getattr(eventlet.original("select"), "poll", None)


#: The system's own ``select.poll``; ``None`` if it has none. gevent's switches greenlets, and takes milliseconds beside
#: a busy one; eventlet removes it. It is looked up at import, because a package that has patched it by then is
#: completely loaded; a later look, from a thread of the pool, could break an import that is under way.
system_poll: Any = _find_poll()

#: Kept for ever: what a child inherited and must never finalize, for a finalizer might speak.
_inherited: list[Any] = []


def forget_socket(sock: socket.socket | None) -> None:
    """Close a descriptor of ours without a word on the connection that the parent goes on using."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        # close() alone would leave the object's idea of TLS alive; detached, nothing can speak any more.
        descriptor = sock.detach()
        if descriptor >= 0:
            socket.close(descriptor)


def close_inherited(connection: Any) -> None:
    """In a forked child: close the socket of *connection*, one of kombu's, if its transport shows it."""
    established = connection.__dict__.get("_connection")
    _inherited.append((established, connection.__dict__.get("_transport")))
    transport = getattr(established, "_transport", None)
    if transport is not None:
        forget_socket(transport.sock)
        transport.sock, transport.connected = None, False


class Bounded(Protocol):
    """What a socket asks for its time, and tells what it did."""

    #: In seconds of ``time.monotonic``; ``None`` is never.
    deadline: float | None
    #: Set to ``False`` before a publish; ``True`` once something was, or may have been, written.
    spoken: bool


class Timer:
    """What bounds a socket as long as nobody else does."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.spoken = False


class Within:
    """Within, what *bounded* reads and writes ends by a deadline; of nested ones the earlier holds.

    A class, for a generator's context costs a publish twice as much.

    :param deadline: in seconds of ``time.monotonic``; ``None`` sets none.
    """

    __slots__ = ("_before", "_bounded", "_deadline")

    def __init__(self, bounded: Bounded, deadline: float | None) -> None:
        self._bounded = bounded
        self._deadline = deadline

    def __enter__(self) -> None:
        before = self._before = self._bounded.deadline
        if before is None or (self._deadline is not None and self._deadline < before):
            self._bounded.deadline = self._deadline

    def __exit__(self, *exc: object) -> None:
        self._bounded.deadline = self._before
