"""Broker connections that you configure once and never think about again: pools on kombu."""

from __future__ import annotations

from . import errors, events, pools
from .aliases import AliasedPools, Pools, configure
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
from .settings import PoolSettings, parse_settings
from .stats import PoolStats

__all__ = [
    "AliasedPools",
    "ConnectionPool",
    "Connections",
    "PoolGroup",
    "PoolSettings",
    "PoolStats",
    "Pools",
    "ProducerPool",
    "Producers",
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
