"""The names of the outbox's tables and columns, which whoever makes the tables has to use."""

from __future__ import annotations

__all__ = [
    "CHANNEL",
    "COLUMNS",
    "INBOX",
    "INBOX_COLUMNS",
    "KEYS",
    "LOCKS",
    "LOCK_COLUMNS",
    "LONGEST",
    "OUTBOX",
    "SLOTS",
    "TABLES",
]

OUTBOX = "kombu_pools_outbox"
LOCKS = "kombu_pools_outbox_lock"
INBOX = "kombu_pools_inbox"
#: The index of the outbox by key: alias, order_key, state and id.
KEYS = "kombu_pools_outbox_keys"

#: Those of the outbox, in the order of the table.
COLUMNS = (
    *("id", "message_id", "alias", "order_key", "state", "due_at", "token", "attempts"),
    *("created_at", "ended_at", "exchange", "routing_key", "arguments", "body", "size", "reason"),
)
LOCK_COLUMNS = ("slot",)
INBOX_COLUMNS = ("id", "consumer", "message_id", "received_at")
#: Columns by table. A table with other columns belongs to another version.
TABLES = {OUTBOX: COLUMNS, LOCKS: LOCK_COLUMNS, INBOX: INBOX_COLUMNS}

#: Characters of an alias, a key, an exchange, a routing key and a message_id. AMQP has 255 bytes for the last three.
LONGEST = 255
#: How many locks the keys of MySQL share, so that their table stays small.
SLOTS = 4096
#: What PostgreSQL's notifications are sent on.
CHANNEL = "kombu_pools_outbox"
