"""Publish the rows that a test has written, for its assertions."""

from __future__ import annotations

from django.apps import apps
from django.db import connections

from kombu_pools_ext import events
from kombu_pools_ext.broker.event_loops import event_loop
from kombu_pools_ext.outbox import Relay, RelaySettings, State
from kombu_pools_ext.outbox.schema import OUTBOX

from ..conf import pools
from .database import DjangoDatabase
from .installed import NAME

__all__ = ["publish_rows"]

#: Seconds for which the rows are the relay's: for longer than any publish may take. Nobody else wants them.
_LEASE = 1e6


def publish_rows(alias: str) -> None:
    """Publish the rows of the outbox in database *alias* that are due, as the transaction of the test has them.

    Nothing happens where there is no outbox, and in a coroutine, which cannot ask a database.

    :raises SchemaMismatch: if the tables are those of another version.
    """
    if not apps.is_installed(NAME) or event_loop() is not None:
        return
    if OUTBOX not in connections[alias].introspection.table_names():
        return
    from .models import OutboxMessage

    rows = OutboxMessage.objects.using(alias).filter(state=State.WAITING)
    ids = list(rows.values_list("message_id", flat=True))
    if ids:
        events.after_commit.send(ids=ids)
        Relay(pools, DjangoDatabase(alias), RelaySettings(lease=_LEASE)).drain()
