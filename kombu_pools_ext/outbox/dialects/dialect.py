"""What a database of the outbox can do, and in which words."""

from __future__ import annotations

from collections.abc import Iterable

from ..database import Cursor
from ..schema import OUTBOX

__all__ = ["SILENCE", "Dialect"]

#: Seconds for which the client of a transaction may be silent. It only writes down what it knows already.
SILENCE = 10


class Dialect:
    """A database's words for what the others say otherwise. This one is nobody's; its subclasses say what they need."""

    #: An expression for the time of the statement: microseconds since 1970, in UTC.
    now: str
    #: Appended to a SELECT: lock the rows, and leave out those that another transaction has locked.
    skip_locked = " FOR UPDATE SKIP LOCKED"
    #: Appended to an INSERT: wake the relays at the commit.
    notifying = ""
    #: How an INSERT begins and ends that does nothing if the row is there.
    insert_ignore = "INSERT"
    on_conflict = " ON CONFLICT DO NOTHING"
    #: Whether texts differ that differ by spaces at their ends.
    tells_spaces = True
    #: How many parameters a statement may have.
    most_parameters = 30_000

    def begin_to_write(self, cursor: Cursor) -> None:
        """Make the transaction that has just begun the one that writes, where only one at a time can."""

    def begin_as_relay(self, cursor: Cursor) -> None:
        """Prepare the transaction that has just begun for the work of a relay, on a connection of the relay's own.

        The database ends it, if it can, when its client falls silent for :data:`SILENCE` seconds: a relay that is
        frozen holds no locks then.
        """
        self.begin_to_write(cursor)

    def rows_of_key(
        self, columns: str, alias: str, key: str, state: int, where: str, most: int
    ) -> str:
        """Return a SELECT of rows of one key, the table being ``k``, in the order of their ids.

        It has to be served by the index of the keys. To a database, a key looks like others of which it has many rows,
        so it may expect to find one soon by the ids alone, and then reads the whole table if there is none.

        :param alias, key: expressions.
        :param where: a condition of the id, and others.
        """
        return (
            f"SELECT {columns} FROM {OUTBOX} k WHERE k.alias = {alias} AND k.order_key = {key} "
            f"AND k.state = {state:d} AND {where} ORDER BY k.id LIMIT {most}"
        )

    def lock_keys(self, cursor: Cursor, keys: Iterable[tuple[str, str]]) -> None:
        """Have no other transaction write a message with one of *keys* until this one has ended.

        :param keys: alias and key. Different keys may share a lock.
        """
