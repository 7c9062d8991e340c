"""The connection of a process to the broker over which the processes of several machines exchange messages.

It belongs to no pool. What it makes at the broker exists as long as the connection, so nothing is left there, however
the process ends.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from ...broker.connection import OpenConnection
from ...broker.driver import ConnectionDriver
from ...engine import fork

__all__ = ["ANSWER_TIMEOUT", "GOODBYE_TIMEOUT", "PREFIX", "ConnectionLost", "Mailbox"]

#: The beginning of all names at the broker.
PREFIX = "kombu-pools"
#: Seconds for one answer of the broker, or to send one message.
ANSWER_TIMEOUT = 5.0
#: Seconds for the broker to close the connection properly.
GOODBYE_TIMEOUT = 0.25


class ConnectionLost(Exception):
    """The connection to the broker is lost."""


class Mailbox(ABC):
    """Sends and receives the messages of a project over one connection. Only one thread may use it."""

    #: The virtual host or database. A message signed for one is refused in any other.
    scope: str
    #: The address for answers to this process, once :meth:`await_answers` was called.
    address = ""
    #: Why the broker accepts no messages now; ``None`` if it does.
    blocked: str | None = None

    def __init__(self, driver: ConnectionDriver, connection: OpenConnection, project: str) -> None:
        self._driver = driver
        self._connection = connection
        self._project = project
        self._received: deque[Any] = deque()
        fork.register(self)
        try:
            with self._within(ANSWER_TIMEOUT):
                self._prepare()
        except BaseException:
            self.close(0.0)
            raise

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the connection, for listening or asking."""

    @abstractmethod
    def join(self) -> None:
        """Subscribe to what is sent to all processes of the project, so that the broker counts this one."""

    @abstractmethod
    def await_answers(self) -> None:
        """Subscribe to what is sent to :attr:`address`."""

    @abstractmethod
    def send_to_all(self, data: bytes) -> int | None:
        """Send to all processes that have joined; return how many the broker counts, ``None`` if it cannot."""

    def count_others(self, names: Collection[str]) -> int:
        """Return how many processes have joined for projects not in *names*; 0 if this broker cannot tell."""
        return 0

    @abstractmethod
    def send(self, address: str, data: bytes) -> None:
        """Send to one address."""

    def receive(self, until: float, wake: socket.socket | None = None) -> list[bytes]:
        """Wait for messages, and return those that have arrived.

        :param until: when to return without messages, in seconds of ``time.monotonic``.
        :param wake: a socket; return without messages as soon as it is readable.
        :raises Exception: if the connection is lost.
        """
        while not self._received:
            due = self._keep_alive()
            if self._received:
                # A message arrived while the heartbeat waited for an answer.
                break
            now = time.monotonic()
            pending = self._has_pending()
            left = 0.0 if pending else max(0.0, min(until, due) - now)
            ready = _wait_for_input(self._descriptor(), wake, left)
            if "wake" in ready:
                break
            if pending or "broker" in ready:
                with self._within(ANSWER_TIMEOUT):
                    self._read()
            if not self._received and now >= until:
                break
        messages = list(self._received)
        self._received.clear()
        return messages

    @abstractmethod
    def _has_pending(self) -> bool:
        """Return whether the library has read data already, so that the descriptor does not become readable."""

    @abstractmethod
    def _descriptor(self) -> int:
        """Return the descriptor of the socket that receives messages."""

    @abstractmethod
    def _read(self) -> None:
        """Read messages into ``self._received``. May wait shortly for the rest of one."""

    @abstractmethod
    def _keep_alive(self) -> float:
        """Send a heartbeat if it is due; return when the next one is, in seconds of ``time.monotonic``.

        :raises ConnectionLost: if the broker has sent nothing for too long.
        """

    def close(self, seconds: float) -> None:
        """Close the connection properly within *seconds*; with 0, disconnect at once."""
        with contextlib.suppress(Exception):
            self._driver.close(self._connection, broken=not seconds, timeout=seconds)

    def after_fork_in_child(self) -> None:
        """Close the descriptors without sending anything, because the parent uses the connection."""
        self._driver.abandon(self._connection)

    def _within(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return self._connection.within(time.monotonic() + seconds)


def _wait_for_input(broker: int, wake: socket.socket | None, seconds: float) -> set[str]:
    """Wait until *broker* or *wake* is readable, and return which. Other greenlets run meanwhile."""
    names = {broker: "broker"}
    if wake is not None:
        names[wake.fileno()] = "wake"
    if any(descriptor < 0 for descriptor in names):
        raise ConnectionLost("the connection was closed")
    # Looked up now, because gevent replaces poll() when it patches, and eventlet removes all but select().
    make_poller: Callable[[], Any] | None = getattr(select, "poll", None)
    if make_poller is None:  # pragma: no cover - eventlet, and platforms without poll()
        return {names[one] for one in select.select(list(names), [], [], seconds)[0]}
    poller = make_poller()
    for descriptor in names:
        poller.register(descriptor, select.POLLIN)
    # Rounded up, because a wait of 0 ms would spin.
    return {names[one] for one, _ in poller.poll(math.ceil(seconds * 1000))}
