"""Publishing on one channel of AMQP: the fast path, and the confirms of what was published.

py-amqp's own confirms take the next ack for this message's, whosever it is. Here every publish on a channel in confirm
mode is counted, and an ack belongs to the message with its number. As long as a message is without an answer the
channel is not fit for another borrower.

The fast path is :meth:`kombu.Producer.publish` without the work that has no effect: the frames of a message are put
together here, and sent in one write. The exchange's name and the serialized body come from the same methods as in
kombu. A message of an unusual kind is left to kombu.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from amqp import spec
from amqp.exceptions import (
    ChannelError,
    ConnectionError,
    RecoverableConnectionError,
)
from kombu.messaging import Producer

from ...errors import Outcome, PublishError, PublishReturned
from ..message_id import new_message_id
from ..own_errors import raised_by_library
from .channel import Channel
from .compat import fits, is_unchanged
from .connection import Connection
from .deliveries import Delivery, DeliveryTracker
from .frames import ANSWER, encode, take_answers
from .json_encoder import octets_of, serialized
from .outcomes import error_of, is_for_a_publish, unknown
from .owner import Owner
from .silence import SILENCE, Silence
from .transport import TCPTransport, TLSTransport

__all__ = [
    "AT_ONCE",
    "KOMBUS",
    "MOST_PENDING",
    "ChannelPublisher",
    "allows_fast_path",
    "has_fast_path",
]

#: Returned for a message that kombu has to publish. Nothing has been done for it then.
KOMBUS = object()
#: Messages without an answer at most: their acks, 21 bytes each, fit into the smallest socket buffers, so that the
#: broker can go on writing, and hence reading, while we write.
MOST_PENDING = 1000
#: Bytes at most of mandatory messages without an answer. A returned message comes back with its body, and waits in the
#: broker's memory, and in ours, until it is read; more than that is on its way on no usual network.
MOST_RETURNABLE = 4 << 20

#: Bytes of messages that are gathered for one write: about what a socket's buffer takes at once.
GATHERED = 65536
#: Seconds for which they are gathered, as seen by the next message: those that are made slowly are sent meanwhile.
GATHERED_FOR = 0.01
#: Messages without an answer up to which each is sent at once: the broker begins early, and a short batch is sent while
#: its block goes on.
AT_ONCE = 8
#: Bytes that are read at once: the answers to 3,000 messages.
_CHUNK = 65536
#: What py-amqp takes for "nothing there yet".
_LATER = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
_monotonic = time.monotonic
_ACKED, _NACKED, _RETURNED, _UNKNOWN = Outcome


class ChannelPublisher(DeliveryTracker):
    """Publishes on one channel, which in confirm mode leads each ``basic_publish`` here.

    :param session: that of the connection, which the pool has opened.
    :param channel: a channel of that connection; with *counts*, one on which nothing was published in confirm mode yet.
    :param counts: whether what is published is counted, and its confirm waited for.
    :param selected: whether the channel is in confirm mode already.
    """

    __slots__ = (
        "_basic_publish",
        "_established",
        "_frame_writer",
        "_heeds",
        "_is_fast",
        "_selected",
        "_session",
        "_since",
        "_transport",
        "channel",
        "counts",
        "gathers",
        "heeding",
        "interrupted",
        "pipelined",
        "refused",
        "spoiled",
    )

    def __init__(
        self, session: Owner, channel: Any, *, counts: bool, selected: bool = False
    ) -> None:
        super().__init__()
        self._session = session
        self._established: Any = session.connection.established
        self._transport: Any = session.transport
        self.channel = channel
        self.counts = counts
        #: Messages that may be without an answer when ``publish`` returns; 0 is none: it waits.
        self.pipelined = 0
        #: Whether an answer failed to come, so that nothing may be sent here any more.
        self.interrupted = False
        #: Whether the channel is of no use to the next borrower.
        self.spoiled = False
        #: Whether the broker has refused something since the channel was opened.
        self.refused = False
        self._selected = selected
        #: Whether a message without confirms may wait for those that follow.
        self.gathers = False
        #: Whether :meth:`heed` is reading, or has raised: then nothing of the message has been written.
        self.heeding = False
        self._since = 0.0
        #: Whether :meth:`take_fast_path` was called.
        self._is_fast = False
        if counts:
            channel.counted_by = self
            channel.events["basic_ack"].add(self.ack)
            channel.events["basic_nack"].add(self.nack)
            channel.events["basic_return"].add(self._came_back)

    # -- the fast path ------------------------------------------------------------------------------------

    def take_fast_path(self) -> None:
        """Note the steps of a publish; from now on, one that was replaced closes the fast path."""
        established = self._established
        self._frame_writer = established._frame_writer
        self._basic_publish = self.channel.__dict__.get("basic_publish")
        capabilities = established.client_properties.get("capabilities", {})
        #: Whether the broker may say that it takes no messages: py-amqp looks for that before each publish.
        self._heeds: bool = capabilities.get("connection.blocked", False)
        self._is_fast = True

    def publish_fast(
        self, producer: Any, body: Any, /,
        message_id: Any = None, routing_key: Any = None, delivery_mode: Any = None,
        mandatory: Any = False, immediate: Any = False, priority: Any = 0,
        content_type: Any = None, content_encoding: Any = None, serializer: Any = None,
        headers: Any = None, compression: Any = None, exchange: Any = None, declare: Any = None,
        expiration: Any = None, timeout: float | None = None, confirm_timeout: float | None = None,
        **properties: Any,
    ) -> Any:  # fmt: skip
        """Publish *body*, within the deadline of the session; the parameters are kombu's.

        :param producer: one of a class that publishes as kombu's does.
        :returns: ``None``, or :data:`KOMBUS`.
        """
        state = producer.__dict__
        compression = producer.compression if compression is None else compression
        changed = "_publish" in state or "_prepare" in state
        if changed or compression or not self.fits() or not is_unchanged():
            return KOMBUS
        headers = {} if headers is None else headers
        routing_key = producer.routing_key if routing_key is None else routing_key
        own = producer.exchange
        name, delivery_mode = producer._delivery_details(exchange or own, delivery_mode)
        if expiration is not None:
            properties["expiration"] = str(int(expiration * 1000))
        content, content_type, content_encoding = serialized(
            producer, body, serializer, content_type, content_encoding, headers
        )
        octets = octets_of(content, content_encoding)
        if declare or (own.name and producer.auto_declare):
            octets = octets if self._declare(producer, own, declare) else None
        frames = None
        if octets is not None:
            frames = encode(
                self.channel.channel_id, self._established.frame_max, name, routing_key, mandatory,
                immediate, octets, message_id, content_type, content_encoding, priority,
                delivery_mode, headers, properties,
            )  # fmt: skip
        if frames is None or not (self.counts or self.heed()):
            # The second half of kombu's `publish`, because the body must not be serialized twice.
            properties |= {"delivery_mode": delivery_mode, "message_id": message_id}
            producer._publish(
                *(content, priority, content_type, content_encoding, headers, properties),
                *(routing_key, mandatory, immediate, name, [], timeout, confirm_timeout),
            )
        elif self.counts:
            delivery = Delivery(message_id, name, routing_key, mandatory or immediate, len(frames))
            self.send(delivery, self.gather if self.pipelined else self.put, frames)
        else:
            self.write(frames)
        return None

    def _declare(self, producer: Any, own: Any, declare: Any) -> bool:
        """Declare what kombu would before the message; return whether the fast path is still open."""
        if own.name and producer.auto_declare:
            declare = [] if declare is None else declare
            if own not in declare:
                # As kombu does: the caller may look at the list that it passed.
                declare.append(own)
        # kombu makes a copy of each entity before it looks whether that was declared: a fifth of the time of a publish.
        declared = self._established.client.declared_entities
        looks = type(producer).maybe_declare is Producer.maybe_declare
        for entity in declare:
            if not (looks and entity and entity.can_cache_declaration and hash(entity) in declared):
                producer.maybe_declare(entity, retry=False)
        # From here on it says whether anything of the message was written; until here, it was about the declarations.
        self._session.spoken = False
        return self.fits()

    def fits(self) -> bool:
        """Whether the channel is open, and no step of a publish was replaced."""
        channel, established = self.channel, self._established
        own = channel.__dict__
        return (
            channel.connection is established
            and established._transport is self._transport
            and self._transport.connected
            and established._frame_writer is self._frame_writer
            and own.get("basic_publish") is self._basic_publish
            and "send_method" not in own
            and "prepare_message" not in own
            and "drain_events" not in established.__dict__
        )

    def heed(self) -> bool:
        """Read what came unasked, as py-amqp does before each publish; return whether the fast path is still open.

        :raises Exception: py-amqp's, if it reads that the channel or the connection has ended.
        """
        if not self._heeds or self._transport.look() is None:
            return True
        self.heeding = True
        try:
            self._established.drain_events(timeout=0)
        except TimeoutError as error:
            # Else half a frame, or what only TLS is interested in. What was gathered is written before, and may fail.
            if self._transport.torn or not raised_by_library(error):
                raise
        self.heeding = False
        return self.fits()

    def write(self, frames: bytes) -> None:
        """Write *frames*, of one message without confirms, or :meth:`gather` them.

        :raises OSError, RecoverableConnectionError: if not all of it could be written: it is not in the broker then.
        """
        try:
            if self.gathers:
                self.gather(frames)
            else:
                self.put(frames)
        except TimeoutError as error:
            if not raised_by_library(error):
                raise
            # py-amqp's: the socket is of no use any more.
            raise RecoverableConnectionError("basic_publish: timed out") from error

    def put(self, frames: bytes) -> None:
        """:meth:`write`, with the socket's own error where the time was up."""
        self._transport.write(frames)
        self._established.bytes_sent += 1

    def gather(self, frames: bytes) -> None:
        """Keep *frames*, to write them together with those of later messages.

        They are written now if few messages are without an answer, or once there are :data:`GATHERED` bytes, or the
        first of them has been kept for :data:`GATHERED_FOR` seconds.
        """
        transport = self._transport
        if not transport.gathered:
            few = self.counts and len(self.pending) <= AT_ONCE
            if few or len(frames) >= GATHERED:
                self.put(frames)
                return
            self._since = _monotonic()
        self._established.bytes_sent += 1
        transport.gather(frames)
        if transport.gathered >= GATHERED or _monotonic() - self._since >= GATHERED_FOR:
            transport.flush()

    def read_answers(self) -> bool:
        """Read what has come, or what comes next, and take the acks and nacks that it begins with.

        What comes after them stays for py-amqp to read.

        :returns: whether there was any of them.

        :raises OSError: if the connection ended, or nothing came in time.
        """
        channel, established, transport = self.channel, self._established, self._transport
        listeners = channel.events
        if (
            channel.connection is not established
            or established._transport is not transport
            or not transport.connected
            or "drain_events" in established.__dict__
            or channel._pending
            or channel.is_closing
            or len(listeners["basic_ack"]) != 1
            or len(listeners["basic_nack"]) != 1
        ):
            # It was closed meanwhile; or py-amqp has to read, because somebody else listens, or replaced a method.
            return False
        data = transport._read_buffer
        if not data:
            # As py-amqp does it, for what a frame begins with.
            try:
                data = transport.receive(min(_CHUNK, established.frame_max))
            except TimeoutError:
                raise
            except OSError as error:
                if error.errno in _LATER and raised_by_library(error):
                    raise TimeoutError("nothing to read") from error
                transport.connected = False
                raise
            if not data:
                transport.connected = False
                raise OSError("Server unexpectedly closed connection")
        taken = take_answers(data, channel.channel_id, self)
        transport._read_buffer = data[taken:]
        established.bytes_recv += taken // ANSWER
        return taken > 0

    # -- confirms -----------------------------------------------------------------------------------------

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

        :param timeout: seconds for the write and the confirm together, unless there is a *confirm_timeout*; by default
            the pool's.
        :raises PublishNacked: if at least one of its queues refused it.
        :raises PublishReturned: if it is mandatory, and there is no queue for it.
        :raises PublishUnknown: if it was sent, and no confirm came.
        :raises ChannelError: of py-amqp's, if the broker closed the channel for it: no such exchange, no permission.
        :raises OSError, ConnectionError: of Python's or py-amqp's, if it could not be sent: it is not in the broker.
        """
        session = self._session
        if session.deadline is None:
            # Not by way of a pooled producer, which has its own bound.
            seconds = confirm_timeout or timeout or self._session.connection.confirm_timeout
            with session.within(_monotonic() + seconds):
                try:
                    self._publish(msg, exchange, routing_key, mandatory, immediate, argsig)
                except PublishReturned as error:
                    # As in kombu, nothing is raised if a callback has heard of it.
                    if not error.heard:
                        raise
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
        """Count *delivery*, write it by ``write(data)``, and wait for its confirm, unless it is pipelined.

        All of it ends by the session's deadline. Raises what :meth:`publish` raises.
        """
        if self.interrupted:
            raise RecoverableConnectionError(
                "an earlier confirm did not come, so this channel is not used any more"
            )
        if self.refused and not self.pending:
            self._open_anew()
        if not self._selected:
            self._select()
        session, before = self._session, self.sent
        session.spoken = False
        try:
            # As add(), written out.
            self.sent = before + 1
            self.pending[before + 1] = delivery
            if delivery.mandatory:
                self.returnable += delivery.size
            write(data)
        except BaseException:
            # A message that AMQP cannot encode, with a header of an unknown type say, was not begun: all else goes on.
            begun = session.spoken
            # In a batch, one that was begun stays counted, because the broker may count it. It does not route it,
            # because the end is missing.
            if not (begun and self.pipelined):
                self._forget(delivery, before)
            if begun or self.channel.connection is None:
                self.interrupt()
            raise
        if self.pipelined:
            if len(self.pending) >= self.pipelined or self.returnable > MOST_RETURNABLE:
                # Until half of them are answered, not one, because then the next message would wait as well.
                self.drain(self.pipelined // 2, MOST_RETURNABLE // 2)
            return
        self._wait_for(delivery)
        if delivery.outcome is not _ACKED:
            raise error_of(delivery)

    def nack(self, tag: int, multiple: bool) -> None:
        self.refused = True
        super().nack(tag, multiple)

    def fail_all(self, unsent: int = 0) -> None:
        # What was gathered with them is not sent any more: the broker would count it.
        super().fail_all(unsent + self._transport.forget())

    def _open_anew(self) -> None:
        """Let the broker forget what it knows of the channel.

        RabbitMQ remembers a queue's leader for each channel. One that met a quorum queue without a leader refuses all
        messages for it from then on, also when there is a new one.
        """
        channel = self.channel
        self.refused = False
        if channel.callbacks or channel.unacked:
            # Somebody consumes on it, and would hear no more; or has yet to acknowledge what came.
            return
        try:
            channel.renew()
        except BaseException:
            self.interrupt()
            raise
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
        session = self._session
        # Whoever sends has set one.
        until: Any = session.deadline
        silence: Silence | None = None
        try:
            session.deadline = min(until, _monotonic() + SILENCE)
            while delivery.outcome is None:
                try:
                    if not (self._is_fast and self.read_answers()):
                        self._established.drain_events()
                except TimeoutError as error:
                    silence = silence or Silence(session, until)
                    if not (raised_by_library(error) and silence.is_borne()):
                        raise
        except PublishError:
            # It is about another message, which a callback has published meanwhile.
            self.interrupt()
            raise
        except ChannelError as error:
            # UNKNOWN by now means that this channel was closed. If only one message was on its way, that was refused.
            if delivery.outcome is _UNKNOWN and alone and error.method_sig == spec.Basic.Publish:
                raise
            if delivery.outcome is None:
                self.interrupt()
            raise unknown(delivery, error) from error
        except BaseException as error:
            self.interrupt()
            if (
                isinstance(error, OSError | ConnectionError)
                and raised_by_library(error)
                and not (alone and is_for_a_publish(error))
            ):
                raise unknown(delivery, error) from error
            raise
        finally:
            session.deadline = until

    def drain(self, left: int = 0, returnable: int = 0) -> None:
        """Read until at most *left* messages, and *returnable* bytes that may come back, are without an answer.

        :raises BaseException: whatever kept the answers from coming; all messages are settled then.
        """
        try:
            self._transport.flush()
            while len(self.pending) > left or self.returnable > returnable:
                if not (self._is_fast and self.read_answers()):
                    self._established.drain_events()
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
        self.fail_all()

    def _forget(self, last: Delivery, before: int) -> None:
        """Count as if *last* had never been there, however far it was counted.

        :param before: the messages that were sent before it.
        """
        if self.sent < before:
            return  # all was lost meanwhile
        if self.pending.get(before + 1) is last:
            del self.pending[before + 1]
        self.sent = before
        self.returnable = sum(one.size for one in self.pending.values() if one.mandatory)

    def channel_closed(self) -> None:
        """Note that the broker has closed the channel. Py-amqp opens it anew, and without confirm mode."""
        self.spoiled = True
        self._selected = False
        self.fail_all()

    def _came_back(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        # Somebody may have deleted what was declared on this connection: the next message declares it again.
        self._session.connection.declared_entities.clear()
        self.on_return(
            error.reply_code,
            error.reply_text,
            exchange,
            routing_key,
            message.properties.get("message_id"),
            heard=len(self.channel.events["basic_return"]) > 1,
        )


def has_fast_path(established: Any, channel: Any) -> bool:
    """Whether there is a fast path on *channel*, and it is known that it does the same as kombu's ``publish``."""
    return type(channel) is Channel and allows_fast_path(established)


def allows_fast_path(established: Any) -> bool:
    """Whether there is a fast path on channels of *established* that are of the pool's class."""
    return (
        type(established) is Connection
        and type(established._transport) in (TCPTransport, TLSTransport)
        and fits()
    )
