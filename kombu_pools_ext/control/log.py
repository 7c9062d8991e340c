"""The log of control, and limits on how often the same warning is logged."""

from __future__ import annotations

import logging
import threading
import time

from ..engine import fork

__all__ = ["RateLimitedLog", "logger", "warn_once"]

logger = logging.getLogger("kombu_pools_ext.control")

#: Seconds between two warnings of one kind.
PERIOD = 60.0

#: The warnings of :func:`warn_once` that this process has logged.
_logged: set[str] = set()


class RateLimitedLog:
    """Logs at most one warning of each kind in a minute, for what others could cause a thousand times a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: When each kind was logged last, in seconds of ``time.monotonic``.
        self._logged_at: dict[str, float] = {}
        fork.register(self)

    def warning(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, unless one of its *kind* was logged within the last minute."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at.get(kind, float("-inf")) < PERIOD:
                return
            self._logged_at[kind] = now
        logger.warning(message, *arguments)

    def after_fork_in_child(self) -> None:
        """Replace the lock, which a thread of the parent may have held."""
        self._lock = threading.Lock()


def warn_once(message: str) -> None:
    """Log a warning, unless this process has logged the same one before."""
    if message not in _logged:
        _logged.add(message)
        logger.warning("control: %s", message)
