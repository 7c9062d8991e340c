"""Publisher confirms: what was sent on a channel, and what the broker said of each message.

py-amqp's own confirms take the next ack for this message's, whosever it is. Here every publish on a channel in
confirm mode is counted, whoever makes it, and an ack belongs to the message with its number. As long as a message
is without an answer the channel is not fit for another borrower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from os import urandom
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import (
    ChannelError,
    ConnectionError,
    RecoverableConnectionError,
)

from ..engine.fork import child_begins, mark, register
from ..errors import Outcome, PublishNacked, PublishReturned, PublishUnknown
from .own_errors import raised_by_carrier
from .tally import Delivery, Tally

if TYPE_CHECKING:
    from .driver import OpenConnection

__all__ = ["CONFIRM_TIMEOUT", "Confirms", "Delivery", "Tally", "default_channel", "new_message_id"]

#: Seconds for a publish, confirm included, where nobody says another number.
CONFIRM_TIMEOUT = 10.0
#: Messages without an answer at most: their acks, 21 bytes each, fit into the smallest socket buffers, so that the
#: broker can go on writing, and hence reading, while we write.
MOST_PENDING = 1000
#: Bytes at most of mandatory messages without an answer. A returned message comes back with its body, and waits in the
#: broker's memory, and in ours, until it is read; more than that is on its way on no usual network.
MOST_RETURNABLE = 4 << 20

_monotonic = time.monotonic
#: Reply codes of a broker that ends the connection for a message which it cannot take as it is. An internal error (541)
#: or a node that shuts down (320) may have had it before.
_CANNOT_TAKE = frozenset({501, 502, 503, 504, 505, 530, 540})
_ACKED, _NACKED, _RETURNED, _UNKNOWN = Outcome


class _Ids:
    """UUIDs of version 4 that share their random part within a process, and count on from a random number."""

    __slots__ = ("__weakref__", "make")

    #: The next one; written in C, so that no two threads get the same.
    make: Callable[[], str]

    def __init__(self) -> None:
        self.after_fork_in_child()
        register(self)

    def after_fork_in_child(self) -> None:
        digits = urandom(16).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        shared = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}"
        # Half of the numbers at least are left: more than a process ever sends.
        first = int(digits[20:], 16) >> 1
        self.make = map(f"{shared}-%012x".__mod__, count(first)).__next__


_ids = _Ids()


def new_message_id() -> str:
    """A ``message_id`` that nobody else has, in this process or another: a UUID, in a tenth of the time of uuid's."""
    if not mark[0]:
        child_begins()
    return _ids.make()


