"""That no statement of a relay reads the whole table, however many rows wait: `EXPLAIN` of those it carries out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import Database, Outbox, write
from kombu_pools_ext.outbox.schema import COLUMNS, OUTBOX
from kombu_pools_ext.outbox.settlement import Settlement
from tests import databases
from tests.outbox.common import make_tables, message, own

WAITING = 200_000
HOT = 100_000
#: Rows of a claim.
MOST = 500
#: The names under which the statements have the table.
NAMES = {OUTBOX, "r", "k"}
PREPARATIONS = ("SET ", "START ", "BEGIN")

Statement = tuple[str, Sequence[Any]]


class Recording:
    """A database that notes what is carried out in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.statements: list[Statement] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self.database.transaction() as cursor:
            yield RecordingCursor(cursor, self.statements)


class RecordingCursor:
    """A cursor of it."""

    def __init__(self, cursor: Any, statements: list[Statement]) -> None:
        self._cursor = cursor
        self._statements = statements

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        self._statements.append((statement, parameters))
        return self._cursor.execute(statement, parameters)


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def recording(request: pytest.FixtureRequest) -> Iterator[Recording]:
    """Tables in a database that has a planner."""
    database: databases.Database = request.getfixturevalue(request.param)
    make_tables(database)
    connection = own(database)
    yield Recording(connection)
    connection.close()


def fill(database: Any, pools: Pools, rows: int, key: str | None = None) -> None:
    """Have *rows* more rows wait: one that is written, and copies of it."""
    with database.transaction() as cursor:
        cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {OUTBOX}")
        (before,) = cursor.fetchall()[0]
        write(cursor, database.vendor, [(message(pools), key)])
        columns = ", ".join(name for name in COLUMNS if name != "id")
        count = 1
        while count < rows:
            cursor.execute(
                f"INSERT INTO {OUTBOX} ({columns}) SELECT {columns} FROM {OUTBOX} WHERE id > %s "
                f"ORDER BY id LIMIT {min(count, rows - count)}",
                [before],
            )
            count += cursor.rowcount


def analyze(database: Any) -> None:
    """Have the database look at the table, as its own housekeeping does after a while."""
    with database.transaction() as cursor:
        cursor.execute(f"ANALYZE {'TABLE ' if database.vendor == 'mysql' else ''}{OUTBOX}")
        if database.vendor == "mysql":
            cursor.fetchall()


def carried_out(recording: Recording, work: Callable[[], object]) -> list[Statement]:
    """The different statements that look for rows in *work*."""
    recording.statements.clear()
    work()
    found = dict(recording.statements)
    return [one for one in found.items() if not one[0].startswith(PREPARATIONS)]


def full_scans(recording: Recording, statements: Sequence[Statement]) -> list[str]:
    """Which of *statements* would read the whole table or a whole index, with their plans."""
    database: Any = recording.database
    look = {"postgresql": _scans_of_postgresql, "mysql": _scans_of_mysql}[database.vendor]
    found = []
    for statement, parameters in statements:
        with database.transaction() as cursor:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plan = cursor.fetchall()
        assert plan
        if look(plan):
            found.append(f"{statement[:300]}\n{plan}")
    return found


def _scans_of_postgresql(plan: Sequence[Sequence[Any]]) -> bool:
    """A scan is told in one line, and what it is to find in the next."""
    lines = [line.strip() for (line,) in plan]
    return any(
        not _finds(line, following)
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if " Scan " in f"{line} " and "Subquery Scan" not in line and "Append" not in line
    )


def _finds(scan: str, condition: str) -> bool:
    """Whether a scan is one of an index, by ids or within one alias."""
    if not condition.startswith("Index Cond: "):
        return False
    return "(id = " in condition if f"{OUTBOX}_pkey" in scan else "alias" in condition


def _scans_of_mysql(plan: Sequence[Sequence[Any]]) -> bool:
    """Of its columns, the third is the table, the fourth how it is read, and the sixth the index."""
    of_the_table = [row for row in plan if row[2] in NAMES]
    return any(row[5] is None or row[3] in ("ALL", "index") for row in of_the_table)


@pytest.mark.slow
@pytest.mark.parametrize("hot", [0, HOT], ids=["no keys", "a hot key"])
def test_a_relay_never_reads_the_whole_table(recording: Recording, pools: Pools, hot: int) -> None:
    database: Any = recording
    outbox = Outbox(database)
    if hot:
        fill(database, pools, hot, "hot")
    fill(database, pools, WAITING - hot)
    analyze(database)
    claims = []

    def claim() -> None:
        claims.append(outbox.claim("default", "a", MOST, 60.0))

    statements = carried_out(recording, claim)
    (rows,) = (one.rows for one in claims)
    assert len(rows) == (1 if hot else MOST)
    assert any("ORDER BY due_at, id LIMIT %s" in one for one, _ in statements)
    # What follows the rows of a key, and what is told of them.
    following: list[Any] = []
    statements += carried_out(
        recording, lambda: following.extend(outbox.claim_next(rows, "a", 50, 60.0))
    )
    assert len(following) == (50 if hot else 0)
    done = Settlement(done=[row.id for row in [*rows, *following]])
    statements += carried_out(
        recording, lambda: outbox.settle("a", done, keep=True, stop_keys=False)
    )
    statements += carried_out(recording, lambda: outbox.sweep(0.0))
    statements += carried_out(recording, outbox.aliases)
    assert full_scans(recording, statements) == []
