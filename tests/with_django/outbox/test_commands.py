from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import kombu
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import TestCase
from kombu import Queue

from django_app import publish_on_commit
from django_app.outbox.models import OutboxMessage
from kombu_pools_ext.outbox.dialects import dialect_of
from tests.databases import Database
from tests.with_django.conftest import receive, until

from .conftest import Use, make_tables

ROOT = Path(__file__).resolve().parents[3]
NOWHERE = "amqp://guest:guest@localhost:1//"
#: Seconds for a child to begin, or to end.
PATIENCE = 60.0


def command(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("kombu_pools", *arguments, stdout=out, **options)
    return out.getvalue()


def refused(*arguments: str) -> str:
    """What a command says that ends with code 2."""
    with pytest.raises(CommandError) as caught:
        command(*arguments)
    assert caught.value.returncode == 2
    return str(caught.value)


@pytest.fixture
def written(configure: Callable[..., None]) -> Callable[..., str]:
    """Writes rows for aliases whose broker is nowhere."""
    configure({one: {"URL": NOWHERE, "OUTBOX": True} for one in ("default", "other")})
    return lambda using="default", **kwargs: publish_on_commit(1, "orders", using=using, **kwargs)


def kill(reason: str, **rows: Any) -> None:
    """Have rows be dead."""
    OutboxMessage.objects.filter(**rows).update(state=2, reason=reason, ended_at=0, due_at=0)


def test_a_relay_brings_rows_to_the_broker(
    tables: Database, configure: Callable[..., None], amqp_url: str, queue: str
) -> None:
    configure({"default": {"URL": amqp_url, "OUTBOX": True}})
    declare = [Queue(queue, auto_delete=True)]
    for number in range(3):
        with transaction.atomic():
            publish_on_commit({"number": number}, queue, declare=declare, key="k")
    assert "the relay has ended: 3 delivered, 0 dead" in command("relay", "--once")
    with kombu.Connection(amqp_url) as broker, broker.SimpleQueue(declare[0]) as messages:
        assert [messages.get(timeout=30).payload["number"] for _ in range(3)] == [0, 1, 2]
    assert OutboxMessage.objects.count() == 0
    # The command's connection was its own.
    assert connection.settings_dict["CONN_MAX_AGE"] == 0


def test_a_relay_serves_the_database_that_it_is_told_of(
    tables_in_a_file: Database,
    use: Use,
    configure: Callable[..., None],
    amqp_url: str,
    queue: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    use("other", Database("sqlite", str(tmp_path_factory.mktemp("other") / "database")))
    make_tables("other")
    configure({"default": {"URL": amqp_url, "OUTBOX": True}})
    publish_on_commit("other", queue, declare=[Queue(queue, auto_delete=True)], db="other")
    assert "0 delivered" in command("relay", "--once")
    assert "1 delivered" in command("relay", "--once", "--database", "other")
    assert receive(amqp_url, queue) == "other"


def test_the_status_counts_rows_by_alias(tables: Database, written: Callable[..., str]) -> None:
    assert command("outbox", "status") == "the outbox is empty\n"
    for using in ("default", "default", "other"):
        written(using)
    kill("returned", alias="other")
    lines = command("outbox", "status").splitlines()
    assert [line.split()[0:2] for line in lines] == [
        ["ALIAS", "WAITING"],
        ["default", "2"],
        ["other", "0"],
    ]
    document = json.loads(command("outbox", "status", "--format", "json", "--using", "other"))
    (alias,) = document["aliases"]
    assert (alias["alias"], alias["waiting"], alias["dead"]) == ("other", 0, 1)


def test_dead_rows_are_requeued(tables: Database, written: Callable[..., str]) -> None:
    first, second = written(), written()
    kill("returned: NO_ROUTE", message_id=first)
    kill("404", message_id=second)
    assert command("outbox", "requeue", "--dry-run") == "2 rows would be requeued\n"
    assert command("outbox", "requeue", "--reason", "NO_ROUTE") == "1 row requeued\n"
    assert OutboxMessage.objects.get(state=0).message_id == first


def test_dead_rows_are_purged(tables: Database, written: Callable[..., str]) -> None:
    kept = written()
    kill("404", message_id=written("other"))
    kill("404", message_id=written())
    OutboxMessage.objects.filter(state=2, alias="default").update(ended_at=now())
    assert (
        command("outbox", "purge", "--older-than", "60", "--dry-run") == "1 row would be purged\n"
    )
    assert command("outbox", "purge", "--older-than", "60") == "1 row purged\n"
    assert command("outbox", "purge", "--using", "other") == "0 rows purged\n"
    assert command("outbox", "purge") == "1 row purged\n"
    assert [row.message_id for row in OutboxMessage.objects.all()] == [kept]


def now() -> int:
    """The database's time, in microseconds since 1970."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect_of(connection.vendor).now}")
        (found,) = cursor.fetchone()
    return int(found)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("outbox",), "outbox takes one of status, requeue, purge"),
        (("outbox", "5"), "outbox takes one of status, requeue, purge"),
        (("relay", "status"), "relay takes no argument, and got status"),
        (("status", "purge"), "status does not take 'purge', which is for outbox"),
        (("relay", "--watch"), "--watch cannot be used with relay"),
        (("relay", "--dry-run"), "--dry-run cannot be used with relay"),
        (("relay", "--reason", "x"), "--reason cannot be used with relay"),
        (("outbox", "purge", "--process", "1"), "--process cannot be used with outbox"),
        (("outbox", "purge", "--timeout", "1"), "--timeout cannot be used with outbox"),
        (("outbox", "purge", "--batch", "1"), "--batch cannot be used with outbox"),
        (("status", "--once"), "--once cannot be used with status"),
        (("status", "--database", "other"), "--database cannot be used with status"),
        (("outbox", "status", "--dry-run"), "--dry-run cannot be used with status"),
        (("relay", "--database", "nowhere"), "The connection 'nowhere' doesn't exist."),
        (("relay", "--lease", "0.5"), "lease must be 1 seconds or more, not 0.5"),
        (("relay", "--using", "nobody"), "nobody"),
    ],
)
def test_a_wrong_argument_is_refused(
    tables_in_a_file: Database, configure: Callable[..., None], arguments: Any, told: str
) -> None:
    configure({"default": {"URL": NOWHERE, "OUTBOX": True}})
    assert told in refused(*arguments)


def test_a_word_that_is_no_action_is_refused() -> None:
    with pytest.raises(CommandError, match="'pruge' is neither a number, for limit, nor one of"):
        command("outbox", "pruge")


@pytest.mark.parametrize("arguments", [("relay", "--once"), ("outbox", "status")])
def test_without_its_tables_the_outbox_is_refused(
    database: Database, use: Use, written: Callable[..., str], arguments: Any
) -> None:
    use("default", database)
    assert "the table kombu_pools_outbox is not that of this version" in refused(*arguments)


def test_a_table_of_another_version_is_refused(
    tables: Database, written: Callable[..., str]
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kombu_pools_outbox ADD COLUMN later integer")
    assert "it has later, which this version does not know" in refused("relay", "--once")


class RelayProcess:
    """``manage.py kombu_pools relay`` on *database*, until the block ends."""

    def __init__(self, folder: Path, database: Database, pools: Any, *options: str) -> None:
        (folder / "relay_settings.py").write_text(
            "from tests.with_django.settings import *\n"
            f"DATABASES = {{'default': {database.django()!r}}}\n"
            f"KOMBU_POOLS = {pools!r}\n"
            f"SECRET_KEY = {database.name!r}\n"
        )
        program = (
            "from tests.databases import pymysql_for_django\n"
            "pymysql_for_django.install()\n"
            "from django.core.management import execute_from_command_line\n"
            f"execute_from_command_line(['manage.py', 'kombu_pools', 'relay', *{options!r}])\n"
        )
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
                "DJANGO_SETTINGS_MODULE": "relay_settings",
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        try:
            assert self.process.stdout.readline() == "the relay is running\n"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        with self.process:
            pass

    def ends(self) -> str:
        """What it says at its end, for which it is asked."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0
        assert self.process.stdout is not None
        return self.process.stdout.read()


@pytest.fixture
def relay_of(
    tables: Database, amqp_url: str, tmp_path: Path, configure: Callable[..., None]
) -> Iterator[Callable[..., RelayProcess]]:
    """Starts a relay for the default database, whose alias this process writes for."""
    pools = {"default": {"URL": amqp_url, "OUTBOX": True}}
    configure(pools)
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(RelayProcess(tmp_path, tables, pools, *options))


def delivered(amqp_url: str, queue: str, body: Any) -> None:
    """Write a message, and wait for it."""
    with transaction.atomic():
        publish_on_commit(body, queue, declare=[Queue(queue, auto_delete=True)])
    assert receive(amqp_url, queue) == body


@pytest.mark.slow
@pytest.mark.threads
def test_a_relay_runs_as_a_process_until_it_is_told_to_end(
    relay_of: Callable[..., RelayProcess], amqp_url: str, queue: str
) -> None:
    # On PostgreSQL a notification wakes it: it would look by itself only after the test has failed.
    poll = "1000" if connection.vendor == "postgresql" else "0.1"
    relay = relay_of("--poll", poll)
    for number in range(3):
        delivered(amqp_url, queue, {"number": number})
    until(lambda: not OutboxMessage.objects.exists())
    assert relay.ends().startswith("the relay has ended: 3 delivered")


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize(
    "database",
    [
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ],
    indirect=True,
)
def test_a_relay_outlives_its_database(
    relay_of: Callable[..., RelayProcess],
    amqp_url: str,
    queue: str,
    request: pytest.FixtureRequest,
) -> None:
    vendor = "postgresql" if connection.vendor == "postgresql" else "mariadb"
    server = request.getfixturevalue(f"private_{vendor}")
    relay = relay_of("--poll", "0.1")
    delivered(amqp_url, queue, {"before": 1})
    connection.close()
    server.kill()
    server.start()
    delivered(amqp_url, queue, {"after": 1})
    until(lambda: not OutboxMessage.objects.exists())
    assert relay.ends().startswith("the relay has ended: ")


class RelayInATest(TestCase):
    """What an application's own test may do; run by the test below."""

    __test__ = False
    url: str
    queue: str

    def test_the_messages_of_a_test(self) -> None:
        with transaction.atomic():
            publish_on_commit({"a": 1}, self.queue)
        assert "1 delivered" in command("relay", "--once")
        assert receive(self.url, self.queue) == {"a": 1}


def test_a_relay_works_within_the_transaction_of_a_test(
    tables: Database, configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure({"default": {"URL": memory_url, "OUTBOX": True}})
    with kombu.Connection(memory_url) as broker:
        Queue(queue)(broker.default_channel).declare()
    RelayInATest.url, RelayInATest.queue = memory_url, queue
    result = unittest.TestResult()
    RelayInATest("test_the_messages_of_a_test").run(result)
    assert not result.errors
    assert not result.failures
    assert OutboxMessage.objects.count() == 0
