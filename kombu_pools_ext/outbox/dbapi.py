"""An outbox's database over a driver of the DB-API (PEP 249): psycopg, psycopg2, PyMySQL, mysqlclient, sqlite3."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .database import Cursor, Listener

__all__ = ["DbApiDatabase", "cursor_of", "listener_of"]


class DbApiDatabase:
    """The database that *connect* connects to.

    :param connect: opens a connection of the driver.
    :param vendor: ``"postgresql"``, ``"mysql"`` (MariaDB as well) or ``"sqlite"``.
    :param errors: the driver's ``Error``, and what else it raises for a lost connection.
    """

    def __init__(
        self, connect: Callable[[], Any], vendor: str, errors: tuple[type[Exception], ...]
    ) -> None:
        self._connect = connect
        self.vendor = vendor
        self.errors = errors
        self._connection: Any = None

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Begin a transaction, over a new connection if there is none; commit it at the end of the block."""
        if self._connection is None:
            self._connection = self._connect()
            self._prepare(self._connection)
        connection = self._connection
        cursor = connection.cursor()
        try:
            yield cursor_of(cursor, self.vendor)
            connection.commit()
        except BaseException:
            try:
                connection.rollback()
            except self.errors:
                # It is lost, and so is its transaction.
                self.close()
            raise
        finally:
            try:
                cursor.close()
            except self.errors:
                # Likewise.
                pass

    def _prepare(self, connection: Any) -> None:
        """Have the transactions of *connection* see what others have committed before each statement."""
        if self.vendor != "mysql":
            # It is PostgreSQL's default, and SQLite has one writer at a time.
            return
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.close()

    def listen(self, channel: str) -> Listener | None:
        """Hear the notifications of *channel*, over a connection of its own; ``None`` but for PostgreSQL."""
        return listener_of(self._connect(), channel) if self.vendor == "postgresql" else None

    def close(self) -> None:
        """Close the connection. The next transaction opens one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except self.errors:
            # It was lost already.
            pass


class _QuestionMarks:
    """A cursor of sqlite3, whose parameters' places are ``?``."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        return int(self._cursor.rowcount)

    @property
    def description(self) -> Any:
        return self._cursor.description

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        self._cursor.execute(statement.replace("%s", "?"), parameters)

    def fetchall(self) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = self._cursor.fetchall()
        return rows


def cursor_of(cursor: Any, vendor: str) -> Cursor:
    """Return *cursor*, that of a driver, as one whose parameters' places are ``%s``."""
    return _QuestionMarks(cursor) if vendor == "sqlite" else cursor


def listener_of(connection: Any, channel: str) -> Listener:
    """Return what hears the notifications of *channel* on *connection*, which it owns.

    :param connection: psycopg's or psycopg2's.
    """
    connection.rollback()
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute(f"LISTEN {channel}")
    cursor.close()
    return _Psycopg(connection) if callable(connection.notifies) else _Psycopg2(connection)


class _Psycopg:
    """Listens by psycopg."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def wait(self, seconds: float) -> bool:
        """Wait for a notification."""
        return any(True for _ in self._connection.notifies(timeout=seconds, stop_after=1))

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


class _Psycopg2:
    """Listens by psycopg2, whose notifications come with anything that is read."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def wait(self, seconds: float) -> bool:
        """Wait for a notification."""
        until = time.monotonic() + seconds
        while not self._connection.notifies:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._connection], [], [], left)[0]:
                return False
            self._connection.poll()
        self._connection.notifies.clear()
        return True

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
