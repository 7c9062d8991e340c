"""Django's databases are those of each vendor in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import connections

from tests.databases import Database

Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Has an alias of Django's be another database until the test ends."""
    with ExitStack() as stack:

        def use(alias: str, database: Database, **options: Any) -> None:
            configured = connections.configure_settings(
                {"default": {}, alias: database.django(**options)}
            )
            monkeypatch.setitem(connections.settings, alias, configured[alias])
            stack.callback(partial(connections.__setitem__, alias, connections[alias]))
            connections[alias] = connections.create_connection(alias)
            stack.callback(connections[alias].close)

        yield use


def make_tables(alias: str = "default") -> None:
    """What the migration makes; that it does is tested by itself."""
    with connections[alias].schema_editor() as editor:
        for model in apps.get_app_config("kombu_pools_outbox").get_models():
            editor.create_model(model)


@pytest.fixture
def tables(database: Database, use: Use) -> Database:
    """Django's default database is of each vendor in turn, and has the tables of the outbox."""
    use("default", database)
    make_tables()
    return database


@pytest.fixture
def tables_in_a_file(sqlite: Database, use: Use) -> Database:
    """Django's default database is SQLite's, and has the tables: for what is the same on all databases."""
    use("default", sqlite)
    make_tables()
    return sqlite
