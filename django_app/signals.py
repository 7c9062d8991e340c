"""Signals about the pools of ``KOMBU_POOLS``.

A receiver is called in the thread that causes the event: that of a borrower, one that opens a connection, the
maintenance thread, or, for a fork, the only thread of the child. Django logs the errors of receivers, and they have no
other effect.
"""

from __future__ import annotations

import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.dispatch import Signal

from kombu_pools_ext import events

from .conf import DjangoPools, pools

__all__ = ["connection_closed", "connection_opened", "pool_exhausted", "pools_reset"]

#: A pool opened a connection. ``sender`` is the pool's class; arguments: ``using``, the alias, and ``pool``.
connection_opened = Signal()

#: A pool closed a connection. ``sender`` is the pool's class; arguments: ``using``, ``pool``, and ``reason``, a key of
#: :data:`kombu_pools_ext.stats.CLOSE_REASONS`.
connection_closed = Signal()

#: A caller was refused. ``sender`` is the pool's class; arguments: ``using``, ``pool``, and ``reason``:
#: ``"exhausted"``, ``"timeout"`` or ``"full"``.
pool_exhausted = Signal()

#: Pools of this process were reset. ``sender`` is :class:`~django_app.conf.DjangoPools`; argument: ``reason``:
#: ``"fork"`` (in the child), ``"settings"``, ``"command"`` or ``"api"``.
pools_reset = Signal()


def _forward(event: events.Event, signal: Signal) -> None:
    """Send *signal* for each *event* about a pool of ``KOMBU_POOLS``, once for each alias of the pool."""

    def send(pool: Any, **what: Any) -> None:
        if not signal.receivers:
            return
        try:
            aliases = pools.aliases_of(pool)
        except ImproperlyConfigured:
            # The settings have become wrong, so no alias is known.
            return
        for using in aliases:
            signal.send_robust(type(pool), using=using, pool=pool, **what)

    event.connect(send)


def _forward_reset(reason: str) -> None:
    if reason == "fork":
        # Another thread of the parent may have held these locks, which nobody would release in the child.
        for signal in (connection_opened, connection_closed, pool_exhausted, pools_reset):
            signal.lock = threading.Lock()
    pools_reset.send_robust(DjangoPools, reason=reason)


_forward(events.connection_opened, connection_opened)
_forward(events.connection_closed, connection_closed)
_forward(events.pool_exhausted, pool_exhausted)
events.pools_reset.connect(_forward_reset)
