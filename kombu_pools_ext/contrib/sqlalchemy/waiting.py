"""The messages of one session that wait for its commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from ...aliases import Pools
from ...dispatch import publish_prepared
from ...outbox import write
from ...prepared import PreparedMessage
from .execution import Execution, vendor_of

__all__ = ["Waiting", "waiting_of"]

logger = logging.getLogger("kombu_pools_ext.sqlalchemy")

#: Where a session keeps its messages, in ``session.info``.
_KEY = "kombu_pools_waiting"


@dataclass(frozen=True)
class _Message:
    """One message, and the transactions that it belongs to: the innermost first, the outermost last."""

    message: PreparedMessage
    key: str | None
    pools: Pools
    in_outbox: bool
    transactions: tuple[SessionTransaction, ...]


def waiting_of(session: Session) -> Waiting:
    """Return the messages that wait for the commit of *session*."""
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None:
        waiting = session.info[_KEY] = Waiting(session)
    return waiting


class Waiting:
    """Keeps messages until the session commits, and forgets those that are rolled back, by savepoint as well.

    Those of the outbox are written right before the commit, or before the end of a savepoint that is kept, by one
    statement. The others are published when the outermost transaction has been committed and is over.

    :param session: whose events it listens to, for as long as the session lives.
    """

    def __init__(self, session: Session) -> None:
        self._messages: list[_Message] = []
        #: The outermost transaction, if it was committed.
        self._committed: SessionTransaction | None = None
        event.listen(session, "before_commit", self._write)
        event.listen(session, "after_commit", self._note_commit)
        event.listen(session, "after_soft_rollback", self._forget)
        event.listen(session, "after_transaction_end", self._publish)

    def add(
        self,
        session: Session,
        pools: Pools,
        message: PreparedMessage,
        key: str | None,
        *,
        in_outbox: bool,
    ) -> None:
        """Keep *message* until *session* commits."""
        current = session.get_nested_transaction() or session.get_transaction() or session.begin()
        transactions = []
        one: SessionTransaction | None = current
        while one is not None:
            transactions.append(one)
            one = one.parent
        self._messages.append(_Message(message, key, pools, in_outbox, tuple(transactions)))

    def _write(self, session: Session) -> None:
        """Insert what belongs to the transaction that is about to be committed, or to one within it."""
        ending = session.get_nested_transaction() or session.get_transaction()
        due = [one for one in self._messages if one.in_outbox and ending in one.transactions]
        if not due:
            return
        # What the session has not flushed yet is written first: a row that the message tells of, say.
        session.flush()
        connection = session.connection()
        write(
            Execution(connection),
            vendor_of(connection.dialect.name),
            [(one.message, one.key) for one in due],
        )
        self._messages = [one for one in self._messages if one not in due]

    def _note_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._committed = session.get_transaction()

    def _forget(self, session: Session, previous: SessionTransaction) -> None:
        self._messages = [one for one in self._messages if previous not in one.transactions]

    def _publish(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        messages, self._messages = self._messages, []
        committed, self._committed = self._committed, None
        if committed is transaction:
            _publish_all([one for one in messages if not one.in_outbox])


def _publish_all(messages: Sequence[_Message]) -> None:
    """Publish *messages*, those of each :class:`.Pools` together."""
    together: dict[int, tuple[Pools, list[Any]]] = {}
    for one in messages:
        together.setdefault(id(one.pools), (one.pools, []))[1].append(one.message)
    for pools, prepared in together.values():
        publish_prepared(pools, prepared, logger)
