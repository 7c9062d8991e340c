"""What a borrower does on an AMQP connection that outlives its lease, noted where it is done.

py-amqp forgets which deliveries are unacknowledged, and calls whoever is registered from whichever thread reads. The
classes here stand in the place of its own: they note what has to end with the lease, and keep silent while the pool
itself reads.
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp import spec
from kombu.transport import pyamqp

from .frames import check_properties
from .inbound import Inbound
from .left import Left
from .reading import UNREADABLE, told

if TYPE_CHECKING:
    from .driver import OpenConnection

__all__ = ["Channel", "Connection", "end", "noting"]

logger = logging.getLogger("kombu_pools_ext")

#: Channels that are closed one by one; each is a round trip, and so many of them take as long as a new connection.
MOST_CHANNELS = 16
#: The attributes of a channel that py-amqp and the pool set while it is in use.
_OWN = frozenset(
    {
        *("is_open", "is_closing", "active", "connection", "channel_id", "_confirm_selected"),
        *("unacked", "altered", "confirming"),
    }
)
#: Stands for a ``basic_get`` whose answer did not come.
_UNANSWERED = -1


class _Listeners(set[Any]):
    """Who listens to an event of a channel; whoever is added is noted."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def add(self, listener: Any) -> None:
        self._note()
        super().add(listener)

    def update(self, *others: Any) -> None:
        self._note()
        super().update(*others)


