"""PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ..database import Cursor
from ..schema import CHANNEL, OUTBOX
from .dialect import SILENCE, Dialect

__all__ = ["PostgreSQL"]


class PostgreSQL(Dialect):
    """PostgreSQL 12 and newer."""

    # Not clock_timestamp(): it may change within a statement, so no index can serve a comparison with it.
    now = "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS bigint)"
    # Notifications of one transaction that are the same become one.
    notifying = f" RETURNING pg_notify('{CHANNEL}', '')"

    def begin_as_relay(self, cursor: Cursor) -> None:
        """Have the transaction end if its client falls silent."""
        # For this transaction alone, because a pgbouncer gives the session to others.
        cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{SILENCE}s'")

    def rows_of_key(
        self, columns: str, alias: str, key: str, state: int, where: str, most: int
    ) -> str:
        """Order by the state as well, as the index does. It is compared so that it does not count as constant."""
        return (
            f"SELECT {columns} FROM {OUTBOX} k WHERE k.alias = {alias} AND k.order_key = {key} "
            f"AND k.state BETWEEN {state:d} AND {state:d} AND {where} ORDER BY k.state, k.id LIMIT {most}"
        )

    def lock_keys(self, cursor: Cursor, keys: Iterable[tuple[str, str]]) -> None:
        """Take an advisory lock for each key, which ends with the transaction."""
        # In one order, so that two transactions that write several keys at once do not wait for each other.
        for number in sorted({_number(alias, key) for alias, key in keys}):
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number])
            cursor.fetchall()


def _number(alias: str, key: str) -> int:
    """A number of 64 bits for a key: that of an advisory lock."""
    octets = hashlib.blake2b(f"{alias}\0{key}".encode(), digest_size=8, person=b"kombu-pools-key")
    return int.from_bytes(octets.digest(), "big", signed=True)
