"""How two processes of a machine talk: each proves that it has the key, then JSON, all of it bounded in size and time.

The framing and the challenge are those of :mod:`multiprocessing.connection`, whose own connections wait without end
for whoever is slow.
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
    "Stranger",
    "Stream",
    "check_peer",
    "peer_pid",
    "prove",
]

#: Bytes of a request: 200 names of 255 characters.
LARGEST_REQUEST = 64 * 1024
#: Bytes of an answer: the status of some 7,000 pools.
LARGEST_ANSWER = 4 * 1024 * 1024
#: Bytes that are read at once.
CHUNK = 64 * 1024

_LENGTH = struct.Struct("!i")
_CREDENTIALS = struct.Struct("3i")


class Stranger(ControlError):
    """Whoever is at the other end has no business here: another user, a wrong key, garbage."""


class Stream:
    """Messages over a connected socket, every one of them by the deadline.

    :param sock: is the stream's from now on.
    :param deadline: in seconds of ``time.monotonic``.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline

    def _await(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is up")
        self.sock.settimeout(left)

    def send_bytes(self, data: bytes) -> None:
        """Send one message.

        :raises OSError: if it cannot be sent; a ``TimeoutError`` if not by the deadline.
        """
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            # Not sendall(): its time-out begins anew with each piece under gevent.
            self._await()
            view = view[self.sock.send(view) :]

    def recv_bytes(self, maxlength: int) -> bytes:
        """Receive one message.

        :param maxlength: its most bytes.
        :raises EOFError: if the other end hung up before it, or in the middle.
        :raises Stranger: if it is larger.
        :raises OSError: if it cannot be received; a ``TimeoutError`` if not by the deadline.
        """
        [size] = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 <= size <= maxlength:
            raise Stranger(f"a message of {size} bytes, where at most {maxlength} are taken")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._await()
            piece = self.sock.recv(min(size - len(data), CHUNK))
            if not piece:
                raise EOFError("the other end hung up")
            data += piece
        return bytes(data)

    def send(self, what: Any) -> None:
        """Send plain data."""
        self.send_bytes(encode(what))

    def receive(self, maxlength: int) -> Any:
        """Receive plain data, of at most *maxlength* bytes.

        :raises Stranger: if it is none.
        """
        data = self.recv_bytes(maxlength)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Stranger(f"what came is no JSON: {error}") from error

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def encode(what: Any) -> bytes:
    """Plain data as bytes."""
    return json.dumps(what, separators=(",", ":")).encode()


def prove(stream: Stream, key: bytes, *, asking: bool) -> None:
    """Prove to the other end that we have *key*, and have it prove it.

    :param asking: whether this end is the one that asks: it proves first.
    :raises Stranger: if the other end has not, or speaks something else.
    :raises EOFError, OSError: if it hangs up, or is slow.
    """
    # One for each direction: what one end says is no answer for the other.
    asker, listener = (hmac.digest(key, one, "sha256") for one in (b"asker", b"listener"))
    try:
        if asking:
            answer_challenge(stream, asker)  # type: ignore[arg-type]  # the two methods are all that it uses
            deliver_challenge(stream, listener)  # type: ignore[arg-type]
        else:
            deliver_challenge(stream, asker)  # type: ignore[arg-type]
            answer_challenge(stream, listener)  # type: ignore[arg-type]
    except (AuthenticationError, AssertionError, ValueError) as error:
        # Python 3.11 asserts what the other end says. The error may quote it, which is nobody's to print.
        raise Stranger("it does not prove that it has the project's key") from error


def _credentials(sock: socket.socket) -> tuple[int, int] | None:
    """Number and user of the process at the other end; ``None`` where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # pragma: no cover - not Linux: the directory and the key are what protects
        return None
    pid, user, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    )
    return pid, user


def check_peer(sock: socket.socket) -> None:
    """:raises Stranger: if the process at the other end is neither this user's nor root's."""
    found = _credentials(sock)
    if found is not None and found[1] not in (os.geteuid(), 0):
        raise Stranger(f"it is a process of user {found[1]}")


def peer_pid(sock: socket.socket) -> int | None:
    """The process that listens, or connected, at the other end; ``None`` where that cannot be told.

    It may be in a container that is not to be looked into from here.
    """
    found = _credentials(sock)
    return found[0] or None if found is not None else None
