"""A lease leaves nothing behind: what its borrower opened, took and set on the connection ends with it.

A connection on which something was done that outlives a lease is *untidy*: ``amqp/leftovers.py`` and
``virtual_leftovers.py`` note it where it is done. One look at that is all that the other leases cost.
``docs/explanation/leftovers.md`` says what ends how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from kombu.utils.functional import ChannelPromise

from ..engine.lease import Entry
from .connection import OpenConnection
from .left import Left
from .naming import uri_of

__all__ = ["end_lease", "keep_channel", "tidy"]

logger = logging.getLogger("kombu_pools_ext")


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
    left, borrower, engine = Left(), entry.borrower, entry.lender
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
    session = item.pooled_session
    if _is_replaced(item):
        return "leftovers"
    try:
        with session.within(time.monotonic() + session.seconds_to_tidy):
            reason = session.end_leftovers(left)
    except Exception as error:
        logger.debug("%s: what a lease left could not be ended: %r", uri_of(item), error)
        return "broken"
    if reason is None and item.settled_as is not None and not item.is_the_pools():
        # Its borrower has connected it to another broker, or otherwise than the pool would.
        reason = "switched"
    if reason is None:
        if item._default_channel is not None:
            for producer in item.pooled_producers.values_alive():
                keep_channel(producer)
        # Before it is looked at how many attributes there are: it is one of them.
        item.untidy = False
        item.put_back_settings()
    return reason


def _is_replaced(item: OpenConnection) -> bool:
    """Whether a borrower has put another channel in the place of the default one, which the pool's producers are on."""
    channels = [one._channel for one in tuple(item.pooled_producers.values())]
    channels += item.pooled_session.channels_in_use()
    default = item._default_channel
    return any(one is not default and not isinstance(one, ChannelPromise) for one in channels)


def keep_channel(producer: Any) -> None:
    """Let *producer*, which stays with its connection, have the default channel, which is open."""
    if isinstance(producer._channel, ChannelPromise):
        # kombu's property makes the promise good.
        producer.channel  # noqa: B018
