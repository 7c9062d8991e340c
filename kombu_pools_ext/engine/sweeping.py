"""One was found dead: of the idle others, those that are visibly gone are closed with it.

A broker that restarts ends all connections. Else the borrower would be lent each of them, to check it, read from it and
give it back, before he had a new one opened.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lease import Entry
    from .pool import Pool

__all__ = ["sweep"]

logger = logging.getLogger("kombu_pools_ext")

#: Entries looked at, the warmest, which would be lent next: it is a borrower's time.
MOST = 32


def sweep(pool: Pool[Any]) -> None:
    """Close idle entries that are gone; the others, and those beyond :data:`MOST`, stay to be checked."""
    gone = [entry for entry in pool.ledger.idle[-MOST:] if _is_gone(pool, entry)]
    if not gone:
        return
    # But for what somebody has borrowed or closed meanwhile: it is his to find out.
    with pool.lock:
        gone = pool.ledger.retire_idle(gone)
    for entry in gone:
        pool.close_entry(entry, "dead")


def _is_gone(pool: Pool[Any], entry: Entry[Any]) -> bool:
    try:
        return pool.driver.is_gone(entry.item)
    except Exception as error:
        # Its check will tell.
        logger.debug("pool %r: a look at an idle item failed: %r", pool.name, error)
        return False
