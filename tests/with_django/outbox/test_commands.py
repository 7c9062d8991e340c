from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from kombu import Queue

from django_app import publish_on_commit
from django_app.outbox.models import OutboxMessage
from kombu_pools_ext.outbox.dialects import dialect_of
from tests.databases import Database
from tests.with_django.conftest import receive, until

from .conftest import Use, make_tables

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


@pytest.mark.slow
@pytest.mark.threads
def test_a_relay_runs_as_a_process_until_it_is_told_to_end(
    tables: Database, amqp_url: str, queue: str, tmp_path: Path, configure: Callable[..., None]
) -> None:
    pools = {"default": {"URL": amqp_url, "OUTBOX": True}}
    (tmp_path / "relay_settings.py").write_text(
        f"from tests.with_django.settings import *\n"
        f"DATABASES = {{'default': {tables.django()!r}}}\n"
        f"KOMBU_POOLS = {pools!r}\n"
        f"SECRET_KEY = {queue!r}\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    program = (
        "from tests.databases import pymysql_for_django\n"
        "pymysql_for_django.install()\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(['manage.py', 'kombu_pools', 'relay', '--poll', '0.1'])\n"
    )
    relay = subprocess.Popen(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), root]),
            "DJANGO_SETTINGS_MODULE": "relay_settings",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    with relay:
        assert relay.stdout is not None
        try:
            assert relay.stdout.readline() == "the relay is running\n"
            configure(pools)
            declare = [Queue(queue, auto_delete=True)]
            with transaction.atomic():
                publish_on_commit({"a": 1}, queue, declare=declare)
            assert receive(amqp_url, queue) == {"a": 1}
            until(lambda: not OutboxMessage.objects.exists())
            relay.send_signal(signal.SIGTERM)
            assert relay.wait(PATIENCE) == 0
            assert relay.stdout.read().startswith("the relay has ended: 1 delivered")
        finally:
            relay.kill()
