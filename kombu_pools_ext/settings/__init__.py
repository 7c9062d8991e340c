"""The settings of pools, the same for Django, Flask and plain Python. All are checked before anything is opened.

``docs/reference/settings.md`` lists them, with the reasons for the defaults.
"""

from __future__ import annotations

from .parser import CHECKS, RetryPolicy, UseGlobalLimit, use_global_limit
from .pool_settings import CONFIRM_TIMEOUT, PoolSettings, parse_settings
from .problems import Problem, SettingsError

__all__ = [
    "CHECKS",
    "CONFIRM_TIMEOUT",
    "PoolSettings",
    "Problem",
    "RetryPolicy",
    "SettingsError",
    "UseGlobalLimit",
    "parse_settings",
    "use_global_limit",
]
