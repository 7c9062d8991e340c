"""Receiving once: a consumer notes each message in its own transaction, and is told when it comes again."""

from __future__ import annotations

from .database import Cursor, Database
from .dialects import dialect_of
from .schema import INBOX, LONGEST

__all__ = ["claim_once", "sweep_inbox"]

#: Rows that one statement deletes.
_AT_ONCE = 1000


def claim_once(cursor: Cursor, vendor: str, message_id: str, consumer: str) -> bool:
    """Note that *consumer* handles the message; return whether it is for the first time.

    The note is part of the transaction of *cursor*. If that is rolled back, the message counts as not handled. While
    another transaction handles the same message, this waits until that one has ended.

    :param message_id: of the message; a text of 1 to 255 characters.
    :param consumer: a name for those who handle a message once together.
    :raises TypeError, ValueError: for a text that is none, or is too long.
    """
    dialect = dialect_of(vendor)
    for name, text in (("message_id", message_id), ("consumer", consumer)):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, not {type(text).__name__}")
        if not 0 < len(text) <= LONGEST or "\0" in text:
            raise ValueError(f"{name} must have 1 to {LONGEST} characters, and no NUL: {text!r}")
        if text.endswith(" ") and not dialect.tells_spaces:
            raise ValueError(
                f"{name} ends with a space, and this database takes it for the same without: {text!r}"
            )
    cursor.execute(
        f"{dialect.insert_ignore} INTO {INBOX} (consumer, message_id, received_at) "
        f"VALUES (%s, %s, {dialect.now}){dialect.on_conflict}",
        [consumer, message_id],
    )
    return cursor.rowcount == 1


def sweep_inbox(database: Database, seconds: float) -> int:
    """Forget messages that were received more than *seconds* ago, in small transactions; return how many."""
    dialect = dialect_of(database.vendor)
    swept = 0
    while True:
        with database.transaction() as cursor:
            dialect.begin_to_write(cursor)
            cursor.execute(
                f"SELECT id FROM {INBOX} WHERE received_at <= {dialect.now} - %s "
                f"ORDER BY received_at LIMIT {_AT_ONCE}{dialect.skip_locked}",
                [int(seconds * 1_000_000)],
            )
            ids = [row[0] for row in cursor.fetchall()]
            if not ids:
                return swept
            places = ", ".join(["%s"] * len(ids))
            cursor.execute(f"DELETE FROM {INBOX} WHERE id IN ({places})", ids)
            swept += len(ids)
