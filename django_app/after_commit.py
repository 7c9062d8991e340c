"""What waits for a commit: one callback of Django's for each message, and those in a row go out together.

Django alone decides which messages survive: each has a callback of its own, registered by ``transaction.on_commit``. To
send several at once, the first one that is called has to know which of the later ones will be called too. That is so if
nothing was rolled back that the later one was registered within and the first one was not.
"""

from __future__ import annotations

import logging
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db import connections as databases

from kombu_pools_ext.dispatch import publish_prepared
from kombu_pools_ext.prepared import PreparedMessage

from .conf import pools

__all__ = ["AfterCommit", "register"]

logger = logging.getLogger("kombu_pools_ext.django")


class AfterCommit:
    """A message that waits for the commit.

    :param savepoints: that are open now, outermost first; ``None`` if that is not known.
    :param before: what was registered just before, with nothing in between; ``None`` if that was no message.
    """

    __slots__ = ("_place", "_robust", "_row", "_savepoints", "_sent", "message")

    def __init__(
        self,
        message: PreparedMessage,
        robust: bool,
        savepoints: tuple[str, ...] | None,
        before: AfterCommit | None,
    ) -> None:
        self.message = message
        self._robust = robust
        self._savepoints = savepoints
        self._sent = False
        row = None if before is None or savepoints is None else before._row_for(robust)
        #: The messages that were registered one after the other, and nothing else between them.
        self._row: list[AfterCommit] = [] if row is None else row
        self._place = len(self._row)

    def _row_for(self, robust: bool) -> list[AfterCommit] | None:
        """The row for the next message, this being the last one that Django still has."""
        row = self._row
        if self._robust != robust or self._place >= len(row) or row[self._place] is not self:
            return None
        # Those after it were rolled back.
        del row[self._place + 1 :]
        return row

    def registered(self) -> None:
        """Called when Django has it: now others may take it with them."""
        if not self._sent and self._place == len(self._row):
            self._row.append(self)

    def publish_after_commit(self) -> None:
        """Called by Django: publish this message, and those after it that Django is sure to call for too."""
        if self._sent:
            return
        together = self._survivors()
        for one in together:
            one._sent = True
        publish_prepared(pools, [one.message for one in together], logger)

    def _survivors(self) -> list[AfterCommit]:
        rest = self._row[self._place + 1 :]
        # A savepoint that is no longer open when the next message of the row is registered was not rolled back: else
        # Django would have dropped what was registered within it, and the row would have ended there. So of each
        # message's savepoints only those count that all later ones share; from the last to the first:
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
                # Its own callback knows.
                break
            if not one._sent:
                together.append(one)
        return together


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many savepoints both have, from the outermost on."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def register(message: PreparedMessage, *, db: str | None, robust: bool) -> None:
    """Have *message* published once the current transaction of the database *db* is committed; outside of one, now."""
    database = databases[db or DEFAULT_DB_ALIAS]
    waiting = AfterCommit(message, robust, _savepoints(database), _last_registered(database))
    transaction.on_commit(waiting.publish_after_commit, using=db, robust=robust)
    waiting.registered()


def _last_registered(database: Any) -> AfterCommit | None:
    """The last callback that *database* has, if it is a message's. It is looked at, never changed.

    Django has no other way to learn whether callbacks come between two messages. Should it keep them otherwise one day,
    each message goes out by itself.
    """
    try:
        last = database.run_on_commit[-1][1].__self__
    except (AttributeError, LookupError, TypeError):
        return None
    return last if isinstance(last, AfterCommit) else None


def _savepoints(database: Any) -> tuple[str, ...] | None:
    """The savepoints of *database* that are open; ``None`` if Django does not say."""
    open_now = getattr(database, "savepoint_ids", None)
    # An ``atomic(savepoint=False)`` has none: it rolls back what is around it.
    return None if open_now is None else tuple(one for one in open_now if one is not None)
