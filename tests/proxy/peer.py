"""A server that says what a test wants it to say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

__all__ = ["Peer"]

#: Seconds in which the thread of a peer that is told to end does so.
EVENTUALLY = 30.0


class Peer:
    """Listens on a port of 127.0.0.1, and serves each connection in a thread of its own.

    :param serve: gets the connected socket; when it returns or raises an OSError, the connection is closed.
    """

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        #: Connections that came.
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="peer", daemon=True)
        self._stopped = False

    @classmethod
    def saying(cls, first: bytes, then: bytes = b"", *, closing: bool = False) -> Peer:
        """Says *first* to whoever comes, and *then* whenever it hears something; or closes after it."""

        def serve(sock: socket.socket) -> None:
            sock.sendall(first)
            while sock.recv(65536):
                sock.sendall(then)
                if closing:
                    return

        return cls(serve)

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        # A call that waits in accept() does not notice close().
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass
        # Before what is open is ended: it may just be opening one more.
        self._acceptor.join(EVENTUALLY)
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(EVENTUALLY)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._stopped:
                sock.close()
                return
            self.accepted += 1
            self._open.add(sock)
            thread = threading.Thread(target=self._run, args=(sock,), name="peer", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._serve(sock)
        self._open.discard(sock)
