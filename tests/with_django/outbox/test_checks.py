from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.test import modify_settings

from django_app.checks import TAG
from django_app.outbox.checks import check_tables
from tests.databases import Database

from .conftest import Use

NOWHERE = "amqp://guest:guest@localhost:1//"


def found(databases: list[str] | None = None) -> list[CheckMessage]:
    """What the checks of the outbox find."""
    found = run_checks(tags=[TAG, "database"], databases=databases)
    of_the_outbox = [one for one in found if one.id in ("kombu_pools.E011", "kombu_pools.E012")]
    assert all(len(one.msg) < 80 and one.hint for one in of_the_outbox)
    return of_the_outbox


def test_an_outbox_without_its_application_is_reported(configure: Callable[..., None]) -> None:
    configure({"default": {"URL": NOWHERE, "OUTBOX": True}, "other": {"URL": NOWHERE}})
    assert found() == []
    with modify_settings(INSTALLED_APPS={"remove": "django_app.outbox"}):
        (error,) = found()
        assert error.id == "kombu_pools.E011"
        assert "'default'" in str(error.hint)
        assert '"django_app.outbox"' in str(error.hint)


def test_without_an_outbox_its_application_is_not_missed(configure: Callable[..., None]) -> None:
    configure({"default": {"URL": NOWHERE}})
    with modify_settings(INSTALLED_APPS={"remove": "django_app.outbox"}):
        assert found() == []


@pytest.fixture
def migrated(sqlite: Database, use: Use) -> Database:
    use("default", sqlite)
    call_command("migrate", verbosity=0)
    return sqlite


def test_tables_that_were_migrated_are_right(migrated: Database) -> None:
    assert found(["default"]) == []


def test_tables_that_are_still_to_be_migrated_are_not_reported(sqlite: Database, use: Use) -> None:
    use("default", sqlite)
    assert found(["default"]) == []


def test_a_column_that_this_version_does_not_know_is_reported(migrated: Database) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kombu_pools_outbox ADD COLUMN later integer")
    (error,) = found(["default"])
    assert error.id == "kombu_pools.E012"
    assert "it has later, which this version does not know" in str(error.hint)


def test_a_migration_of_a_later_version_is_reported(migrated: Database) -> None:
    MigrationRecorder(connections["default"]).record_applied("kombu_pools_outbox", "0099_later")
    (error,) = found(["default"])
    assert error.id == "kombu_pools.E012"
    assert "0099_later" in str(error.hint)


def test_without_a_database_nothing_is_read(sqlite: Database, use: Use) -> None:
    use("default", sqlite)
    assert check_tables() == []
    assert connection.connection is None
