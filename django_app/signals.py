"""Signals about the pools of ``KOMBU_POOLS``.

A receiver is called in the thread in which the thing happened: a borrower's, one that opens connections, the
maintenance thread's, or, for a fork, the child's only one. One that raises is logged, by Django, and breaks nothing.
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
    """Send *signal* when *event*, which is about one pool, concerns a pool of ours: once for each of its aliases."""

    def send(pool: Any, **what: Any) -> None:
        if not signal.receivers:
            return
        try:
            aliases = pools.aliases_of(pool)
        except ImproperlyConfigured:
            # A pool of the settings before: the present ones name none.
            return
        for using in aliases:
            signal.send_robust(type(pool), using=using, pool=pool, **what)

    event.connect(send)


def _forward_reset(reason: str) -> None:
    if reason == "fork":
        # In the parent, another thread may have been sending, and hold the locks for ever here.
        for signal in (connection_opened, connection_closed, pool_exhausted, pools_reset):
            signal.lock = threading.Lock()
    pools_reset.send_robust(DjangoPools, reason=reason)


_forward(events.connection_opened, connection_opened)
_forward(events.connection_closed, connection_closed)
_forward(events.pool_exhausted, pool_exhausted)
events.pools_reset.connect(_forward_reset)
