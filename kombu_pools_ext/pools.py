"""All names of :mod:`kombu.pools`, with the same signatures: code that uses it only has to change the import.

::

    from kombu_pools_ext import pools

    with pools.producers["amqp://localhost//"].acquire(timeout=5) as producer:
        producer.publish({"id": 1}, exchange="orders", routing_key="created")
"""

from __future__ import annotations

from kombu.connection import ChannelPool

from .broker.connections import ConnectionPool
from .broker.groups import (
    Connections,
    PoolGroup,
    Producers,
    connections,
    get_limit,
    producers,
    register_group,
    reset,
    set_limit,
    use_global_limit,
)
from .broker.producers import ProducerPool

__all__ = [
    "ChannelPool",
    "ConnectionPool",
    "Connections",
    "PoolGroup",
    "ProducerPool",
    "Producers",
    "connections",
    "get_limit",
    "producers",
    "register_group",
    "reset",
    "set_limit",
    "use_global_limit",
]
