"""The protocol between two processes of a machine: mutual authentication, then JSON, with bounds on size and time.

Framing and authentication are those of :mod:`multiprocessing.connection`, but its own connections wait for a slow peer
without a time-out, so they are not used.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import answer_challenge, deliver_challenge
from typing import Any

from ..errors import ControlError

__all__ = [
    "LARGEST_ANSWER",
    "LARGEST_REQUEST",
    "Stream",
    "UntrustedPeer",
    "authenticate",
    "check_peer",
    "peer_pid",
]

#: The most bytes of a request: room for 200 names of 255 characters.
LARGEST_REQUEST = 64 * 1024
#: The most bytes of an answer: room for the status of some 7,000 pools.
LARGEST_ANSWER = 4 * 1024 * 1024
#: The most bytes of one read.
CHUNK = 64 * 1024

_LENGTH = struct.Struct("!i")
_CREDENTIALS = struct.Struct("3i")


class UntrustedPeer(ControlError):
    """The peer is not trusted: it belongs to another user, has another key, or does not follow the protocol."""


class Stream:
    """Sends and receives messages over a connected socket, all before a deadline.

    :param sock: the socket, which the stream closes.
    :param deadline: in seconds of ``time.monotonic``.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline

    def _set_timeout(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is up")
        self.sock.settimeout(left)

    def send_bytes(self, data: bytes) -> None:
        """Send one message.

        :raises OSError: if it cannot be sent; a ``TimeoutError`` at the deadline.
        """
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            # Not sendall(), because gevent's starts its time-out again with each part.
            self._set_timeout()
            view = view[self.sock.send(view) :]

    def recv_bytes(self, maxlength: int) -> bytes:
        """Receive one message.

        :param maxlength: the most bytes that it may have.
        :raises EOFError: if the peer disconnects before its end.
        :raises UntrustedPeer: if it is larger.
        :raises OSError: if it cannot be received; a ``TimeoutError`` at the deadline.
        """
        [size] = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
        if not 0 <= size <= maxlength:
            raise UntrustedPeer(
                f"it sends a message of {size} bytes; at most {maxlength} are allowed"
            )
        return self._receive_exactly(size)

    def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._set_timeout()
            piece = self.sock.recv(min(size - len(data), CHUNK))
            if not piece:
                raise EOFError("the peer closed the connection")
            data += piece
        return bytes(data)

    def send(self, value: Any) -> None:
        """Send plain data."""
        self.send_bytes(encode(value))

    def receive(self, maxlength: int) -> Any:
        """Receive plain data, of at most *maxlength* bytes.

        :raises UntrustedPeer: if the message is not valid JSON.
        """
        data = self.recv_bytes(maxlength)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UntrustedPeer(f"it sends what is not valid JSON: {error}") from error

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def encode(value: Any) -> bytes:
    """Return plain data as bytes of JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def authenticate(stream: Stream, key: bytes, *, is_client: bool) -> None:
    """Prove to the peer that this process has *key*, and check that the peer has it.

    :param is_client: whether this process sends the request. The client proves first.
    :raises UntrustedPeer: if the peer does not have the key, or does not follow the protocol.
    :raises EOFError, OSError: if the peer disconnects, or is slow.
    """
    # Each direction has its own key, so that a peer cannot send our own answer back to us.
    client_key, server_key = (hmac.digest(key, one, "sha256") for one in (b"asker", b"listener"))
    try:
        if is_client:
            answer_challenge(stream, client_key)  # type: ignore[arg-type]  # the two methods are all that it uses
            deliver_challenge(stream, server_key)  # type: ignore[arg-type]
        else:
            deliver_challenge(stream, client_key)  # type: ignore[arg-type]
            answer_challenge(stream, server_key)  # type: ignore[arg-type]
    except (AuthenticationError, AssertionError, ValueError) as error:
        # Python 3.11 raises an AssertionError here, whose text may quote what the peer sent. It is not shown.
        raise UntrustedPeer("it does not prove that it has the project's key") from error


def _peer_credentials(sock: socket.socket) -> tuple[int, int] | None:
    """Return the number and user of the peer's process; ``None`` if the system does not tell them."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # pragma: no cover - not Linux: the directory and the key protect
        return None
    pid, user, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    )
    return pid, user


def check_peer(sock: socket.socket) -> None:
    """Check that the peer's process belongs to this user or to root.

    :raises UntrustedPeer: if it does not.
    """
    found = _peer_credentials(sock)
    if found is not None and found[1] not in (os.geteuid(), 0):
        raise UntrustedPeer(f"it is a process of user {found[1]}")


def peer_pid(sock: socket.socket) -> int | None:
    """Return the number of the peer's process; ``None`` if it is unknown, as it may be for one in another container."""
    found = _peer_credentials(sock)
    return found[0] or None if found is not None else None