class _Events(defaultdict[str, Any]):
    """A channel's listeners, by event."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__(lambda: _Listeners(note))


class _Channel:
    """Mixed into a channel class of py-amqp: notes what is left on it."""

    # Of the class behind this mix-in.
    connection: Any
    callbacks: dict[str, Any]
    no_ack_consumers: set[str]

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        #: Delivery tags without an answer: to the broker the messages are this channel's.
        self.unacked: set[int] = set()
        #: Queues that end with the connection, and with nothing else.
        self.exclusive: set[str] = set()
        #: Whether its mode was changed, so that it is not what the next borrower expects.
        self.altered = False
        #: Whether it was put into confirm mode.
        self.confirming = False
        super().__init__(connection, *args, **kwargs)  # type: ignore[call-arg]  # as above
        self.events = _Events(self._note)
        #: Whether what is set from now on is a borrower's.
        self.__dict__["settled"] = True
        self._note()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN and "settled" in self.__dict__:
            self._alter()
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._alter()
        super().__delattr__(name)

    def _note(self) -> None:
        client = getattr(self.connection, "client", None)
        if client is not None:
            client.untidy = True

    # -- what is taken --------------------------------------------------------------------------------

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().basic_consume(*args, **kwargs)  # type: ignore[misc]

    def basic_get(self, queue: str = "", no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        self._note()
        if no_ack:
            return super().basic_get(queue, no_ack, *args, **kwargs)  # type: ignore[misc]
        self.unacked.add(_UNANSWERED)
        message = super().basic_get(queue, no_ack, *args, **kwargs)  # type: ignore[misc]
        if message is not None:
            self.unacked.add(message.delivery_info["delivery_tag"])
        self.unacked.discard(_UNANSWERED)
        return message

    def _on_basic_deliver(self, consumer_tag: str, delivery_tag: int, *args: Any) -> None:
        if consumer_tag not in self.no_ack_consumers:
            self.unacked.add(delivery_tag)
        if not self.connection.quiet:
            super()._on_basic_deliver(consumer_tag, delivery_tag, *args)  # type: ignore[misc]

    # -- what is answered -----------------------------------------------------------------------------

    def basic_ack(
        self, delivery_tag: int, multiple: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        sent = super().basic_ack(delivery_tag, multiple, *args, **kwargs)  # type: ignore[misc]
        if multiple:
            # Zero is the specification's way to say "all".
            self.unacked = {tag for tag in self.unacked if delivery_tag and tag > delivery_tag}
        else:
            self.unacked.discard(delivery_tag)
        return sent

    def basic_reject(self, delivery_tag: int, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_reject(delivery_tag, *args, **kwargs)  # type: ignore[misc]
        self.unacked.discard(delivery_tag)
        return sent

    def basic_recover(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_recover(*args, **kwargs)  # type: ignore[misc]
        self.unacked.clear()
        return sent

    def basic_recover_async(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_recover_async(*args, **kwargs)  # type: ignore[misc]
        self.unacked.clear()
        return sent

    def _do_revive(self) -> None:
        # The broker has closed it, and taken its messages back.
        self.unacked.clear()
        super()._do_revive()  # type: ignore[misc]

    # -- what is changed ------------------------------------------------------------------------------

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        declared = super().queue_declare(  # type: ignore[misc]
            queue, passive, durable, exclusive, *args, **kwargs
        )
        if exclusive and not passive:
            self._note()
            self.exclusive.add(queue if declared is None else declared.queue)
        return declared

    def queue_delete(self, queue: str = "", *args: Any, **kwargs: Any) -> Any:
        deleted = super().queue_delete(queue, *args, **kwargs)  # type: ignore[misc]
        self.exclusive.discard(queue)
        return deleted

    def basic_qos(self, prefetch_size: int, prefetch_count: int, *args: Any, **kwargs: Any) -> Any:
        if prefetch_size or prefetch_count:
            self._alter()
        return super().basic_qos(prefetch_size, prefetch_count, *args, **kwargs)  # type: ignore[misc]

    def tx_select(self) -> Any:
        self._alter()
        return super().tx_select()  # type: ignore[misc]

    def flow(self, active: bool) -> Any:
        self._alter()
        return super().flow(active)  # type: ignore[misc]

    def confirm_select(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        self.confirming = True
        return super().confirm_select(*args, **kwargs)  # type: ignore[misc]

    def _alter(self) -> None:
        self._note()
        self.altered = True

    # -- what is sent ---------------------------------------------------------------------------------

    def send_method(
        self, sig: Any, format: Any = None, args: Any = None, content: Any = None, **kwargs: Any
    ) -> Any:
        frame_max = getattr(self.connection, "frame_max", None)
        if content is not None and frame_max is not None:
            check_properties(content, frame_max)
        try:
            return super().send_method(sig, format, args, content, **kwargs)  # type: ignore[misc]
        except struct.error as error:
            if not str(error).startswith("pack_into requires a buffer"):
                raise
            # py-amqp's buffer is as large as a frame, and nothing has been written.
            raise ValueError(
                "the arguments have no room in a frame of this broker, whose frame_max is "
                f"{frame_max} bytes ({error}); pass less of them, of a queue's arguments say"
            ) from error

    # -- what came unasked, while the pool reads ------------------------------------------------------

    def _on_basic_return(
        self, code: int, text: str, exchange: str, routing_key: str, message: Any
    ) -> None:
        if self.events.get("basic_return") and not self.connection.quiet:
            super()._on_basic_return(code, text, exchange, routing_key, message)  # type: ignore[misc]
            return
        # py-amqp would raise a channel's error, out of whatever reads next: another message's publish, or a check.
        logger.warning(
            "pool %r: message %s came back, and is in no queue: %s %s (exchange %r, routing key %r). Bind a queue; or "
            "publish with confirms, which raise PublishReturned, or with an on_return callback, to hear of it",
            getattr(self.connection.client, "pool_name", ""),
            message.properties.get("message_id"),
            *(code, text, exchange, routing_key),
        )

    def _on_basic_cancel(self, consumer_tag: str) -> None:
        if self.connection.quiet:
            self._remove_tag(consumer_tag)  # type: ignore[attr-defined]
        else:
            super()._on_basic_cancel(consumer_tag)  # type: ignore[misc]


class _Callback:
    """An attribute of a connection that a borrower may set for the time of its lease."""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, established: Any, owner: type[Any] | None = None) -> Any:
        return self if established is None else established.__dict__.get(self._name)

    def __set__(self, established: Any, callback: Any) -> None:
        established.__dict__[self._name] = callback
        client = getattr(established, "client", None)
        if client is not None:
            client.untidy = True


class _Confirming:
    """Whether what is published on a connection is confirmed; what a borrower sets is for the time of its lease."""

    def __get__(self, established: Any, owner: type[Any] | None = None) -> Any:
        return self if established is None else established.__dict__["confirm_publish"]

    def __set__(self, established: Any, value: Any) -> None:
        state = established.__dict__
        client = state.get("client")
        if client is not None:
            state.setdefault("confirmed_before", state["confirm_publish"])
            client.untidy = True
        state["confirm_publish"] = value


class _Connection:
    """Mixed into a connection class of py-amqp: its channels note, and the pool is told first."""

    #: Whether it is the pool that reads: nobody else is called then.
    quiet = False
    #: Whether it is read because something came to it that nobody has asked for.
    idle = False
    #: The pool's own, which no borrower can put something else in the place of.
    when_blocked: Callable[[str], object] | None = None
    when_unblocked: Callable[[], object] | None = None

    # Of the class behind this mix-in.
    frame_handler_cls: Any

    on_blocked = _Callback()
    on_unblocked = _Callback()
    confirm_publish = _Confirming()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frame_handler_cls = partial(Inbound, self.frame_handler_cls)

    def blocking_read(self, timeout: float | None = None) -> Any:
        try:
            return super().blocking_read(timeout)  # type: ignore[misc]
        except UNREADABLE as error:
            newer = told(error, getattr(getattr(self, "client", None), "wire", None))
            if newer is error:
                raise
            raise newer from error

    def _on_blocked(self) -> None:
        if self.when_blocked is not None:
            # py-amqp does not read the reason; these are its words.
            self.when_blocked("connection blocked, see broker logs")
        if not self.quiet:
            super()._on_blocked()  # type: ignore[misc]

    def _on_unblocked(self) -> None:
        if self.when_unblocked is not None:
            self.when_unblocked()
        if not self.quiet:
            super()._on_unblocked()  # type: ignore[misc]


class Channel(_Channel, pyamqp.Channel):
    """A channel of kombu's transport for py-amqp."""


