"""The system check for the tables of the outbox, which reads the database: ``manage.py check --database default``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections, router
from django.db.migrations.loader import MigrationLoader

from kombu_pools_ext.outbox import Outbox, SchemaMismatch

from .database import DjangoDatabase
from .installed import NAME

__all__ = ["check_tables"]

#: The label of the application.
LABEL = "kombu_pools_outbox"


@register(Tags.database)
def check_tables(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """E012: the tables of the outbox are those of another version."""
    return [
        Error(
            "The tables of the outbox are those of another version.",
            hint=f"Database {alias!r}: {problem}.",
            id="kombu_pools.E012",
        )
        for alias in databases or ()
        # A test may have taken the application away.
        if apps.is_installed(NAME)
        and router.allow_migrate(alias, LABEL)
        and (problem := _problem(alias))
    ]


def _problem(alias: str) -> str | None:
    """Return what is wrong with the tables in database *alias*; nothing of migrations that have still to be applied."""
    loader = MigrationLoader(connections[alias])
    applied = {name for label, name in loader.applied_migrations if label == LABEL}
    known = {name for label, name in loader.disk_migrations if label == LABEL}
    if unknown := sorted(applied - known):
        return f"its migrations {', '.join(unknown)} are not in this version; run the one that they are from"
    if applied != known:
        return None
    try:
        Outbox(DjangoDatabase(alias)).check_schema()
    except SchemaMismatch as error:
        return str(error)
    return None
