"""The messages that one ``bulk()`` has collected."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from kombu_pools_ext.prepared import PreparedMessage

__all__ = ["Collected"]


class Collected:
    """Messages, with the savepoints that were open when each was added.

    :param connection: Django's connection to the database of the messages.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._is_in_transaction: bool = connection.in_atomic_block
        self._messages: list[tuple[PreparedMessage, str | None, _Savepoints | None]] = []
        self._last: _Savepoints | None = None

    def add(self, message: PreparedMessage, key: str | None) -> bool:
        """Collect *message*; return whether it may wait for the end of the block."""
        connection = self._connection
        if connection.in_atomic_block != self._is_in_transaction:
            # Of a transaction that may be committed before.
            return False
        savepoints = None
        if connection.in_atomic_block:
            ids = tuple(connection.savepoint_ids)
            savepoints = self._last
            if savepoints is None or savepoints.ids != ids:
                savepoints = self._last = _Savepoints(ids)
                # Django drops it with the savepoints that are open now.
                transaction.on_commit(savepoints.committed, using=connection.alias)
        self._messages.append((message, key, savepoints))
        return True

    def survivors(self) -> list[tuple[PreparedMessage, str | None]]:
        """Return the messages that were not rolled back with a savepoint, in their order."""
        kept = {
            id(getattr(callback[1], "__self__", None))
            for callback in self._connection.run_on_commit
        }
        return [
            (message, key)
            for message, key, savepoints in self._messages
            if savepoints is None or id(savepoints) in kept
        ]


class _Savepoints:
    """The savepoints that were open together, outermost first."""

    def __init__(self, ids: tuple[Any, ...]) -> None:
        self.ids = ids

    def committed(self) -> None:
        """Nothing: it is there to be looked for."""
