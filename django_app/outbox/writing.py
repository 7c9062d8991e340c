"""Write messages as rows of the current transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from kombu_pools_ext.outbox import Cursor
from kombu_pools_ext.outbox import write as write_rows
from kombu_pools_ext.outbox.row import check_row
from kombu_pools_ext.prepared import PreparedMessage

from .collected import Collected
from .installed import check_installed

__all__ = ["bulk", "tasks_in", "write", "writer_for_tasks"]

#: The ``bulk()`` that is open on a connection, with those around it.
_open: WeakKeyDictionary[Any, list[Collected]] = WeakKeyDictionary()
_database_of_tasks: ContextVar[str | None] = ContextVar("kombu_pools_outbox_tasks", default=None)


def write(message: PreparedMessage, key: str | None = None, db: str | None = None) -> None:
    """Insert *message* into the outbox of database *db*, as part of the current transaction; else in one of its own.

    Within :func:`bulk` it is inserted at the end of that block.

    :param key: messages of an alias with the same key arrive in the order of their commits.
    :param db: the alias of the database; ``None`` means the default one.
    :raises TypeError, ValueError: for what no row can hold.
    :raises ImproperlyConfigured: if ``"django_app.outbox"`` is not installed.
    """
    check_installed()
    connection: Any = connections[db or DEFAULT_DB_ALIAS]
    around = _open.get(connection)
    if around:
        # At the call, and not at the end of the block.
        check_row(message, key)
    if not around or not around[-1].add(message, key):
        _insert(connection, [(message, key)])


@contextmanager
def bulk(db: str | None = None) -> Iterator[None]:
    """Within the block, collect the messages for the outbox of *db*; insert them together at its end.

    A thousand messages are one statement. They are part of the transaction that is open where the block is, or of one
    of their own. Messages of a transaction that begins within the block are not collected, because they have to be
    written before it ends. If a savepoint is rolled back within the block, its messages are dropped; if the block
    raises, all are.

    :param db: the alias of the database; ``None`` means the default one.
    :raises ImproperlyConfigured: if ``"django_app.outbox"`` is not installed.
    """
    check_installed()
    connection: Any = connections[db or DEFAULT_DB_ALIAS]
    around = _open.setdefault(connection, [])
    collected = Collected(connection)
    around.append(collected)
    try:
        yield
    finally:
        around.remove(collected)
    messages = collected.survivors()
    if around:
        messages = [one for one in messages if not around[-1].add(*one)]
    if messages:
        _insert(connection, messages)


@contextmanager
def tasks_in(db: str | None) -> Iterator[None]:
    """Within the block, tasks of Celery that go over an alias with ``OUTBOX`` become rows of database *db*.

    They do outside a transaction, too. Without this block, tasks within a transaction of the default database do.

    :param db: the alias of the database; ``None`` means the default one.
    """
    token = _database_of_tasks.set(db or DEFAULT_DB_ALIAS)
    try:
        yield
    finally:
        _database_of_tasks.reset(token)


def writer_for_tasks() -> Callable[[PreparedMessage], None] | None:
    """Return what writes the message of a task; ``None`` if it does not belong into an outbox."""
    db = _database_of_tasks.get()
    if db is None:
        default: Any = connections[DEFAULT_DB_ALIAS]
        if not default.in_atomic_block:
            return None
    return partial(write, db=db)


def _insert(connection: Any, messages: list[tuple[PreparedMessage, str | None]]) -> None:
    if connection.in_atomic_block:
        with connection.cursor() as cursor:
            write_rows(cast("Cursor", cursor), connection.vendor, messages)
    else:
        # The lock of a key has to last until the commit.
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            write_rows(cast("Cursor", cursor), connection.vendor, messages)
