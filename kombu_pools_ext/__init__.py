"""Pools of broker connections and producers for kombu."""

from __future__ import annotations

from . import errors, events, pools
from .aliases import AliasedPools, Pools, configure
from .broker.batch import Batch
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
from .broker.leased_connection import LeasedConnection
from .broker.leased_producer import LeasedProducer
from .broker.producers import ProducerPool
from .broker.publish_keywords import PublishKeywords
from .engine import PoolOptions
from .engine.stats import Drained
from .reloading import Reloaded
from .settings import PoolSettings, parse_settings
from .stats import PoolStats

__all__ = [
    "AliasedPools",
    "Batch",
    "ConnectionPool",
    "Connections",
    "Drained",
    "LeasedConnection",
    "LeasedProducer",
    "PoolGroup",
    "PoolOptions",
    "PoolSettings",
    "PoolStats",
    "Pools",
    "ProducerPool",
    "Producers",
    "PublishKeywords",
    "Reloaded",
    "configure",
    "connections",
    "errors",
    "events",
    "get_limit",
    "parse_settings",
    "pools",
    "producers",
    "register_group",
    "reset",
    "set_limit",
    "use_global_limit",
]

__version__ = "0.1.0"
