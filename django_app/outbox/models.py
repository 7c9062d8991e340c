"""The tables of the outbox and of the inbox, which ``docs/explanation/outbox.md`` explains.

Messages are written by ``publish_on_commit``, not by these models: saving one notifies no relay, and locks no key.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from .fields import ExactCharField, ExactTextField

__all__ = ["InboxMessage", "OutboxLock", "OutboxMessage"]


class OutboxMessage(models.Model):
    """A message that has to be published, or can never be. Times are microseconds since 1970, of the database."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    message_id = ExactCharField(max_length=255)
    alias = ExactCharField(max_length=255)
    order_key = ExactCharField("key", max_length=255, null=True)
    state: models.SmallIntegerField[int, int] = models.SmallIntegerField()
    due_at: models.BigIntegerField[int, int] = models.BigIntegerField()
    token = ExactCharField(max_length=32)
    attempts: models.IntegerField[int, int] = models.IntegerField()
    created_at: models.BigIntegerField[int, int] = models.BigIntegerField()
    ended_at: models.BigIntegerField[int | None, int | None] = models.BigIntegerField(null=True)
    exchange = ExactCharField(max_length=255)
    routing_key = ExactCharField(max_length=255)
    arguments = ExactTextField()
    body: models.BinaryField[bytes, bytes] = models.BinaryField()
    size: models.IntegerField[int, int] = models.IntegerField()
    reason = ExactTextField()

    class Meta:
        db_table = "kombu_pools_outbox"
        default_permissions = ("view", "change", "delete")
        indexes: ClassVar = [
            models.Index(fields=["alias", "state", "due_at", "id"], name="kombu_pools_outbox_due"),
            models.Index(
                fields=["alias", "order_key", "state", "id"], name="kombu_pools_outbox_keys"
            ),
        ]
        permissions: ClassVar = [("view_body", "Can view bodies and headers of messages")]
        verbose_name = "message"

    def __str__(self) -> str:
        return str(self.message_id)


class OutboxLock(models.Model):
    """A lock of those who write messages with a key, on MySQL and MariaDB; other databases have their own."""

    slot: models.IntegerField[int, int] = models.IntegerField(primary_key=True)

    class Meta:
        db_table = "kombu_pools_outbox_lock"
        default_permissions = ()
        verbose_name = "lock"

    def __str__(self) -> str:
        return str(self.slot)


class InboxMessage(models.Model):
    """A message that a consumer has handled, or handles in a transaction that is open."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    consumer = ExactCharField(max_length=255)
    message_id = ExactCharField(max_length=255)
    received_at: models.BigIntegerField[int, int] = models.BigIntegerField()

    class Meta:
        db_table = "kombu_pools_inbox"
        default_permissions = ("view", "delete")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["consumer", "message_id"], name="kombu_pools_inbox_once"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["received_at"], name="kombu_pools_inbox_age")]
        verbose_name = "received message"

    def __str__(self) -> str:
        return f"{self.consumer}: {self.message_id}"
