"""Whether claims become slower where many rows wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

from kombu_pools_ext.outbox import Outbox
from kombu_pools_ext.outbox.dbapi import DbApiDatabase
from kombu_pools_ext.outbox.schema import OUTBOX
from kombu_pools_ext.outbox.settlement import GivenBack, Settlement
from tests.benchmarks.measure import interleave, median
from tests.benchmarks.report import Played
from tests.databases import Database

from .bench import WHERE, Bench

__all__ = ["FEW", "MANY", "play", "waiting"]

#: Rows that wait, in the small table and in the large one.
FEW, MANY = 10_000, 10_000_000
FIGURES = {"claim": "ms for a claim of 500 rows", "settle": "ms to give them back"}
CLAIMED, LEASE = 500, 60.0


def waiting(rows: int) -> str:
    """How a contender is called."""
    return f"{rows:,} rows wait"


def play(bench: Bench) -> Played:
    """Claim from a small table and from a large one in turn."""
    import psycopg

    played = Played("a relay claims 500 rows", WHERE, FIGURES)
    with ExitStack() as stack:
        server = stack.enter_context(bench.servers.for_many_rows())
        outboxes: dict[str, Outbox] = {}
        for rows in (FEW, bench.sizes.waiting):
            bench.note(f"claim: making {rows:,} rows")
            database = stack.enter_context(server.database())
            fill(database, rows)
            own = DbApiDatabase(
                lambda url=database.url: psycopg.connect(url), "postgresql", (psycopg.Error,)
            )
            stack.callback(own.close)
            outboxes[waiting(rows)] = Outbox(own)
        for outbox in outboxes.values():
            claim(outbox)
        bench.note("claim: measuring")
        rounds = {
            name: lambda outbox=outbox: claims(outbox, bench.sizes.claims)
            for name, outbox in outboxes.items()
        }
        played.values = interleave(rounds, 3 * bench.sizes.rounds)
    return played


def claims(outbox: Outbox, count: int) -> Mapping[str, float]:
    """The middle ones of so many claims and of what gives their rows back."""
    found = [claim(outbox) for _ in range(count)]
    return {
        "claim": median([one for one, _ in found]),
        "settle": median([other for _, other in found]),
    }


def claim(outbox: Outbox) -> tuple[float, float]:
    """Milliseconds for a claim, and for giving its rows back, which makes them the last that are due."""
    began = time.perf_counter()
    rows = outbox.claim("default", "bench", CLAIMED, LEASE).rows
    claimed = time.perf_counter()
    given_back = GivenBack(tuple(row.id for row in rows), 0.0)
    outbox.settle("bench", Settlement(given_back=[given_back]), keep=False, stop_keys=False)
    assert len(rows) == CLAIMED, "there are fewer rows than should wait"
    return (claimed - began) * 1e3, (time.perf_counter() - claimed) * 1e3


def fill(database: Database, rows: int) -> None:
    """Make the tables, with so many rows that are due, and what autovacuum would do after a while."""
    import sqlalchemy

    from kombu_pools_ext.contrib.sqlalchemy import metadata

    engine = sqlalchemy.create_engine(database.sqlalchemy_url)
    metadata.create_all(engine)
    engine.dispose()
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexname NOT LIKE '%%pkey'",
            [OUTBOX],
        )
        indexes = cursor.fetchall()
        # An index is made faster of all rows than row by row; and what follows TRUNCATE in its transaction is not
        # written twice.
        cursor.execute(f"TRUNCATE {OUTBOX}")
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        cursor.execute(
            f"INSERT INTO {OUTBOX} (id, message_id, alias, state, due_at, token, attempts, created_at, exchange, "
            "routing_key, arguments, body, size, reason) SELECT n, 'message-' || n, 'default', 0, "
            "CAST(EXTRACT(EPOCH FROM now()) * 1000000 AS bigint) - %s + n, '', 0, "
            "CAST(EXTRACT(EPOCH FROM now()) * 1000000 AS bigint) - %s + n, '', 'orders', '{}', '{}', 2, '' "
            "FROM generate_series(1, %s) n",
            [rows, rows, rows],
        )
        for _, definition in indexes:
            cursor.execute(definition)
    with database.connect(autocommit=True) as connection:
        connection.execute(f"VACUUM ANALYZE {OUTBOX}")
        connection.execute("CHECKPOINT")
