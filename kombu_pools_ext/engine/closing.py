"""Saying goodbye to several items at once."""

from __future__ import annotations

import time
from typing import Any, Protocol

from .interfaces import Driver
from .lease import Entry
from .reports import Reports

__all__ = ["TOGETHER", "Closes", "close_together"]

#: Seconds for the goodbyes of one round, or of the process, however many and however silent the peers.
TOGETHER = 1.0


class Closes(Protocol):
    """A pool, as far as it closes what it has."""

    @property
    def driver(self) -> Driver[Any]:
        """Says the goodbyes."""
        ...

    @property
    def reports(self) -> Reports:
        """Is told what failed."""
        ...

    def close_entry(self, entry: Entry[Any], reason: str, timeout: float | None = None) -> None:
        """Close *entry*, with at most *timeout* seconds for its goodbye."""
        ...


def close_together(closing: list[tuple[Closes, Entry[Any], str]], deadline: float) -> None:
    """Close entries, each with a goodbye, all of them by *deadline* or little later.

    First every peer is told, then the answers are awaited: a silent peer takes no other one's goodbye away.

    :param deadline: of the real, monotonic clock.
    """
    for pool, entry, _ in closing:
        try:
            pool.driver.announce_close(entry.item)
        except Exception as error:
            pool.reports.failed("announcing the end", error)
    for pool, entry, reason in closing:
        left = deadline - time.monotonic()
        pool.close_entry(entry, reason if left > 0 else "broken", timeout=max(left, 0.0))
