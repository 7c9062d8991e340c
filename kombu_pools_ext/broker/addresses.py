"""The addresses of one name: each is tried in turn, with its share of the time, until one answers."""

from __future__ import annotations

import socket
import time
from typing import Any

__all__ = ["CONNECT_TIMEOUT", "LOCAL_ADDRESS", "LOCAL_NAME", "SHORTEST", "Addresses"]

#: Seconds for a connection that names none, or 0: kombu's default.
CONNECT_TIMEOUT = 5.0
#: Seconds that a broker gets when there is no time left; 0 would mean that there is no bound.
SHORTEST = 0.001
#: kombu replaces the first by the second when it connects. No certificate is made out to the second.
LOCAL_NAME, LOCAL_ADDRESS = "localhost", "127.0.0.1"

#: Family, kind, protocol, canonical name and address, as ``getaddrinfo`` has them.
_Found = tuple[Any, Any, int, str, Any]


class Addresses:
    """What a name leads to, and how far that has been tried.

    What is left of the time is shared out among the addresses that are left, so that one that swallows packets, or
    accepts and says nothing, leaves some for the next.

    :param at_most: seconds for all of them, even if the connection's own time-out is longer.
    """

    def __init__(self, at_most: float | None = None) -> None:
        self._at_most = at_most
        #: Seconds for all of them.
        self.seconds = at_most or CONNECT_TIMEOUT
        self._until: float | None = None
        self._host = ""
        self._found: list[_Found] | None = None
        self._next = 0
        self._told: list[str] = []

    def begin(self, timeout: float | None) -> float:
        """Begin to count the time, at the first address.

        :param timeout: seconds, the connection's own.
        :returns: when all has to have ended, in seconds of ``time.monotonic``.
        """
        if self._until is None:
            seconds = timeout or CONNECT_TIMEOUT
            self.seconds = seconds if self._at_most is None else min(seconds, self._at_most)
            self._until = time.monotonic() + self.seconds
        return self._until

    def take(self, host: str, port: int) -> _Found:
        """The next address; the first one looks *host* up.

        :raises OSError: if there is none.
        """
        if self._found is None:
            self._host = host
            try:
                self._found = list(
                    socket.getaddrinfo(
                        host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, socket.SOL_TCP
                    )
                )
            except UnicodeError as error:
                raise socket.gaierror(
                    socket.EAI_NONAME, f"{host!r} cannot be a host's name"
                ) from error
        if self._next == len(self._found):
            raise OSError(f"{host!r} has no address")
        self._next += 1
        return self._found[self._next - 1]

    def share(self) -> float | None:
        """Seconds for the address that was taken last, where there are several."""
        if self._until is None or self._found is None or len(self._found) < 2:
            return None
        return (self._until - time.monotonic()) / (len(self._found) - self._next + 1)

    def failed(self, why: str) -> bool:
        """Note why the address that was taken last has failed; whether there is another one, and time for it."""
        found = self._found
        if not found or not self._next or self._until is None:
            return False
        self._told.append(f"{_written(found[self._next - 1][4])}: {why}")
        return self._next < len(found) and time.monotonic() < self._until

    @property
    def tried(self) -> str | None:
        """What each of them has ended with, where there are several."""
        if self._found is None or len(self._found) < 2:
            return None
        count = len(self._found)
        return f"of the {count} addresses of {self._host!r} were tried: {'; '.join(self._told)}"


def _written(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
