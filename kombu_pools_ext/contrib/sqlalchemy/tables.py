"""The tables of the outbox, for SQLAlchemy's ``create_all`` and for Alembic's autogenerate."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql, sqlite

from ...outbox.schema import INBOX, KEYS, LOCKS, LONGEST, OUTBOX

__all__ = ["add_tables", "metadata"]

# SQLite counts up by itself for an INTEGER alone.
_Id = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
# Keys that differ by case alone are different keys.
_Name = String(LONGEST).with_variant(
    mysql.VARCHAR(LONGEST, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Long = Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Body = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def add_tables(metadata: MetaData) -> None:
    """Add the tables of the outbox and of the inbox to *metadata*, so that Alembic makes them with the others."""
    Table(
        OUTBOX,
        metadata,
        Column("id", _Id, primary_key=True, autoincrement=True),
        Column("message_id", _Name, nullable=False),
        Column("alias", _Name, nullable=False),
        Column("order_key", _Name),
        Column("state", SmallInteger, nullable=False),
        Column("due_at", BigInteger, nullable=False),
        Column("token", String(32), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("ended_at", BigInteger),
        Column("exchange", _Name, nullable=False),
        Column("routing_key", _Name, nullable=False),
        Column("arguments", _Long, nullable=False),
        Column("body", _Body, nullable=False),
        Column("size", Integer, nullable=False),
        Column("reason", _Long, nullable=False),
        Index(f"{OUTBOX}_due", "alias", "state", "due_at", "id"),
        Index(KEYS, "alias", "order_key", "state", "id"),
        # Not the number of a row that was delivered and deleted: ids of a key only grow.
        sqlite_autoincrement=True,
    )
    Table(LOCKS, metadata, Column("slot", Integer, primary_key=True, autoincrement=False))
    Table(
        INBOX,
        metadata,
        Column("id", _Id, primary_key=True, autoincrement=True),
        Column("consumer", _Name, nullable=False),
        Column("message_id", _Name, nullable=False),
        Column("received_at", BigInteger, nullable=False),
        UniqueConstraint("consumer", "message_id", name=f"{INBOX}_once"),
        Index(f"{INBOX}_age", "received_at"),
        sqlite_autoincrement=True,
    )


#: The tables by themselves: ``metadata.create_all(engine)`` makes them.
metadata = MetaData()
add_tables(metadata)
