"""What a pool tells of itself: its events to the listener, and what went wrong to the log."""

from __future__ import annotations

import logging
from typing import Any

from .interfaces import Listener
from .lease import Borrower

__all__ = ["Reports"]

logger = logging.getLogger("kombu_pools_ext")


class Reports:
    """Tells the listener and the log; never called with the pool's lock held.

    :param name: of the pool.
    """

    __slots__ = ("_name", "listener")

    def __init__(self, name: str, listener: Listener | None) -> None:
        self._name = name
        self.listener = listener

    def tell(self, event: str, *args: Any) -> None:
        """Tell the listener; its exceptions are logged."""
        if self.listener is None:
            return
        try:
            getattr(self.listener, event)(*args)
        except Exception:
            logger.exception("pool %r: a listener failed at %r", self._name, event)

    def dropped(self, borrower: Borrower) -> None:
        """Warn that a lease was collected without a release."""
        logger.warning(
            "pool %r: a lease was dropped without a release, its connection is closed; borrowed at %s",
            self._name,
            borrower.details(),
        )

    def leaks(self, overdue: list[tuple[Borrower | None, float]]) -> None:
        """Warn of leases that are held for too long: who borrowed, and how many seconds ago."""
        for borrower, seconds in overdue:
            logger.warning(
                "pool %r: a lease has been held for %.1f s (LEAK_AFTER); borrowed at %s",
                self._name,
                seconds,
                borrower.details() if borrower is not None else "an unknown place",
            )

    def outage_begins(self, error: Exception, *, may_pass: bool) -> None:
        """Warn that nothing can be opened."""
        logger.warning(
            "pool %r: cannot open a connection%s: %r",
            self._name,
            ", trying again" if may_pass else "",
            error,
        )

    def outage_ends(self, seconds: float) -> None:
        """Log, as a warning too, that something could be opened again."""
        logger.warning("pool %r: connected again, after %.3g s", self._name, seconds)

    def failed(self, what: str, error: Exception) -> None:
        """Log, at DEBUG, that a call of the driver failed on which nothing depends."""
        logger.debug("pool %r: %s failed: %r", self._name, what, error)
