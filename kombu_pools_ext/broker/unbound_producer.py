"""A producer without a channel for each pool, which serializes as the producers of the pool do."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["unbound_producer"]

_producers: MutableMapping[Any, Any] = WeakKeyDictionary()


def unbound_producer(pool: Any) -> Any:
    """Return a producer without a channel that has the serializer and compression of *pool*."""
    producer = _producers.get(pool)
    if producer is None:
        producer = _producers[pool] = pool.Producer(None)
    return producer
