"""The producers that an application context holds: lent at the first use, given back at its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import current_app, g

from kombu_pools_ext import Pools

__all__ = ["ContextLender", "holds", "producer_of", "release_producers"]

logger = logging.getLogger("kombu_pools_ext.flask")

#: The one name in ``g``: a dict of producers by alias. Which contexts share a ``g`` is Flask's affair.
NAME = "_kombu_pools"


def holds(using: str) -> bool:
    """Whether the current context has a producer of the alias *using*, good or broken."""
    producer = getattr(g, NAME, {}).get(using)
    return producer is not None and not producer.released


def producer_of(pools: Pools, using: str, *, block: bool, timeout: float | None) -> Any:
    """The current context's producer of the alias *using*: the one it has if that is good, else one just lent."""
    held: dict[str, Any] | None = getattr(g, NAME, None)
    if held is None:
        held = {}
        setattr(g, NAME, held)
    producer = held.get(using)
    if producer is not None:
        if not producer.released and not producer.broken:
            return producer
        held.pop(using, None)
        producer.release()
    producer = pools.producers[using].acquire(block=block, timeout=timeout)
    # Threads that share a context all get the one that was first.
    first = held.setdefault(using, producer)
    if first is not producer:
        producer.release()
    return first


class ContextLender:
    """Lends the context's own producer, and does not take it back: the context does, at its end."""

    def __init__(self, pools: Pools, using: str) -> None:
        self._pools = pools
        self._using = using

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Any]:
        """As a producer pool's; another producer is lent only where the connection of the first one broke."""
        yield producer_of(self._pools, self._using, block=block, timeout=timeout)


def release_producers(error: BaseException | None) -> None:
    """Give back what the context holds; a connection that broke, or that *error* is about, is not lent again.

    Called by Flask at the end of a context. It never raises: the teardowns of others come after it.
    """
    held: dict[str, Any] = getattr(g, NAME, {})
    while held:
        using, producer = held.popitem()
        try:
            producer.__exit__(type(error) if error else None, error, None)
        except Exception:
            logger.exception(
                "app %r: the producer of %r was not given back", current_app.name, using
            )
