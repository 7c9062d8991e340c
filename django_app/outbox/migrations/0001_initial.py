"""The first version of the tables."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models

from django_app.outbox.fields import ExactCharField, ExactTextField


class Migration(migrations.Migration):
    """Make the tables of the outbox and of the inbox."""

    initial = True

    dependencies: ClassVar = []

    operations: ClassVar = [
        migrations.CreateModel(
            name="OutboxLock",
            fields=[("slot", models.IntegerField(primary_key=True, serialize=False))],
            options={
                "verbose_name": "lock",
                "db_table": "kombu_pools_outbox_lock",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="InboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("consumer", ExactCharField(max_length=255)),
                ("message_id", ExactCharField(max_length=255)),
                ("received_at", models.BigIntegerField()),
            ],
            options={
                "verbose_name": "received message",
                "db_table": "kombu_pools_inbox",
                "default_permissions": ("view", "delete"),
                "indexes": [models.Index(fields=["received_at"], name="kombu_pools_inbox_age")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("consumer", "message_id"), name="kombu_pools_inbox_once"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", ExactCharField(max_length=255)),
                ("alias", ExactCharField(max_length=255)),
                ("order_key", ExactCharField(max_length=255, null=True, verbose_name="key")),
                ("state", models.SmallIntegerField()),
                ("due_at", models.BigIntegerField()),
                ("token", ExactCharField(max_length=32)),
                ("attempts", models.IntegerField()),
                ("created_at", models.BigIntegerField()),
                ("ended_at", models.BigIntegerField(null=True)),
                ("exchange", ExactCharField(max_length=255)),
                ("routing_key", ExactCharField(max_length=255)),
                ("arguments", ExactTextField()),
                ("body", models.BinaryField()),
                ("size", models.IntegerField()),
                ("reason", ExactTextField()),
            ],
            options={
                "verbose_name": "message",
                "db_table": "kombu_pools_outbox",
                "permissions": [("view_body", "Can view bodies and headers of messages")],
                "default_permissions": ("view", "change", "delete"),
                "indexes": [
                    models.Index(
                        fields=["alias", "state", "due_at", "id"], name="kombu_pools_outbox_due"
                    ),
                    models.Index(
                        fields=["alias", "order_key", "state", "id"],
                        name="kombu_pools_outbox_keys",
                    ),
                ],
            },
        ),
    ]
