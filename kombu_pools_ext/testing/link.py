"""What stands in for a network connection: a pair of connected descriptors within the process.

The client has one end, a socket like any other for whoever waits on it: the pools' poll, Celery's event loop, gevent.
But what it sends does not go through the system. It is handed to the broker in the same step, so that a message is
there when the call that has sent it returns.
"""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ..engine.loaded import loaded

__all__ = ["Link"]

#: As it was at the import: a test suite may forbid sockets, which this is none of, for it leads nowhere else.
_own_class = socket.socket
#: Seconds until a thread looks again whether its connection is still there.
LONGEST_WAIT = 1.0
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)
#: Client's classes, by the class of sockets that they are made of.
_classes: dict[type[Any], type[Any]] = {}


class _ClientSide:
    """Mixed into a class of sockets. Its reads are the system's: the pools tell their errors from others by that."""

    link: Link

    def send(self, data: Any, flags: int = 0) -> int:
        self.link.to_broker(bytes(data))
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.link.to_broker(bytes(data))

    def shutdown(self, how: int) -> None:
        self.link.left()
        with contextlib.suppress(OSError):
            parent: Any = super()
            parent.shutdown(how)

    def close(self) -> None:
        self.link.left()
        parent: Any = super()
        parent.close()

    def setsockopt(self, *args: Any) -> None:
        """Take any option: those of TCP mean nothing here."""

    def getsockopt(self, *args: Any) -> int:
        return 0

    def getsockname(self) -> tuple[str, int]:
        return self.link.name, 0

    def getpeername(self) -> tuple[str, int]:
        return self.link.name, 0


def _make_client(descriptor: int, link: Link) -> Any:
    """Return the client's side. Where gevent's or eventlet's sockets have replaced the system's, it waits like them."""
    present: Any = socket.socket
    origins = {kind.__module__.partition(".")[0] for kind in present.__mro__}
    eventlet = loaded("eventlet.patcher") if "eventlet" in origins else None
    if eventlet is not None:
        base = eventlet.original("socket").socket
    else:
        base = present if "gevent" in origins else _own_class
    if base not in _classes:
        _classes[base] = type("ClientSocket", (_ClientSide, base), {})
    client = _classes[base](fileno=descriptor)
    client.link = link
    return client if eventlet is None else present(client)


class Link:
    """One connection between a client and the broker.

    :param name: the broker's.
    :param receive: is called with what the client sends.
    :param left: is called when the client has gone.
    """

    def __init__(
        self,
        name: str,
        receive: Callable[[Link, bytes], None],
        left: Callable[[Link], None],
    ) -> None:
        self.name = name
        self._receive = receive
        self._left = left
        # What the client's side has no room for yet.
        self._waiting: deque[bytes] = deque()
        self._pumping = False
        self._failure: BaseException | None = None
        # A signal handler may be called by the thread that has it.
        self._lock = threading.RLock()
        self._ours: Any = None

    def open(self) -> Any:
        """Return the client's side, a socket. It is closed when nobody has it any more."""
        self._ours, theirs = _socket.socketpair()
        self._ours.setblocking(False)
        client = _make_client(theirs.detach(), self)
        weakref.finalize(client, self.left).atexit = False
        return client

    # -- for the client -----------------------------------------------------------------------------------

    def to_broker(self, data: bytes) -> None:
        """Hand *data* to the broker, and return when it has looked at it.

        :raises BrokenPipeError: if the broker has hung up.
        :raises NotImplementedError: if *data* asks for something that is not modelled.
        """
        self.raise_failure()
        if self._ours is None:
            raise BrokenPipeError("the broker has closed the connection")
        self._receive(self, data)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what has gone wrong in the broker, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def left(self) -> None:
        """Note that the client has gone."""
        if self._ours is not None:
            self._left(self)

    # -- for the broker -----------------------------------------------------------------------------------

    def to_client(self, data: bytes) -> None:
        """Send *data* to the client. One thread at a time may do that."""
        with self._lock:
            self._waiting.append(data)
            # What does not fit is sent by a thread, as soon as the client reads. That is for large messages.
            if not self._sends() and not self._pumping:
                self._pumping = True
                threading.Thread(target=self._pump, name="test-broker", daemon=True).start()

    def _sends(self) -> bool:
        """Send what fits; return whether that was all."""
        while self._waiting:
            data = self._waiting.popleft()
            try:
                sent = len(data) if self._ours is None else self._ours.send(data, _AT_ONCE)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The client has closed its side.
                sent = len(data)
            if sent < len(data):
                self._waiting.appendleft(data[sent:])
                return False
        return True

    def _pump(self) -> None:
        """Send what waits for room: the body of a thread."""
        while True:
            with self._lock:
                if self._ours is None or self._sends():
                    self._pumping = False
                    return
                descriptor = self._ours.fileno()
            # With a bound, because the descriptor may be closed meanwhile.
            select.select([], [descriptor], [], LONGEST_WAIT)

    def hang_up(self) -> None:
        """End the connection. What was sent can still be read."""
        with self._lock:
            ours, self._ours = self._ours, None
            if ours is not None:
                self._sends_last(ours)
                ours.close()

    def _sends_last(self, ours: Any) -> None:
        # A goodbye that does not fit is lost with the rest.
        while self._waiting:
            try:
                ours.send(self._waiting.popleft(), _AT_ONCE)
            except OSError:
                self._waiting.clear()

    def fail(self, error: BaseException) -> None:
        """End the connection, and have the client's next operation raise *error*."""
        self._failure = error
        self.hang_up()

    def forget(self) -> None:
        """In a forked child: close what was inherited, and tell nobody."""
        self._lock = threading.RLock()
        self._waiting.clear()
        self.hang_up()
