"""Where processes of several machines meet: what a broker has to offer for that, whichever it is.

A mailbox has one connection to the broker, which belongs to no pool and is counted by none. What it makes there lives
as long as that connection: nothing is left behind, however the process ends.
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
from dataclasses import replace
from typing import Any

from ..broker.credentials import Credentials
from ..broker.driver import ConnectionDriver, OpenConnection
from ..engine import fork
from ..settings import PoolSettings

__all__ = ["PREFIX", "Lost", "Mailbox", "open_mailbox", "supported"]

#: What all names at the broker begin with.
PREFIX = "kombu-pools"
#: What the broker's own tools show for the connection.
CONNECTION_NAME = f"{PREFIX}-control"
#: Seconds that a broker gets for one answer, or to take one message.
ANSWER = 5.0


class Lost(Exception):
    """The connection is of no use any more."""


def supported(settings: PoolSettings) -> str | None:
    """Why commands cannot be carried by this broker; ``None`` if they can."""
    if settings._implementation in ("pyamqp", "redis"):
        return None
    return (
        f"the transport {settings.transport!r} cannot carry commands to other machines: "
        "name the alias of a pool on RabbitMQ or Redis"
    )


def open_mailbox(settings: PoolSettings, project: str, seconds: float | None = None) -> Mailbox:
    """Connect to the broker of *settings*; a connection of its own, with the pool's credentials and TLS.

    :param project: its name.
    :param seconds: for connecting, at most.
    :raises Exception: the transport's, if it cannot be reached.
    """
    own = replace(
        settings,
        confirm=False,
        connection_name=CONNECTION_NAME,
        connect_timeout=settings.connect_timeout
        if seconds is None
        else min(settings.connect_timeout, seconds),
    )
    # They import this module.
    from .mailbox_rabbitmq import RabbitMailbox
    from .mailbox_redis import RedisMailbox

    driver = ConnectionDriver(own.connection, credentials=Credentials.of(own))
    connection = driver.open()
    if settings.is_amqp:
        return RabbitMailbox(driver, connection, project)
    return RedisMailbox(driver, connection, project)


class Mailbox(ABC):
    """One connection's part in the exchange of a project's messages. For one thread."""

    #: What the place is called, the same for all that meet there.
    place: str
    #: Where answers to us go, once :meth:`await_answers` was called.
    address = ""
    #: Why the broker takes no messages for now, if it does not.
    blocked: str | None = None

    def __init__(self, driver: ConnectionDriver, connection: OpenConnection, project: str) -> None:
        self._driver = driver
        self._connection = connection
        self._project = project
        self._inbox: deque[Any] = deque()
        fork.register(self)
        try:
            with self._within(ANSWER):
                self._prepare()
        except BaseException:
            self.close(0.0)
            raise

    @abstractmethod
    def _prepare(self) -> None:
        """Make what both uses need."""

    @abstractmethod
    def join(self) -> None:
        """Receive what is sent to all, and be counted."""

    @abstractmethod
    def await_answers(self) -> None:
        """Receive what is sent to :attr:`address`."""

    @abstractmethod
    def send_to_all(self, data: bytes) -> int | None:
        """Send to all who have joined; how many they are, by the broker's count, or ``None`` where it has none."""

    def count_others(self, names: Collection[str]) -> int:
        """Return how many have joined for projects of other names than *names*; 0 if this broker cannot tell."""
        return 0

    @abstractmethod
    def send(self, address: str, data: bytes) -> None:
        """Send to one."""

    def receive(self, until: float, wake: socket.socket | None = None) -> list[bytes]:
        """What has come, as soon as something has; nothing, if nothing did.

        :param until: when to return with nothing, in seconds of ``time.monotonic``.
        :param wake: return with nothing when this can be read.
        :raises Exception: if the connection is lost.
        """
        while not self._inbox:
            due = self._keep_alive()
            if self._inbox:
                # It came in the place of an answer.
                break
            now = time.monotonic()
            pending = self._look()
            left = 0.0 if pending else max(0.0, min(until, due) - now)
            ready = _await(self._descriptor(), wake, left)
            if "wake" in ready:
                break
            if pending or "broker" in ready:
                with self._within(ANSWER):
                    self._read()
            if not self._inbox and now >= until:
                break
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    @abstractmethod
    def _look(self) -> bool:
        """Whether something can be read that the descriptor does not tell."""

    @abstractmethod
    def _descriptor(self) -> int:
        """Of the socket that messages come by."""

    @abstractmethod
    def _read(self) -> None:
        """Put what can be read into the inbox; may wait for the rest of it, shortly."""

    @abstractmethod
    def _keep_alive(self) -> float:
        """Say a word if it is time to; when it is next, in seconds of ``time.monotonic``.

        :raises Lost: if the peer has said nothing for too long.
        """

    def close(self, seconds: float) -> None:
        """Say goodbye, within so many seconds; with 0, hang up."""
        with contextlib.suppress(Exception):
            self._driver.close(self._connection, broken=not seconds, timeout=seconds)

    def after_fork_in_child(self) -> None:
        """Close the descriptors, and say nothing: the connection is the parent's."""
        self._driver.abandon(self._connection)

    def _within(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return self._connection.within(time.monotonic() + seconds)


def _await(broker: int, wake: socket.socket | None, seconds: float) -> set[str]:
    """Which of the two can be read, once one can; other greenlets run meanwhile."""
    names = {broker: "broker"}
    if wake is not None:
        names[wake.fileno()] = "wake"
    if any(descriptor < 0 for descriptor in names):
        raise Lost("the connection was closed")
    # Looked up now, as in broker.wire: gevent's while it is patched, and eventlet leaves only select().
    make_poller: Callable[[], Any] | None = getattr(select, "poll", None)
    if make_poller is None:  # pragma: no cover - eventlet, and platforms without poll()
        return {names[one] for one in select.select(list(names), [], [], seconds)[0]}
    poller = make_poller()
    for descriptor in names:
        poller.register(descriptor, select.POLLIN)
    # Rounded up: a wait of less than a millisecond is no reason to ask again and again.
    return {names[one] for one, _ in poller.poll(math.ceil(seconds * 1000))}
