"""What happens to pools, for those who want to know: Django's and Flask's signals stand on these.

A listener is called outside every lock, in the thread in which the thing happened: a borrower's, an opener's, the
maintenance thread's, or, for a fork, the child's only one. Its exceptions are logged and break nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Event", "connection_closed", "connection_opened", "pool_exhausted", "pools_reset"]

logger = logging.getLogger("kombu_pools_ext")


class Event:
    """A list of listeners.

    :param name: stands in the log when a listener fails.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # A list, whose append and remove are atomic.
        self._listeners: list[Callable[..., Any]] = []

    def connect(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        """Call *listener* with the event's keyword arguments from now on; once, however often connected."""
        if listener not in self._listeners:
            self._listeners.append(listener)
        return listener

    def disconnect(self, listener: Callable[..., Any]) -> None:
        """Stop calling *listener*; unknown ones are ignored."""
        with suppress(ValueError):
            self._listeners.remove(listener)

    def send(self, **what: Any) -> None:
        """Tell every listener."""
        for listener in tuple(self._listeners):
            self._tell(listener, what)

    def _tell(self, listener: Callable[..., Any], what: dict[str, Any]) -> None:
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

    def connect(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        """As :meth:`Event.connect`; if it was sent before, *listener* is called at once, without arguments."""
        super().connect(listener)
        # Only now: an event that is sent at this moment reaches the listener once or twice, but not never.
        if self.was_sent:
            self._tell(listener, {})
        return listener

    def send(self, **what: Any) -> None:
        """Tell every listener."""
        self._process = os.getpid()
        super().send(**what)

    @property
    def was_sent(self) -> bool:
        """Whether it was sent in this process; a forked child has not used the pools that it inherited."""
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

# Not for applications, and in no list of signals: a pool is about to open a connection, or somebody asked one that is
# suspended. Sent with ``pool``; a process whose pools nobody has used never sends it. Control begins to listen with it.
demand = _Demand("demand")
