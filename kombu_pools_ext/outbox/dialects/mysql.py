"""MySQL and MariaDB."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from ..database import Cursor
from ..schema import KEYS, LOCKS, OUTBOX, SLOTS
from .dialect import SILENCE, Dialect

__all__ = ["MySQL"]


class MySQL(Dialect):
    """MySQL 8.0 and newer, MariaDB 10.6 and newer: the first that have SKIP LOCKED."""

    # Not UNIX_TIMESTAMP(): it takes the session's time zone, in which an hour of each year comes twice.
    now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
    insert_ignore = "INSERT IGNORE"
    on_conflict = ""
    # Its binary collations pad texts, and those that do not have one name in MySQL and another in MariaDB.
    tells_spaces = False

    def begin_as_relay(self, cursor: Cursor) -> None:
        """On MariaDB, have the connection's transactions end if its client falls silent. MySQL has no such limit."""
        # What stands in /*M! */ is a comment to MySQL.
        cursor.execute(
            f"SET @kombu_pools = 1 /*M!100300 , SESSION idle_transaction_timeout = {SILENCE} */"
        )

    def rows_of_key(
        self, columns: str, alias: str, key: str, state: int, where: str, most: int
    ) -> str:
        """Name the index."""
        return (
            f"SELECT {columns} FROM {OUTBOX} k FORCE INDEX ({KEYS}) WHERE k.alias = {alias} "
            f"AND k.order_key = {key} AND k.state = {state:d} AND {where} ORDER BY k.id LIMIT {most}"
        )

    def lock_keys(self, cursor: Cursor, keys: Iterable[tuple[str, str]]) -> None:
        """Lock a row for each key. Its locks by name (GET_LOCK) would outlast the transaction."""
        slots = sorted({zlib.crc32(f"{alias}\0{key}".encode()) % SLOTS for alias, key in keys})
        for slot in slots:
            # An UPDATE that changes nothing locks the row, too, and the row need not be there before.
            cursor.execute(
                f"INSERT INTO {LOCKS} (slot) VALUES (%s) ON DUPLICATE KEY UPDATE slot = slot",
                [slot],
            )
