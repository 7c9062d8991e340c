"""What the tests of the outbox share: an outbox in a database of each vendor, and messages for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import pymysql
import sqlalchemy

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.sqlalchemy import metadata
from kombu_pools_ext.outbox import Outbox, write
from kombu_pools_ext.outbox.dbapi import DbApiDatabase
from kombu_pools_ext.outbox.schema import OUTBOX
from kombu_pools_ext.prepared import PreparedMessage, prepare
from tests.databases import Database

#: Nobody connects to it.
NOWHERE = "amqp://guest:guest@localhost:1//"


def errors_of(vendor: str) -> tuple[type[Exception], ...]:
    import psycopg

    return {
        "postgresql": (psycopg.Error,),
        "mysql": (pymysql.Error, OSError),
        "sqlite": (sqlite3.Error,),
    }[vendor]


def make_tables(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.sqlalchemy_url)
    metadata.create_all(engine)
    engine.dispose()


def own(database: Database) -> DbApiDatabase:
    """A connection of the driver to *database*, as a relay has it."""
    return DbApiDatabase(database.connect, database.vendor, errors_of(database.vendor))


def outbox_in(database: Database) -> Outbox:
    """Another connection to the outbox: what another relay, or a command, has."""
    return Outbox(own(database))


def message(
    pools: Pools, body: Any = 1, routing_key: str = "orders", **kwargs: Any
) -> PreparedMessage:
    return prepare(pools, body, routing_key, **kwargs)


def written(
    outbox: Outbox, messages: Sequence[PreparedMessage], key: str | None = None
) -> list[str]:
    """Write *messages* and commit; their ids."""
    with outbox.database.transaction() as cursor:
        write(cursor, outbox.database.vendor, [(one, key) for one in messages])
    return [one.message_id for one in messages]


def found(outbox: Outbox, *columns: str, where: str = "1 = 1") -> list[tuple[Any, ...]]:
    """The rows of the outbox, by their ids."""
    with outbox.database.transaction() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {OUTBOX} WHERE {where} ORDER BY id")
        return [tuple(row) for row in cursor.fetchall()]


def make_due(outbox: Outbox) -> None:
    """Let all time pass that a row waits: of leases and of pauses."""
    with outbox.database.transaction() as cursor:
        cursor.execute(f"UPDATE {OUTBOX} SET due_at = 0 WHERE state = 0")
