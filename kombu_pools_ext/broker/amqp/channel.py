"""A channel of py-amqp's that knows what was done on it that outlives a lease.

py-amqp forgets which deliveries are unacknowledged, and calls listeners in whichever thread reads. The
channel here remembers what has to end with the lease, and calls nobody while the pool itself reads.
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import amqp
from amqp import spec
from kombu.transport import pyamqp

from ..left import note_untidy
from .adopting import change_class, subclass
from .frames import check_properties

__all__ = ["Channel", "ChannelBase", "adopt_channel", "channel_class"]

logger = logging.getLogger("kombu_pools_ext")

#: The attributes of a channel that py-amqp and the pool set while it is in use.
_OWN = frozenset(
    {
        *("is_open", "is_closing", "active", "connection", "channel_id", "_confirm_selected"),
        *("unacked", "altered", "confirming", "counted_by", "_is_renewed"),
    }
)
#: Stands for a ``basic_get`` whose answer did not come.
_UNANSWERED = -1


class _Listeners(set[Any]):
    """The listeners to an event of a channel; each one that is added is noted."""

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


class ChannelBase(amqp.Channel):
    """Mixed into a channel class of py-amqp: notes what is left on it."""

    #: Whether it stays open when the lease ends, in which it was opened.
    is_kept = False

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        self._note_nothing()
        super().__init__(connection, *args, **kwargs)
        self._begin_to_note()

    def adopted(self) -> None:
        """Note what is left on it from now on; another class has made it."""
        self._note_nothing()
        self.confirming = self._confirm_selected
        self._begin_to_note()

    def _note_nothing(self) -> None:
        #: Delivery tags without an answer: to the broker the messages are this channel's.
        self.unacked: set[int] = set()
        #: Queues that end with the connection, and with nothing else.
        self.exclusive: set[str] = set()
        #: Whether its mode was changed, so that it is not what the next borrower expects.
        self.altered = False
        #: Whether it was put into confirm mode.
        self.confirming = False
        #: Who counts what is published on it in that mode, and waits for the answers.
        self.counted_by: Any = None
        self._is_renewed = False

    def _begin_to_note(self) -> None:
        before: Any = self.events  # type: ignore[has-type]  # py-amqp ships no types
        self.events = _Events(self._note)
        for event, listeners in before.items():
            self.events[event].update(listeners)
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
        note_untidy(self.connection)

    # -- what is taken --------------------------------------------------------------------------------

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().basic_consume(*args, **kwargs)

    def basic_get(self, queue: str = "", no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        self._note()
        if no_ack:
            return super().basic_get(queue, no_ack, *args, **kwargs)
        self.unacked.add(_UNANSWERED)
        message = super().basic_get(queue, no_ack, *args, **kwargs)
        if message is not None:
            self.unacked.add(message.delivery_info["delivery_tag"])
        self.unacked.discard(_UNANSWERED)
        return message

    def _on_basic_deliver(self, consumer_tag: str, delivery_tag: int, *args: Any) -> None:
        if consumer_tag not in self.no_ack_consumers:
            self.unacked.add(delivery_tag)
        if not self.connection.quiet:
            super()._on_basic_deliver(consumer_tag, delivery_tag, *args)

    # -- what is answered -----------------------------------------------------------------------------

    def basic_ack(
        self, delivery_tag: int, multiple: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        sent = super().basic_ack(delivery_tag, multiple, *args, **kwargs)
        if multiple:
            # Zero is the specification's way to say "all".
            self.unacked = {tag for tag in self.unacked if delivery_tag and tag > delivery_tag}
        else:
            self.unacked.discard(delivery_tag)
        return sent

    def basic_reject(self, delivery_tag: int, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_reject(delivery_tag, *args, **kwargs)
        self.unacked.discard(delivery_tag)
        return sent

    def basic_recover(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_recover(*args, **kwargs)
        self.unacked.clear()
        return sent

    def basic_recover_async(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().basic_recover_async(*args, **kwargs)
        self.unacked.clear()
        return sent

    def _do_revive(self) -> None:
        # The broker has closed it, and taken its messages back.
        if self.counted_by is not None:
            self.counted_by.channel_closed()
        self._open_again()

    def _open_again(self) -> None:
        self.unacked.clear()
        super()._do_revive()

    def renew(self) -> None:
        """Close it and open it again, under the same number: for the broker it is another one.

        :raises Exception: py-amqp's: it is of no use then.
        """
        self._is_renewed = True
        try:
            self.send_method(spec.Channel.Close, "BsBB", (0, "", 0, 0), wait=spec.Channel.CloseOk)
            self._open_again()
        finally:
            self._is_renewed = False

    def _on_close_ok(self) -> None:
        if not self._is_renewed:
            super()._on_close_ok()

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
        declared = super().queue_declare(queue, passive, durable, exclusive, *args, **kwargs)
        if exclusive and not passive:
            self._note()
            self.exclusive.add(queue if declared is None else declared.queue)
        return declared

    def queue_delete(self, queue: str = "", *args: Any, **kwargs: Any) -> Any:
        deleted = super().queue_delete(queue, *args, **kwargs)
        self.exclusive.discard(queue)
        return deleted

    def basic_qos(self, prefetch_size: int, prefetch_count: int, *args: Any, **kwargs: Any) -> Any:
        if prefetch_size or prefetch_count:
            self._alter()
        return super().basic_qos(prefetch_size, prefetch_count, *args, **kwargs)

    def tx_select(self) -> Any:
        self._alter()
        return super().tx_select()

    def flow(self, active: bool) -> Any:
        self._alter()
        return super().flow(active)

    def confirm_select(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        self.confirming = True
        return super().confirm_select(*args, **kwargs)

    def _alter(self) -> None:
        self._note()
        self.altered = True

    # -- what is sent ---------------------------------------------------------------------------------

    def basic_publish(self, *args: Any, **kwargs: Any) -> Any:
        counted_by = self.counted_by
        publish = super().basic_publish if counted_by is None else counted_by.publish
        return publish(*args, **kwargs)

    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        counted_by = self.counted_by
        publish = super().basic_publish_confirm if counted_by is None else counted_by.publish
        return publish(*args, **kwargs)

    def send_method(
        self, sig: Any, format: Any = None, args: Any = None, content: Any = None, **kwargs: Any
    ) -> Any:
        frame_max = getattr(self.connection, "frame_max", None)
        if content is not None and frame_max is not None:
            check_properties(content, frame_max)
        try:
            return super().send_method(sig, format, args, content, **kwargs)
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
            super()._on_basic_return(code, text, exchange, routing_key, message)
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
            self._remove_tag(consumer_tag)
        else:
            super()._on_basic_cancel(consumer_tag)


class Channel(ChannelBase, pyamqp.Channel):
    """A channel of kombu's transport for py-amqp."""


#: By class of py-amqp's channels.
_classes: dict[type[Any], type[Any]] = {pyamqp.Channel: Channel}


def channel_class(kind: type[Any]) -> type[Any]:
    """Return the class to use for *kind*, a channel class of py-amqp's: a subclass of it."""
    return kind if issubclass(kind, ChannelBase) else subclass(kind, ChannelBase, _classes)


def adopt_channel(channel: Any) -> Any:
    """Return *channel*, of py-amqp's class or of the application's, as one of the pool's."""
    if not isinstance(channel, ChannelBase):
        change_class(channel, channel_class(type(channel)))
        channel.adopted()
    return channel
