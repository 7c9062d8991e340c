from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.migrations.loader import MigrationLoader
from sqlalchemy import create_engine

from django_app.outbox.models import InboxMessage, OutboxLock, OutboxMessage
from kombu_pools_ext.contrib.sqlalchemy import metadata
from kombu_pools_ext.outbox.schema import KEYS, TABLES
from tests.databases import Database

from .conftest import Use

COLUMNS = {table: set(columns) for table, columns in TABLES.items()}
INDEXES = {
    "kombu_pools_outbox_due": ["alias", "state", "due_at", "id"],
    KEYS: ["alias", "order_key", "state", "id"],
    "kombu_pools_inbox_once": ["consumer", "message_id"],
    "kombu_pools_inbox_age": ["received_at"],
}
#: That of a row whose columns but for the named ones are of no matter.
ROW: dict[str, Any] = {
    "message_id": "m",
    "alias": "default",
    "state": 0,
    "due_at": 1,
    "token": "",
    "attempts": 0,
    "created_at": 1,
    "exchange": "",
    "routing_key": "",
    "arguments": "{}",
    "body": b"",
    "size": 0,
    "reason": "",
}


def tables() -> dict[str, set[str]]:
    with connection.cursor() as cursor:
        there = connection.introspection.table_names(cursor)
        return {
            table: {
                column.name
                for column in connection.introspection.get_table_description(cursor, table)
            }
            for table in there
            if table.startswith("kombu_pools")
        }


def test_the_tables_come_and_go_with_migrate(database: Database, use: Use) -> None:
    use("default", database)
    # All of it, because Django notes the permissions of each application.
    call_command("migrate", verbosity=0)
    assert tables() == COLUMNS
    with connection.cursor() as cursor:
        found = {
            name: index["columns"]
            for table in COLUMNS
            for name, index in connection.introspection.get_constraints(cursor, table).items()
        }
    assert {name: found.get(name) for name in INDEXES} == INDEXES
    call_command("migrate", "kombu_pools_outbox", "zero", verbosity=0)
    assert tables() == {}
    call_command("migrate", "kombu_pools_outbox", verbosity=0)
    assert tables() == COLUMNS


def test_the_tables_are_those_of_sqlalchemys_metadata(tables: Database) -> None:
    engine = create_engine(tables.sqlalchemy_url)
    with engine.connect() as one:
        context = MigrationContext.configure(one, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    assert ("kombu_pools_outbox", "0001_initial") in MigrationLoader(None).disk_migrations


def test_names_that_differ_by_case_or_accent_are_different(tables: Database) -> None:
    for key in ("a", "A", "ä", "\N{GRINNING FACE}"):
        OutboxMessage.objects.create(**{**ROW, "order_key": key})
    assert OutboxMessage.objects.filter(order_key="a").count() == 1
    assert OutboxMessage.objects.values("order_key").distinct().count() == 4
    for consumer in ("a", "A"):
        InboxMessage.objects.create(consumer=consumer, message_id="m", received_at=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        InboxMessage.objects.create(consumer="a", message_id="m", received_at=2)


def test_a_row_holds_what_a_message_may_be(tables: Database) -> None:
    body, text = bytes(range(256)) * 4096, "ä\N{GRINNING FACE}" * 100_000
    given = {**ROW, "body": body, "arguments": text, "due_at": 2**62, "ended_at": 2**62}
    given |= dict.fromkeys(("message_id", "alias", "exchange", "routing_key"), "x" * 255)
    row = OutboxMessage.objects.get(id=OutboxMessage.objects.create(**given).id)
    row.body = bytes(row.body)  # psycopg2 has a memoryview
    assert {name: getattr(row, name) for name in given} == given


def test_ids_are_not_used_again(tables: Database) -> None:
    first = OutboxMessage.objects.create(**ROW)
    number = first.id
    first.delete()
    assert OutboxMessage.objects.create(**ROW).id > number


def test_the_text_of_each_row_is_its_name() -> None:
    assert str(OutboxMessage(message_id="m")) == "m"
    assert str(OutboxLock(slot=7)) == "7"
    assert str(InboxMessage(consumer="c", message_id="m")) == "c: m"


@pytest.mark.parametrize(
    "applications", [["django_app.outbox"], ["django_app", "django_app.outbox"]]
)
def test_it_needs_no_other_application(applications: list[str]) -> None:
    code = (
        "import django\n"
        "from django.conf import settings\n"
        "from django.core.management import call_command\n"
        f"settings.configure(INSTALLED_APPS={applications!r},\n"
        "    KOMBU_POOLS={'default': {'URL': 'memory://'}},\n"
        "    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}})\n"
        "django.setup()\n"
        "call_command('migrate', verbosity=0)\n"
        "from django.core.checks import run_checks\n"
        "assert not run_checks()\n"
        "from django_app.outbox.models import OutboxMessage\n"
        "print(OutboxMessage.objects.count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


def test_without_it_django_app_has_no_models() -> None:
    code = (
        "import django\n"
        "from django.apps import apps\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django_app'], KOMBU_POOLS={'default': {'URL': 'memory://'}})\n"
        "django.setup()\n"
        "print(apps.get_models())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
