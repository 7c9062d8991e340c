"""Blinker signals about the pools of an application.

The sender is the application. A receiver is called in the thread that causes the event, which may have no application
context. Its errors are logged.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

from kombu_pools_ext import events

__all__ = ["connection_closed", "connection_opened", "pool_exhausted", "pools_reset", "watch"]

logger = logging.getLogger("kombu_pools_ext.flask")

_namespace = Namespace()

#: A pool of the application opened a connection. Arguments: ``pool`` and ``using``, the alias.
connection_opened = _namespace.signal("connection-opened")

#: A pool of the application closed a connection. Arguments: ``pool``, ``using`` and ``reason``, one of
#: :data:`kombu_pools_ext.stats.CLOSE_REASONS`.
connection_closed = _namespace.signal("connection-closed")

#: A caller was refused. Arguments: ``pool``, ``using`` and ``reason``: ``"exhausted"``, ``"timeout"`` or ``"full"``.
pool_exhausted = _namespace.signal("pool-exhausted")

#: Pools of the process were reset. Sent to each application. Argument: ``reason``: ``"fork"`` (in the child),
#: ``"settings"``, ``"command"`` or ``"api"``.
pools_reset = _namespace.signal("pools-reset")

# Weak references, changed only by atomic steps, because an application may be collected at any moment.
_apps: set[weakref.ref[Flask]] = set()


def watch(app: Flask) -> None:
    """Send *app* the signals about its pools, as long as it exists."""
    _apps.add(weakref.ref(app, _apps.discard))


def _alive() -> list[Flask]:
    return [app for ref in tuple(_apps) if (app := ref()) is not None]


def _send(signal: NamedSignal, app: Flask, **what: Any) -> None:
    # Not signal.send(), with which a receiver that raises keeps the signal from the others.
    for receiver in () if signal.is_muted else signal.receivers_for(app):
        try:
            app.ensure_sync(receiver)(app, **what)
        except Exception:
            logger.exception("app %r: a receiver of %s failed", app.name, signal.name)


def _pass_on(event: events.Event, signal: NamedSignal) -> None:
    """Send *signal* for each *event* about a pool to the applications whose aliases name that pool."""

    def tell(*, pool: Any, **what: Any) -> None:
        if not signal.receivers:
            return
        for app in _alive():
            for using in app.extensions["kombu_pools"].aliases_of(pool):
                _send(signal, app, pool=pool, using=using, **what)

    event.connect(tell)


def _tell_reset(**what: Any) -> None:
    for app in _alive() if pools_reset.receivers else ():
        _send(pools_reset, app, **what)


_pass_on(events.connection_opened, connection_opened)
_pass_on(events.connection_closed, connection_closed)
_pass_on(events.pool_exhausted, pool_exhausted)
events.pools_reset.connect(_tell_reset)
