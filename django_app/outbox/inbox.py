"""Receive once: a consumer notes each message in its own transaction."""

from __future__ import annotations

from typing import Any, cast

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError

from kombu_pools_ext.outbox import Cursor, claim_once

from .installed import check_installed

__all__ = ["claim"]


def claim(message_id: str, consumer: str, db: str | None = None) -> bool:
    """Note in the current transaction that *consumer* handles a message; return whether it is for the first time.

    If the transaction is rolled back, the message counts as not handled. While another transaction handles the same
    message, this waits until that one has ended.

    :param message_id: of the message.
    :param consumer: a name for those who handle a message once together: a queue's, say.
    :param db: the alias of the database; ``None`` means the default one.
    :raises TypeError, ValueError: for a text that is none, or is too long.
    :raises TransactionManagementError: outside a transaction, where the note would be there before the work is done.
    :raises ImproperlyConfigured: if ``"django_app.outbox"`` is not installed.
    """
    check_installed()
    connection: Any = connections[db or DEFAULT_DB_ALIAS]
    if not connection.in_atomic_block:
        raise TransactionManagementError(
            "claim() is for a transaction: write `with transaction.atomic():` around it and around the work"
        )
    with connection.cursor() as cursor:
        return claim_once(cast("Cursor", cursor), connection.vendor, message_id, consumer)
