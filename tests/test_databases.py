from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pymysql
import pytest
import sqlalchemy

from tests.brokers.server import fields_of
from tests.databases import Database, PrivateMariaDB, PrivatePostgreSQL, Unavailable
from tests.databases import postgresql as postgresql_server

Private = PrivatePostgreSQL | PrivateMariaDB


@pytest.fixture(
    params=[
        pytest.param("private_postgresql", marks=pytest.mark.postgresql),
        pytest.param("private_mariadb", marks=pytest.mark.mariadb),
    ]
)
def server(request: pytest.FixtureRequest) -> Private:
    found: Private = request.getfixturevalue(request.param)
    return found


def pids(server: Private) -> list[int]:
    """Of all its processes."""
    return [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if (fields := fields_of(stat)) and server.owns(fields)
    ]


def rows(database: Database) -> list[int]:
    connection = database.connect()
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT number FROM kept ORDER BY number")
        return [number for (number,) in cursor.fetchall()]
    finally:
        connection.close()


def test_each_vendor_has_an_empty_database(database: Database) -> None:
    connection = database.connect()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE kept (number integer)")
    cursor.execute("INSERT INTO kept VALUES (1)")
    connection.commit()
    connection.close()
    assert rows(database) == [1]


def test_sqlalchemy_connects_to_each_vendor(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.sqlalchemy_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE kept (number integer)"))
        connection.execute(sqlalchemy.text("INSERT INTO kept VALUES (1)"))
    engine.dispose()
    assert rows(database) == [1]


def test_django_connects_to_each_vendor(database: Database) -> None:
    code = (
        "from tests.databases import pymysql_for_django\n"
        "pymysql_for_django.install()\n"
        "import django\n"
        "from django.conf import settings\n"
        f"settings.configure(DATABASES={{'default': {database.django()!r}}})\n"
        "from django.db import connection, transaction\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('CREATE TABLE kept (number integer)')\n"
        "    with transaction.atomic():\n"
        "        cursor.execute('INSERT INTO kept VALUES (%s)', [1])\n"
        "print(connection.vendor)\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{database.vendor}\n", done.stderr
    assert rows(database) == [1]


def test_what_was_committed_outlasts_a_kill(server: Private) -> None:
    with server.database() as database:
        connection = database.connect()
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE kept (number integer)")
        cursor.execute("INSERT INTO kept VALUES (1)")
        connection.commit()
        cursor.execute("INSERT INTO kept VALUES (2)")
        before = pids(server)
        assert before
        server.kill()
        assert not [pid for pid in before if postgresql_server.lives(pid)]
        with pytest.raises((psycopg.OperationalError, pymysql.err.OperationalError)):
            connection.commit()
        with contextlib.suppress(Exception):  # PyMySQL's says that it is closed already
            connection.close()
        server.start()
        assert rows(database) == [1]


def test_a_frozen_server_is_silent_and_goes_on_afterwards(server: Private) -> None:
    with server.database() as database:
        connection = database.connect()
        server.freeze()
        try:
            with pytest.raises(TimeoutError):
                with socket.create_connection(("127.0.0.1", server.port), timeout=2) as peer:
                    peer.sendall(b"?" * 8)
                    peer.settimeout(0.2)
                    peer.recv(1)
        finally:
            server.thaw()
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        pytest.param(PrivatePostgreSQL, marks=pytest.mark.postgresql),
        pytest.param(PrivateMariaDB, marks=pytest.mark.mariadb),
    ],
)
def test_a_server_leaves_nothing_behind(start: Callable[[], Private]) -> None:
    with start() as other:
        with other.database() as database:
            database.connect().close()
        processes = pids(other)
        other.restart()
        processes += pids(other)
    assert not [pid for pid in processes if postgresql_server.lives(pid)]
    assert not other.folder.exists()


@pytest.mark.postgresql
def test_a_server_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgresql_server, "folders", list)
    with pytest.raises(Unavailable, match="initdb is not installed"):
        with PrivatePostgreSQL():
            pass


@pytest.mark.postgresql
def test_a_server_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(Unavailable, match="no_such_setting"):
        with PrivatePostgreSQL({"no_such_setting": "1"}):
            pass
