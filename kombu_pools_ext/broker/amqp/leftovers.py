"""What a lease left behind on an AMQP connection, and how it is ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amqp import spec

from ..left import Left
from .owner import Owner

__all__ = ["MOST_CHANNELS", "end"]

#: Channels that are closed one by one; each is a round trip, and so many of them take as long as a new connection.
MOST_CHANNELS = 16


def end(session: Owner, left: Left) -> str | None:
    """End what was left on the connection of *session*, and count it in *left*.

    :returns: why the connection must be closed now; ``None`` if it need not be.
    :raises Exception: py-amqp's, for what it met: the connection is of no use then.
    """
    item = session.connection
    established = item.established
    established.on_blocked = established.on_unblocked = None
    other_mode = _put_back_mode(established)
    default = item._default_channel
    ending = []
    for number, channel in tuple(established.channels.items()):
        if number == 0 or channel is session.first_channel or channel.is_kept:
            continue
        left.consumers += len(channel.callbacks)
        left.unacked += len(channel.unacked)
        if channel is not default:
            left.channels += 1
            ending.append(channel)
        elif other_mode or _is_used_up(session, channel):
            ending.append(channel)
        else:
            _forget_listeners(session, channel)
    if len(ending) > MOST_CHANNELS or not all(channel.is_open for channel in ending):
        return "leftovers"
    established.quiet = True
    try:
        for channel in ending:
            _close(channel)
    finally:
        established.quiet = False
    if default in ending:
        item._default_channel = session.confirms = session.publisher = None
        # They publish on it.
        item.pooled_producers.clear()
    return None


def _put_back_mode(established: Any) -> bool:
    """Have publishes confirmed as before the lease; whether they were not within it."""
    state = established.__dict__
    if "confirmed_before" not in state:
        return False
    before, now = state.pop("confirmed_before"), state["confirm_publish"]
    state["confirm_publish"] = before
    return bool(before != now)


def _is_used_up(session: Owner, channel: Any) -> bool:
    """Whether the default channel is not fit for the next borrower."""
    counted = session.confirms is not None and session.confirms.channel is channel
    return bool(
        channel.callbacks
        or channel.unacked
        or channel.exclusive
        or channel.altered
        or (channel.confirming and not counted)
    )


def _close(channel: Any) -> None:
    """Close *channel*, and its exclusive queues, without py-amqp's word on each message that still comes."""
    for name in tuple(channel.exclusive):
        channel.queue_delete(name, nowait=True)
    channel.send_method(spec.Channel.Close, "BsBB", (0, "", 0, 0), wait=spec.Channel.CloseOk)


def _forget_listeners(session: Owner, channel: Any) -> None:
    """Leave those on *channel* that are the pool's."""
    for listeners in tuple(channel.events.values()):
        for listener in tuple(listeners):
            if not _is_the_pools(session, listener):
                listeners.discard(listener)


def _is_the_pools(session: Owner, listener: Any) -> bool:
    if session.confirms is not None and getattr(listener, "__self__", None) is session.confirms:
        return True
    return any(listener == producer.on_return for producer in _producers(session))


def _producers(session: Owner) -> Iterator[Any]:
    yield from session.connection.pooled_producers.values_alive()
