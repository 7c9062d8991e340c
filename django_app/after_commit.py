"""Messages that wait for a commit. Each has its own ``on_commit`` callback, and messages in a row are sent together.

Django alone decides which messages survive a rollback: each has its own callback, registered by
``transaction.on_commit``. To send several messages at once, the first callback has to know which of the later ones
Django will call too. It will call a later one if no savepoint was rolled back in which that one was registered, but the
first was not. Tasks of Celery that wait for a commit are messages of another kind: a row has those of one kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db import connections as databases

from kombu_pools_ext.dispatch import publish_prepared
from kombu_pools_ext.prepared import PreparedMessage

from .conf import pools

__all__ = ["AfterCommit", "Send", "logger", "register"]

logger = logging.getLogger("kombu_pools_ext.django")

#: Sends the messages of a row, logs each that failed, and raises the first error.
Send = Callable[[Sequence[Any]], None]


def _publish(messages: Sequence[PreparedMessage]) -> None:
    publish_prepared(pools, messages, logger)


class AfterCommit:
    """A message that waits for the commit.

    :param message: what *send* takes.
    :param savepoints: the savepoints that are open now, outermost first; ``None`` if they are not known.
    :param before: the message that was registered directly before this one; ``None`` if another callback was.
    """

    __slots__ = ("_place", "_robust", "_row", "_savepoints", "_send", "_sent", "message")

    def __init__(
        self,
        message: Any,
        robust: bool,
        savepoints: tuple[str, ...] | None,
        before: AfterCommit | None,
        send: Send = _publish,
    ) -> None:
        self.message = message
        self._send = send
        self._robust = robust
        self._savepoints = savepoints
        self._sent = False
        row = None if before is None or savepoints is None else before._row_for(robust, send)
        #: The messages that were registered one after the other, without another callback between them.
        self._row: list[AfterCommit] = [] if row is None else row
        self._place = len(self._row)

    def _row_for(self, robust: bool, send: Send) -> list[AfterCommit] | None:
        """Return the row for the next message, if this one is the last that Django still has."""
        row = self._row
        if (self._robust, self._send) != (robust, send):
            return None
        if self._place >= len(row) or row[self._place] is not self:
            return None
        # The messages after it were rolled back.
        del row[self._place + 1 :]
        return row

    def registered(self) -> None:
        """Note that Django has registered the callback, so that an earlier message may send this one."""
        if not self._sent and self._place == len(self._row):
            self._row.append(self)

    def publish_after_commit(self) -> None:
        """Publish this message, and those after it whose callbacks Django is certain to call. Django calls this."""
        if self._sent:
            return
        together = self._survivors()
        for one in together:
            one._sent = True
        self._send([one.message for one in together])

    def _survivors(self) -> list[AfterCommit]:
        rest = self._row[self._place + 1 :]
        # A savepoint that is closed when the next message of the row is registered was not rolled back: else Django
        # would have dropped the messages registered within it, and the row would have ended there. So only those
        # savepoints of a message count that all later messages share. Counted from the last message to the first:
        open_at_all: list[int] = []
        least = None
        later: tuple[str, ...] = ()
        for one in reversed(rest):
            mine = one._savepoints or ()
            least = len(mine) if least is None else min(least, _shared(mine, later))
            open_at_all.append(min(len(mine), least))
            later = mine
        survived = set(self._savepoints or ())
        together: list[AfterCommit] = [self]
        for one, count in zip(rest, reversed(open_at_all), strict=True):
            if not survived.issuperset((one._savepoints or ())[:count]):
                # Its own callback will send it, if it survives.
                break
            if not one._sent:
                together.append(one)
        return together


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many savepoints both have in common, from the outermost on."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def register(message: Any, *, db: str | None, robust: bool, send: Send = _publish) -> None:
    """Send *message* once the current transaction of database *db* is committed; outside a transaction, now.

    :param send: gets *message*, and those that were registered after it in a row; it publishes prepared messages.
    """
    database = databases[db or DEFAULT_DB_ALIAS]
    waiting = AfterCommit(message, robust, _savepoints(database), _last_registered(database), send)
    transaction.on_commit(waiting.publish_after_commit, using=db, robust=robust)
    waiting.registered()


def _last_registered(database: Any) -> AfterCommit | None:
    """Return the last callback of *database* if it belongs to a message. Django's list is only read.

    Django offers no other way to see whether a callback was registered between two messages. If a later Django stores
    callbacks in another way, each message is sent by itself.
    """
    try:
        last = database.run_on_commit[-1][1].__self__
    except (AttributeError, LookupError, TypeError):
        return None
    return last if isinstance(last, AfterCommit) else None


def _savepoints(database: Any) -> tuple[str, ...] | None:
    """Return the open savepoints of *database*; ``None`` if Django does not tell them."""
    open_now = getattr(database, "savepoint_ids", None)
    # An ``atomic(savepoint=False)`` has no savepoint: a rollback in it rolls back the block around it.
    return None if open_now is None else tuple(one for one in open_now if one is not None)
