"""Rows for relays: one that the outbox itself has written, and copies of it."""

from __future__ import annotations

from .contenders import Contender
from .place import Place

__all__ = ["fill", "make_tables", "start_afresh"]

ORDERS = "bench_order"


def make_tables() -> None:
    """Of all outboxes, by their migrations, and a table of an application."""
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE {ORDERS} (id bigserial PRIMARY KEY, customer text NOT NULL, total integer NOT NULL)"
        )


def start_afresh(table: str) -> None:
    """Have *table* be empty."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table} CASCADE")


def fill(contender: Contender, place: Place, queue: str, rows: int) -> None:
    """Have so many messages wait in the contender's table, as they would after a while: vacuumed and analyzed."""
    from django.db import connection, transaction

    start_afresh(contender.table)
    with transaction.atomic():
        contender.write(place, queue)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND column_name <> 'id' "
            "ORDER BY ordinal_position",
            [contender.table],
        )
        columns = {name: name for (name,) in cursor.fetchall()} | contender.fresh
        cursor.execute(
            f"INSERT INTO {contender.table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "
            f"FROM {contender.table}, generate_series(2, %s)",
            [rows],
        )
        cursor.execute(f"VACUUM ANALYZE {contender.table}")
        # Else the one whose turn comes next would pay for it.
        cursor.execute("CHECKPOINT")
