"""Broker connection pools for Flask: ``pools = KombuPools(app)``."""

from __future__ import annotations

from .errors import PoolsImproperlyConfigured
from .extension import AppPools, KombuPools
from .signals import connection_closed, connection_opened, pool_exhausted, pools_reset

__all__ = [
    "AppPools",
    "KombuPools",
    "PoolsImproperlyConfigured",
    "connection_closed",
    "connection_opened",
    "pool_exhausted",
    "pools_reset",
]
