"""The database of an SQLAlchemy engine, for relays and commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...outbox import Cursor, Listener
from ...outbox.dbapi import listener_of
from .execution import Execution, vendor_of

__all__ = ["EngineDatabase"]


class EngineDatabase:
    """Where the outbox is, over the pool of *engine*.

    :param engine: SQLAlchemy's, of PostgreSQL, MySQL, MariaDB or SQLite.
    :raises ValueError: for another database.
    """

    def __init__(self, engine: Engine) -> None:
        self.vendor = vendor_of(engine.dialect.name)
        driver: Any = engine.dialect.dbapi
        #: SQLAlchemy's errors, and the driver's, which the listening connection raises.
        self.errors: tuple[type[Exception], ...] = (SQLAlchemyError, driver.Error)
        self._engine = (
            engine
            if self.vendor == "sqlite"
            else engine.execution_options(isolation_level="READ COMMITTED")
        )

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Begin a transaction on a connection of the engine's pool; commit it at the end of the block."""
        with self._engine.begin() as connection:
            yield Execution(connection)

    def listen(self, channel: str) -> Listener | None:
        """Hear the notifications of *channel*, over a connection that the pool never gets back."""
        if self.vendor != "postgresql":
            return None
        connection = self._engine.raw_connection()
        try:
            driver: Any = connection.driver_connection
            connection.detach()
        except DBAPIError:
            connection.invalidate()
            raise
        return listener_of(driver, channel)

    def close(self) -> None:
        """Drop the connections of the pool that nobody uses: one of them was lost."""
        self._engine.dispose()
