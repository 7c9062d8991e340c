"""Messages in the transactions of SQLAlchemy's sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import sqlalchemy
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.sqlalchemy import EngineDatabase, claim, publish_on_commit
from kombu_pools_ext.outbox import Outbox, Relay, sweep_inbox
from kombu_pools_ext.outbox.schema import INBOX, OUTBOX
from tests.broker.common import PATIENCE, eventually
from tests.databases import Database
from tests.outbox.common import found
from tests.outbox.test_relay import bodies, running


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def engine(tables: Database) -> Iterator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(tables.sqlalchemy_url)
    if tables.vendor == "sqlite":
        # As SQLAlchemy's own pages on savepoints advise: the driver would not begin before the first change.
        sqlalchemy.event.listen(
            made, "connect", lambda one, _: setattr(one, "isolation_level", None)
        )
        sqlalchemy.event.listen(made, "begin", lambda one: one.exec_driver_sql("BEGIN"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def session(engine: sqlalchemy.Engine) -> Iterator[Session]:
    with Session(engine) as made:
        yield made


def publish(session: Any, pools: Pools, body: Any = 1, **kwargs: Any) -> str:
    return publish_on_commit(session, body, "orders", pools=pools, **{"outbox": True, **kwargs})


def test_a_message_is_committed_with_its_transaction(
    session: Session, outbox: Outbox, pools: Pools
) -> None:
    session.add(Order())
    message_id = publish(session, pools)
    assert session.scalar(sqlalchemy.text(f"SELECT COUNT(*) FROM {OUTBOX}")) == 0
    session.commit()
    assert found(outbox, "message_id") == [(message_id,)]
    session.commit()
    assert len(found(outbox, "id")) == 1


def test_a_message_that_is_rolled_back_is_not_written(
    session: Session, outbox: Outbox, pools: Pools
) -> None:
    publish(session, pools)
    session.rollback()
    session.commit()
    assert found(outbox, "id") == []


def test_a_savepoint_takes_its_messages_along(
    session: Session, outbox: Outbox, pools: Pools
) -> None:
    before = publish(session, pools)
    with session.begin_nested():
        kept = publish(session, pools)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            publish(session, pools)
            raise ZeroDivisionError
    lost = session.begin_nested()
    publish(session, pools)
    with session.begin_nested():
        publish(session, pools)
    lost.rollback()
    after = publish(session, pools)
    session.commit()
    assert {one for (one,) in found(outbox, "message_id")} == {before, kept, after}


def test_a_thousand_messages_are_one_insert(
    session: Session, engine: sqlalchemy.Engine, outbox: Outbox, pools: Pools
) -> None:
    statements: list[str] = []
    sqlalchemy.event.listen(
        engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )
    ids = [publish(session, pools, number) for number in range(1000)]
    session.commit()
    assert [one.split(" (")[0] for one in statements if "INSERT" in one] == [
        f"INSERT INTO {OUTBOX}"
    ]
    assert [one for (one,) in found(outbox, "message_id")] == ids


def test_the_session_of_flask_sqlalchemy_is_a_scoped_one(
    engine: sqlalchemy.Engine, outbox: Outbox, pools: Pools
) -> None:
    scoped = scoped_session(sessionmaker(engine))
    message_id = publish(scoped, pools)
    scoped.commit()
    scoped.remove()
    assert found(outbox, "message_id") == [(message_id,)]


def test_the_setting_of_the_alias_says_whether_there_is_a_row(
    session: Session, outbox: Outbox
) -> None:
    pools = Pools(default={"URL": "amqp://localhost:1//", "OUTBOX": True})
    publish(session, pools, outbox=None, key="a")
    session.commit()
    assert found(outbox, "order_key") == [("a",)]


def test_a_wrong_message_is_refused_at_the_call(session: Session, pools: Pools) -> None:
    for wrong, kind in (
        ({"priority": "high"}, TypeError),
        ({"key": "k" * 300}, ValueError),
        ({"key": "a", "outbox": False}, ValueError),
        ({"retry_policy": {"errback": print}}, TypeError),
    ):
        with pytest.raises(kind):
            publish(session, pools, **wrong)


def test_an_alias_without_confirms_is_refused(session: Session) -> None:
    pools = Pools(default={"URL": "amqp://localhost:1//", "CONFIRM": False})
    with pytest.raises(ValueError, match="alias 'default' has no confirms"):
        publish(session, pools)


@pytest.mark.broker
def test_without_the_outbox_it_is_published_after_the_commit(
    session: Session, outbox: Outbox, amqp_url: str
) -> None:
    pools = Pools(default={"URL": amqp_url})
    queue = kombu.Queue(f"outbox-{kombu.uuid()}", expires=60)
    for ending in (session.rollback, session.commit):
        for number in range(3):
            publish_on_commit(session, number, queue, declare=[queue], outbox=False, pools=pools)
        ending()
    with kombu.Connection(amqp_url) as connection:
        assert bodies(queue(connection.default_channel)) == [0, 1, 2]
    assert found(outbox, "id") == []
    pools.reset()


def test_a_message_that_fails_after_the_commit_is_raised_there_and_logged(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(default={"URL": "amqp://localhost:1//", "ACQUIRE_TIMEOUT": 0.2})
    session.add(Order())
    message_id = publish(session, pools, outbox=False)
    with pytest.raises(kombu.exceptions.OperationalError):
        session.commit()
    assert message_id in caplog.text
    # All was committed, and the session goes on.
    assert session.query(Order).count() == 1
    pools.reset()


def test_a_coroutine_writes_by_run_sync(tables: Database, outbox: Outbox, pools: Pools) -> None:
    if tables.vendor != "postgresql":
        pytest.skip("psycopg is the one driver of the tests that SQLAlchemy awaits")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> str:
        engine = create_async_engine(tables.sqlalchemy_url)
        async with AsyncSession(engine) as session, session.begin():
            message_id: str = await session.run_sync(
                lambda one: publish_on_commit(one, 1, "orders", outbox=True, pools=pools)
            )
        await engine.dispose()
        return message_id

    message_id = asyncio.run(main())
    assert found(outbox, "message_id") == [(message_id,)]


@pytest.mark.broker
def test_a_relay_over_an_engine(
    session: Session, engine: sqlalchemy.Engine, outbox: Outbox, amqp_url: str
) -> None:
    pools = Pools(default={"URL": amqp_url})
    with kombu.Connection(amqp_url) as connection:
        queue = kombu.Queue(f"outbox-{kombu.uuid()}", expires=60)(connection.default_channel)
        queue.declare()
        with running(Relay(pools, EngineDatabase(engine))):
            for number in range(3):
                publish_on_commit(session, number, queue.name, outbox=True, key="a", pools=pools)
                session.commit()
            eventually(lambda: not found(outbox, "id"), PATIENCE)
        assert bodies(queue) == [0, 1, 2]
    pools.reset()


# -- the inbox ---------------------------------------------------------------------------------------------------------


def test_the_second_delivery_is_told(engine: sqlalchemy.Engine, outbox: Outbox) -> None:
    with Session(engine) as one:
        assert claim(one, "id-1", "invoices")
        one.rollback()
        assert claim(one, "id-1", "invoices")
        one.commit()
        assert not claim(one, "id-1", "invoices")
        assert claim(one, "id-1", "mails")
        assert claim(one, "id-2", "invoices")
        one.commit()
    database = outbox.database
    assert sweep_inbox(database, 60.0) == 0
    assert sweep_inbox(database, 0.0) == 3
    with database.transaction() as cursor:
        cursor.execute(f"SELECT id FROM {INBOX}")
        assert list(cursor.fetchall()) == []


def test_wrong_ids_are_refused(session: Session) -> None:
    for message_id, consumer in (("", "a"), ("x" * 256, "a"), ("a\0", "a"), ("a", "")):
        with pytest.raises(ValueError, match="must have 1 to 255 characters"):
            claim(session, message_id, consumer)
    with pytest.raises(TypeError, match="message_id must be text, not NoneType"):
        claim(session, None, "a")  # type: ignore[arg-type]


def test_a_message_that_another_transaction_handles_is_waited_for(
    engine: sqlalchemy.Engine, tables: Database
) -> None:
    """The first is rolled back, so the second is the first that handles it."""
    if tables.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    from concurrent.futures import ThreadPoolExecutor

    def handle() -> bool:
        with Session(engine) as other, other.begin():
            return claim(other, "id-1", "invoices")

    with Session(engine) as one, ThreadPoolExecutor(1) as executor:
        assert claim(one, "id-1", "invoices")
        second = executor.submit(handle)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        one.rollback()
        assert second.result(PATIENCE)


def test_tables_for_alembic(tables: Database, engine: sqlalchemy.Engine) -> None:
    """Alembic's autogenerate finds nothing that the tables lack, or have too much."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from kombu_pools_ext.contrib.sqlalchemy import add_tables

    wanted = sqlalchemy.MetaData()
    add_tables(wanted)
    with engine.connect() as connection:
        there = MigrationContext.configure(
            connection,
            opts={"include_name": lambda name, kind, parents: kind != "table" or name != "orders"},
        )
        assert compare_metadata(there, wanted) == []
