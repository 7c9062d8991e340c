"""A database of Django, as relays and commands use it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.utils import Error

from kombu_pools_ext.outbox import Cursor, Listener
from kombu_pools_ext.outbox.dbapi import listener_of

__all__ = ["DjangoDatabase", "own_connection"]


class DjangoDatabase:
    """The database that Django knows by *alias*, over the connection that the calling thread has to it.

    Within a transaction of the application, each of its transactions is a savepoint of that one.

    :raises ConnectionDoesNotExist: if ``DATABASES`` has no such alias.
    """

    def __init__(self, alias: str = DEFAULT_DB_ALIAS) -> None:
        self.alias = alias
        self._connection: Any = connections[alias]

    @property
    def vendor(self) -> str:
        """As Django calls it: MariaDB is ``"mysql"``."""
        vendor: str = self._connection.vendor
        return vendor

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Django's errors, and the driver's, which the listening connection raises."""
        return (Error, self._connection.Database.Error)

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Begin a transaction; commit it at the end of the block."""
        connection = connections[self.alias]
        if connection.errors_occurred and not connection.in_atomic_block:
            # It may be lost. If so, the next statement opens another.
            connection.close_if_unusable_or_obsolete()
        with transaction.atomic(using=self.alias), connection.cursor() as cursor:
            yield cast("Cursor", cursor)

    def listen(self, channel: str) -> Listener | None:
        """Hear the notifications of *channel*, over a connection of its own; ``None`` but for PostgreSQL.

        Any thread may call it.
        """
        if self.vendor != "postgresql":
            return None
        own = _copy_of(self._connection)
        own.connect()
        return listener_of(own.connection, channel)

    def close(self) -> None:
        """Close the connection. The next transaction opens one."""
        connection = connections[self.alias]
        if not connection.in_atomic_block:
            connection.close()


@contextmanager
def own_connection(alias: str = DEFAULT_DB_ALIAS) -> Iterator[DjangoDatabase]:
    """Within the block the calling thread has a connection to *alias* that suits a relay, in place of its usual one.

    It stays open, commits by itself, and is at READ COMMITTED, whatever ``DATABASES`` says. A database in memory, and
    one within a transaction, as in tests, stay what they are.

    :raises ConnectionDoesNotExist: if ``DATABASES`` has no such alias.
    """
    usual: Any = connections[alias]
    if usual.in_atomic_block or _is_in_memory(usual):
        yield DjangoDatabase(alias)
        return
    connections[alias] = own = _copy_of(usual)
    try:
        yield DjangoDatabase(alias)
    finally:
        own.close()
        connections[alias] = usual


def _is_in_memory(connection: Any) -> bool:
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())


def _copy_of(connection: Any) -> Any:
    """Return a connection that is not open yet, with the settings that a relay needs."""
    own = connection.copy()
    # With DEBUG Django keeps thousands of statements, and these have messages in them.
    own.queries_log = deque(maxlen=0)
    options = own.settings_dict["OPTIONS"] = dict(own.settings_dict["OPTIONS"])
    # A pool of Django's would hand out connections with the usual settings.
    options.pop("pool", None)
    if own.vendor == "mysql":
        options["isolation_level"] = "read committed"
    elif own.vendor == "postgresql":
        options["isolation_level"] = _read_committed()
    own.settings_dict.update(
        AUTOCOMMIT=True, ATOMIC_REQUESTS=False, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=False
    )
    return own


def _read_committed() -> Any:
    # Only where psycopg is installed.
    from django.db.backends.postgresql.psycopg_any import IsolationLevel

    return IsolationLevel.READ_COMMITTED
