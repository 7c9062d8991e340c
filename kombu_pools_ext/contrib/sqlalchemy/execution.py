"""An SQLAlchemy connection as the outbox's cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult

from ...outbox.dialects import dialect_of

__all__ = ["Execution", "vendor_of"]


def vendor_of(name: str) -> str:
    """Return the outbox's name for SQLAlchemy's dialect.

    :raises ValueError: if the outbox does not know the database.
    """
    dialect_of(name)
    return "mysql" if name == "mariadb" else name


class Execution:
    """Carries out statements in the transaction of *connection*.

    A cursor of the driver cannot be used in its place: SQLAlchemy would not know that the transaction has begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._marks = connection.dialect.paramstyle
        self._result: CursorResult[Any] | None = None

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed."""
        return 0 if self._result is None else self._result.rowcount

    @property
    def description(self) -> Sequence[Sequence[Any]]:
        """A sequence for each column of the last result, that begins with its name."""
        return () if self._result is None else [(name,) for name in self._result.keys()]  # noqa: SIM118

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        """Carry out *statement*."""
        if self._marks == "qmark":
            statement = statement.replace("%s", "?")
        given = tuple(parameters)
        self._result = self._connection.exec_driver_sql(statement, given or None)

    def fetchall(self) -> Sequence[Sequence[Any]]:
        """Return all rows that the last statement found."""
        if self._result is None:
            return ()
        return [tuple(row) for row in self._result.fetchall()]
