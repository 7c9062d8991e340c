"""The snapshot that ``pool.stats()`` returns."""

from __future__ import annotations

from .engine.stats import CLOSE_REASONS, PoolStats

__all__ = ["CLOSE_REASONS", "PoolStats"]
