"""SQLite."""

from __future__ import annotations

from ..database import Cursor
from ..schema import OUTBOX
from .dialect import Dialect

__all__ = ["SQLite"]


class SQLite(Dialect):
    """SQLite 3.31 and newer. It has one writer at a time, and so needs no other locks."""

    # To about a tenth of a millisecond: a day is 1.0 there, and a double has 53 bits.
    now = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
    skip_locked = ""

    def begin_to_write(self, cursor: Cursor) -> None:
        """Become the writer. A transaction that reads first, and writes then, fails if another has written between."""
        cursor.execute(f"UPDATE {OUTBOX} SET state = state WHERE id < 0")
