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

__all__ = ["close_dead_idle"]

logger = logging.getLogger("kombu_pools_ext")

#: Entries looked at, the warmest, which would be lent next: it is a borrower's time.
MOST = 32


def close_dead_idle(pool: Pool[Any], *, condemned: bool = False) -> None:
    """Close idle entries that are gone; the others, and those beyond :data:`MOST`, stay to be checked.

    :param condemned: close every entry that has yet to prove itself: one of them did not answer a check.
    """
    idle = list(pool.ledger.idle)
    if condemned:
        dead = [entry for entry in idle if entry.suspect]
    else:
        dead = [entry for entry in idle[-MOST:] if _is_gone(pool, entry)]
    if not dead:
        return
    # But for what somebody has borrowed or closed meanwhile: that borrower finds out.
    with pool.lock:
        dead = pool.ledger.retire_idle(dead)
    for entry in dead:
        pool.close_entry(entry, "dead")


def _is_gone(pool: Pool[Any], entry: Entry[Any]) -> bool:
    try:
        return pool.driver.is_gone(entry.item)
    except Exception as error:
        # Its check will tell.
        logger.debug("pool %r: a look at an idle item failed: %r", pool.name, error)
        return False