class Confirms(Tally):
    """The publishing side of a channel in confirm mode, in place of the channel's own ``basic_publish``.

    :param item: the connection, which has a wire.
    :param channel: one on which nothing was published in confirm mode yet.
    :param selected: whether the channel is in that mode already.
    """

    __slots__ = (
        "_established",
        "_item",
        "_selected",
        "_wire",
        "channel",
        "interrupted",
        "pipelined",
        "refused",
        "spoiled",
    )

    def __init__(self, item: OpenConnection, channel: Any, *, selected: bool = False) -> None:
        super().__init__()
        self._item = item
        self._established = item.established
        self._wire: Any = item.wire
        self.channel = channel
        #: Messages that may be without an answer when ``publish`` returns; 0 is none: it waits.
        self.pipelined = 0
        #: Whether an answer failed to come, so that nothing may be sent here any more.
        self.interrupted = False
        #: Whether the channel is of no use to the next borrower.
        self.spoiled = False
        #: Whether the broker has refused something since the channel was opened.
        self.refused = False
        self._selected = selected
        # Not set: what is set on a channel is noted as its borrower's.
        channel.__dict__.update(
            basic_publish=self.publish,
            basic_publish_confirm=self.publish,
            _do_revive=self._revive,
        )
        channel.events["basic_ack"].add(self.ack)
        channel.events["basic_nack"].add(self.nack)
        channel.events["basic_return"].add(self._came_back)

    def publish(
        self,
        msg: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        argsig: str = "Bssbb",
    ) -> None:
        """Py-amqp's ``basic_publish``; returns when the broker has *msg*, unless it is pipelined.

        :param timeout: seconds for all of it, as is *confirm_timeout*; the pool's, if there is neither.
        :raises PublishNacked: if at least one of its queues refused it.
        :raises PublishReturned: if it is mandatory, and there is no queue for it.
        :raises PublishUnknown: if the broker's word did not come.
        :raises ChannelError: of py-amqp's, if the broker closed the channel for it: no such exchange, no permission.
        :raises OSError, ConnectionError: of Python's or py-amqp's, if it could not be sent: it is not there.
        """
        wire = self._wire
        if wire.deadline is None:
            # Not by way of a pooled producer, which has its own bound.
            seconds = confirm_timeout or timeout or self._item.confirm_timeout
            with wire.within(_monotonic() + seconds):
                self._publish(msg, exchange, routing_key, mandatory, immediate, argsig)
        else:
            self._publish(msg, exchange, routing_key, mandatory, immediate, argsig)

    def _publish(
        self,
        msg: Any,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        argsig: str,
    ) -> None:
        message_id = msg.properties.get("message_id")
        if message_id is None:
            message_id = msg.properties["message_id"] = new_message_id()
        self.send(
            Delivery(message_id, exchange, routing_key, mandatory or immediate, len(msg.body)),
            partial(
                self.channel.send_method,
                spec.Basic.Publish,
                argsig,
                (0, exchange, routing_key, mandatory, immediate),
            ),
            msg,
        )

    def send(self, delivery: Delivery, write: Callable[[Any], Any], data: Any) -> None:
        """Publish *delivery* by ``write(data)``, within the wire's time; otherwise as :meth:`publish`."""
        if self.interrupted:
            raise RecoverableConnectionError(
                "an earlier confirm did not come, so this channel is not used any more"
            )
        if self.refused and not self.pending:
            self._open_anew()
        if not self._selected:
            self._select()
        wire, before = self._wire, self.sent
        wire.spoken = False
        try:
            self.add(delivery)
            write(data)
        except BaseException:
            # What AMQP has no frame for, a header of an unknown type say, was not even begun: all else goes on.
            begun = wire.spoken
            # Else, whether the broker counts it is anybody's guess. It does not route it: the end is missing.
            if not (begun and self.pipelined):
                self._forget(delivery, before)
            if begun or self.channel.connection is None:
                self.interrupt()
            raise
        if self.pipelined:
            if len(self.pending) >= self.pipelined or self.returnable > MOST_RETURNABLE:
                # To half of it, not to one less, else the next message waits as well.
                self.drain(self.pipelined // 2, MOST_RETURNABLE // 2)
            return
        self._wait_for(delivery)
        if delivery.outcome is not _ACKED:
            self._raise(delivery)

    def nack(self, tag: int, multiple: bool) -> None:
        self.refused = True
        super().nack(tag, multiple)

    def lose(self, unsent: int = 0) -> None:
        # What was gathered with them is not sent any more: the broker would count it.
        super().lose(unsent + self._wire.forget())

    def _open_anew(self) -> None:
        """Close the channel and open it again, under the same number: for the broker it is another one.

        RabbitMQ remembers a queue's leader for each channel. One that met a quorum queue without a leader refuses all
        messages for it from then on, also when there is a new one.
        """
        channel = self.channel
        self.refused = False
        if channel.callbacks or getattr(channel, "unacked", None):
            # Somebody consumes on it, and would hear no more; or has yet to acknowledge what came.
            return
        listeners = channel._callbacks
        collect = listeners[spec.Channel.CloseOk]
        listeners[spec.Channel.CloseOk] = lambda: None
        try:
            channel.send_method(
                spec.Channel.Close, "BsBB", (0, "", 0, 0), wait=spec.Channel.CloseOk
            )
            type(channel)._do_revive(channel)
        except BaseException:
            self.interrupt()
            raise
        finally:
            listeners[spec.Channel.CloseOk] = collect
        self._selected = False
        self.sent = 0

    def _select(self) -> None:
        try:
            self.channel.confirm_select()
        except BaseException:
            self.interrupt()
            raise
        self._selected = True

    def _wait_for(self, delivery: Delivery) -> None:
        alone = len(self.pending) == 1
        drain_events = self._read
        try:
            while delivery.outcome is None:
                drain_events()
        except ChannelError as error:
            # Lost by now: it was this channel. And the one message that was on its way is the one that was refused.
            if delivery.outcome is _UNKNOWN and alone and error.method_sig == spec.Basic.Publish:
                raise
            if delivery.outcome is None:
                self.interrupt()
            raise self._unknown(delivery, error) from error
        except BaseException as error:
            self.interrupt()
            if (
                isinstance(error, OSError | ConnectionError)
                and raised_by_carrier(error)
                and not (alone and _is_for_a_publish(error))
            ):
                raise self._unknown(delivery, error) from error
            raise

    def _read(self) -> None:
        """Read what has come, or what comes next: all the answers that it begins with, else one method."""
        direct = self._item.direct
        if direct is not None and direct.confirms is self and direct.answers():
            return
        self._established.drain_events()

    def _raise(self, delivery: Delivery) -> None:
        message_id = delivery.message_id
        if delivery.outcome is _NACKED:
            raise PublishNacked(
                f"message {message_id} was refused: at least one of its queues does not have it, because it is full, "
                "say; others may have it",
                message_id,
            )
        if delivery.returned is not None and delivery.outcome is _RETURNED:
            raise PublishReturned(
                message_id, *delivery.returned, delivery.exchange, delivery.routing_key
            )
        # Whoever else reads this connection met the end of the channel.
        raise self._unknown(delivery, RecoverableConnectionError("the channel was closed"))

    @staticmethod
    def _unknown(delivery: Delivery, error: BaseException) -> PublishUnknown:
        return PublishUnknown(
            f"message {delivery.message_id} may be in the broker, or not: it was sent, and no confirm came "
            f"({type(error).__name__}: {error}); a copy is told by its message_id",
            delivery.message_id,
        )

    def drain(self, left: int = 0, returnable: int = 0) -> None:
        """Read until at most *left* messages, and *returnable* bytes that may come back, are without an answer.

        :raises BaseException: whatever kept the answers from coming; all messages are settled then.
        """
        drain_events = self._read
        try:
            self._wire.flush()
            while len(self.pending) > left or self.returnable > returnable:
                drain_events()
        except ChannelError:
            if self.pending:
                self.interrupt()
            raise
        except BaseException:
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Give up what is without an answer, and this channel."""
        self.interrupted = self.spoiled = True
        self.lose()

    def _forget(self, last: Delivery, before: int) -> None:
        """Count as if *last* had never been there, however far its counting came; *before* were sent before it."""
        if self.sent < before:
            return  # all was lost meanwhile
        if self.pending.get(before + 1) is last:
            del self.pending[before + 1]
        self.sent = before
        self.returnable = sum(one.size for one in self.pending.values() if one.mandatory)

    def _revive(self) -> None:
        """Called by py-amqp when the broker has closed the channel: it opens it anew, and without confirm mode."""
        self.spoiled = True
        self._selected = False
        self.lose()
        type(self.channel)._do_revive(self.channel)

    def _came_back(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        # Somebody may have deleted what was declared on this connection: the next message declares it again.
        self._item.declared_entities.clear()
        self.back(
            error.reply_code,
            error.reply_text,
            exchange,
            routing_key,
            message.properties.get("message_id"),
        )


def _is_for_a_publish(error: Any) -> bool:
    """Whether the broker has ended the connection for a message that it has not taken."""
    return (
        isinstance(error, ConnectionError)
        and error.method_sig == spec.Basic.Publish
        and error.reply_code in _CANNOT_TAKE
    )


def default_channel(item: OpenConnection) -> Any:
    """The default channel of *item*, whose publishes wait for their confirms where the connection asks for that.

    :raises RecoverableConnectionError: of py-amqp's, if the connection is closed. It is not opened again.
    """
    channel, confirms = item._default_channel, item.confirms
    if confirms is not None and confirms.channel is channel:
        return channel
    wanted = item.established.confirm_publish
    selected = False
    # Else it stays the pool's: a borrower of the connection has opened another default channel before.
    if channel is None and item.first_channel is not None:
        channel, item.first_channel = item.first_channel, None
        item._default_channel = channel
        item.untidy = True
        selected = wanted
    if channel is None or (wanted and channel._confirm_selected):
        # The second: somebody had it before as a plain channel, and nobody counted.
        channel = item._default_channel = item.transport.create_channel(item.established)
    if wanted:
        item.confirms = Confirms(item, channel, selected=selected)
    return channel
