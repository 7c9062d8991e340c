"""A pool of anything: it knows neither kombu nor a broker.

:mod:`~kombu_pools_ext.engine.pool` is the state machine, ``docs/explanation/engine.md`` its description.
"""

from __future__ import annotations

from . import shutdown as shutdown
from .errors import ErrorFamily
from .interfaces import Driver, Listener
from .lease import Gate, Lease, Share
from .options import PoolOptions
from .pool import Pool

__all__ = ["Driver", "ErrorFamily", "Gate", "Lease", "Listener", "Pool", "PoolOptions", "Share"]
