"""Events about pools. Django's and Flask's signals are built on them.

A listener is called without any lock held, in the thread that causes the event: that of a borrower, one that opens a
connection, the maintenance thread, or, for a fork, the only thread of the child. Its exceptions are logged, and have no
other effect.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["Event", "connection_closed", "connection_opened", "pool_exhausted", "pools_reset"]

logger = logging.getLogger("kombu_pools_ext")

Listener = TypeVar("Listener", bound=Callable[..., Any])


class Event:
    """A list of listeners.

    :param name: used in the log if a listener fails.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # A list needs no lock, because its append and remove are atomic.
        self._listeners: list[Callable[..., Any]] = []

    def connect(self, listener: Listener) -> Listener:
        """Call *listener* with the keyword arguments of each event from now on. Connecting it twice has no effect."""
        if listener not in self._listeners:
            self._listeners.append(listener)
        return listener

    def disconnect(self, listener: Callable[..., Any]) -> None:
        """Stop calling *listener*. Does nothing if it is not connected."""
        with suppress(ValueError):
            self._listeners.remove(listener)

    def send(self, **what: Any) -> None:
        """Call all listeners."""
        for listener in tuple(self._listeners):
            self._call(listener, what)

    def _call(self, listener: Callable[..., Any], what: dict[str, Any]) -> None:
        try:
            listener(**what)
        except Exception:
            logger.exception("a listener to %s failed", self.name)

    def __repr__(self) -> str:
        return f"<Event {self.name}: {len(self._listeners)} listeners>"


class _Demand(Event):
    """An event that also reaches listeners that connect after it was sent."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._process: int | None = None

    def connect(self, listener: Listener) -> Listener:
        """As :meth:`Event.connect`. If the event was sent before, call *listener* at once, without arguments."""
        super().connect(listener)
        # Checked after connecting, so that an event sent at this moment reaches the listener once or twice.
        if self.was_sent:
            self._call(listener, {})
        return listener

    def send(self, **what: Any) -> None:
        """Call all listeners."""
        self._process = os.getpid()
        super().send(**what)

    @property
    def was_sent(self) -> bool:
        """Whether it was sent in this process. A forked child begins without it, because it has used no pool."""
        return self._process == os.getpid()


#: A pool opened a connection. Sent with ``pool``, the :class:`~kombu_pools_ext.ConnectionPool`.
connection_opened = Event("connection_opened")

#: A pool closed a connection. Sent with ``pool`` and ``reason``, a key of
#: :data:`kombu_pools_ext.stats.CLOSE_REASONS`.
connection_closed = Event("connection_closed")

#: A caller was refused. Sent with ``pool`` and ``reason``: ``"exhausted"``, ``"timeout"`` or ``"full"``.
pool_exhausted = Event("pool_exhausted")

#: Pools were reset. Sent with ``reason``: ``"fork"`` (in the child), ``"settings"``, ``"command"`` or ``"api"``.
pools_reset = Event("pools_reset")

# Not for applications. Sent with ``ids`` of messages and of Celery's tasks that have waited for a commit, and that are
# published now.
after_commit = Event("after_commit")

# Not for applications. Sent with ``pool`` when a pool is about to open a connection, or when a caller asks a suspended
# pool. Control begins to listen with it, so that a process whose pools are not used has no listener.
demand = _Demand("demand")
