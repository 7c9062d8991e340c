"""A lease leaves nothing behind: what its borrower opened, took and set on the connection ends with it.

A connection on which something was done that outlives a lease is *untidy*: ``amqp_leftovers.py`` and
``virtual_leftovers.py`` note it where it is done. One look at that is all that the other leases cost.
``docs/explanation/leftovers.md`` says what ends how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kombu.utils.functional import ChannelPromise

from . import amqp_leftovers, lent_settings, virtual_leftovers
from .left import Left
from .naming import uri_of

if TYPE_CHECKING:
    from ..engine.lease import Entry
    from .driver import OpenConnection

__all__ = ["before_close", "close", "end_lease", "keep_channel", "tidy"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds for the broker to take everything back; a peer that takes longer is told nothing more.
TIDY_TIMEOUT = 1.0


def end_lease(
    release: Callable[[str | None], object], entry: Entry[OpenConnection], broken: str | None
) -> None:
    """End the lease of *entry*, whose connection is untidy.

    :param release: gives the connection back, and is told why it must not be lent again.
    :param broken: why the connection must not be lent again, if that is known.
    """
    item = entry.item
    # Closes the race of two releases of one lease: while one of them reads and writes here, the other must not give
    # the connection to somebody else.
    me = object()
    if item.__dict__.setdefault("tidied_by", me) is not me:
        return
    left, borrower, engine = Left(), entry.borrower, entry.engine
    reason: str | None = broken or "broken"
    try:
        if broken is None:
            reason = tidy(item, left)
    finally:
        del item.tidied_by
        release(reason)
    if engine is not None:
        left.tell(engine.name, borrower)


def tidy(item: OpenConnection, left: Left) -> str | None:
    """End what a lease left on *item*, and count it in *left*.

    :returns: why the connection must be closed now, a key of ``CLOSE_REASONS``; ``None`` if it may be lent again.
    """
    amqp = item.wire is not None
    end = amqp_leftovers.end if amqp else virtual_leftovers.end
    seconds = TIDY_TIMEOUT if amqp else item.answer_timeout
    try:
        with item.within(time.monotonic() + seconds):
            reason = end(item, left)
    except Exception as error:
        logger.debug("%s: what a lease left could not be ended: %r", uri_of(item), error)
        return "broken"
    if reason is None:
        if item._default_channel is not None:
            for producer in tuple(item.pooled_producers.values()):
                keep_channel(producer)
        # Before it is looked at how many attributes there are: it is one of them.
        item.untidy = False
        lent_settings.put_back(item)
    return reason


def keep_channel(producer: Any) -> None:
    """Let *producer*, which stays with its connection, have the default channel, which is open."""
    if isinstance(producer._channel, ChannelPromise):
        # kombu's property makes the promise good.
        producer.channel  # noqa: B018


def before_close(item: OpenConnection) -> float:
    """Have nobody called any more with what still comes to *item*.

    :returns: the seconds that it needs besides those for its goodbye.
    """
    if item.wire is not None:
        if item._connection is not None:
            item._connection.quiet = True
        return 0.0
    return virtual_leftovers.longest_poll(item) if item.untidy else 0.0


def close(item: OpenConnection) -> None:
    """Give back what was taken on *item*, where its goodbye does not; to be called before that."""
    if item.wire is None and item.untidy:
        virtual_leftovers.close_channels(item)