class Connection(_Connection, pyamqp.Connection):
    """A connection of the same."""

    Channel = Channel


_classes: dict[type[Any], type[Any]] = {pyamqp.Connection: Connection}


def noting(kind: type[Any]) -> type[Any]:
    """*kind*, a class of py-amqp's connections, with what notes mixed into it and into its channels."""
    found = _classes.get(kind)
    if found is None:
        channel = type(kind.Channel.__name__, (_Channel, kind.Channel), {})
        found = _classes[kind] = type(kind.__name__, (_Connection, kind), {"Channel": channel})
    return found


def end(item: OpenConnection, left: Left) -> str | None:
    """End what was left on *item*, and count it in *left*; why it must be closed now, or ``None`` if it need not be.

    :raises Exception: py-amqp's, for what it met: the connection is of no use then.
    """
    established = item.established
    established.on_blocked = established.on_unblocked = None
    other_mode = _put_back_mode(established)
    default = item._default_channel
    ending = []
    for number, channel in tuple(established.channels.items()):
        if number == 0 or channel is item.first_channel:
            continue
        left.consumers += len(channel.callbacks)
        left.unacked += len(channel.unacked)
        if channel is not default:
            left.channels += 1
            ending.append(channel)
        elif other_mode or _is_used_up(item, channel):
            ending.append(channel)
        else:
            _forget_listeners(item, channel)
    if len(ending) > MOST_CHANNELS or not all(channel.is_open for channel in ending):
        return "leftovers"
    established.quiet = True
    try:
        for channel in ending:
            _close(channel)
    finally:
        established.quiet = False
    if default in ending:
        item._default_channel = item.confirms = item.direct = None
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


def _is_used_up(item: OpenConnection, channel: Any) -> bool:
    """Whether the default channel is not fit for the next borrower."""
    counted = item.confirms is not None and item.confirms.channel is channel
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


def _forget_listeners(item: OpenConnection, channel: Any) -> None:
    """Leave those on *channel* that are the pool's."""
    for listeners in tuple(channel.events.values()):
        for listener in tuple(listeners):
            if not _is_the_pools(item, listener):
                listeners.discard(listener)


def _is_the_pools(item: OpenConnection, listener: Any) -> bool:
    if item.confirms is not None and getattr(listener, "__self__", None) is item.confirms:
        return True
    return any(listener == producer.on_return for producer in _producers(item))


def _producers(item: OpenConnection) -> Iterator[Any]:
    yield from tuple(item.pooled_producers.values())
