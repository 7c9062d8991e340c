"""A channel, as the broker sees it: confirms, deliveries, and the methods that a client sends on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from amqp import spec

from ..model.binding import EXCHANGE, QUEUE
from ..model.entry import Entry
from ..model.message import Message
from ..model.queue import Queue
from ..model.refusals import Refusal, not_modelled
from ..model.vhost import VirtualHost
from .consumption import Consumption
from .frames import content, message, method

__all__ = ["Channel", "Client", "Incoming"]

#: AMQP's flags of properties that the broker looks at.
_REPLY_TO, _EXPIRATION, _USER_ID, _HEADERS = 0x0200, 0x0100, 0x0010, 0x2000
#: Bytes of the largest message: RabbitMQ's ``max_message_size``.
_LARGEST = 134217728
#: The longest time in milliseconds: Erlang's timers count in 32 bits.
_LONGEST = (1 << 32) - 1


class Client(Protocol):
    """The connection of a channel."""

    #: Bytes of a frame.
    frame_max: int
    user: str

    def send(self, data: bytes) -> None:
        """Send frames."""
        ...

    def published(self, channel: Channel, incoming: Incoming, sent: Message) -> None:
        """Take a message that is complete."""
        ...


@dataclass
class Incoming:
    """A message that is coming: first its method, then its properties, then its body."""

    exchange: str
    routing_key: str
    mandatory: bool
    encoded: bytes | None = None
    missing: int = 0
    parts: list[bytes] | None = None


class Channel:
    """One channel of a connection.

    :param number: AMQP's number of it.
    """

    def __init__(self, client: Client, number: int, vhost: VirtualHost) -> None:
        self._client = client
        self.number = number
        self.vhost = vhost
        #: Whether it was refused, and waits for the client to note that.
        self.closing = False
        self.confirms = False
        #: The number of the last message that was published in confirm mode.
        self.published = 0
        self._deliveries = count(1)
        self._tags = count(1)
        self._prefetch = 0
        self._prefetch_in_all = 0
        self._last_queue = ""
        self.consumers: dict[str, Consumption] = {}
        self._unacknowledged: dict[int, tuple[Entry, Consumption | None]] = {}
        self.incoming: Incoming | None = None

    def send(self, sig: tuple[int, int], form: str = "", *arguments: Any) -> None:
        """Send a method."""
        self._client.send(method(self.number, sig, form, *arguments))

    def handle(self, sig: tuple[int, int], arguments: list[Any]) -> None:
        """Do what the client asks by a method.

        :raises Refusal: what the broker says instead.
        :raises NotImplementedError: if that is not modelled.
        """
        handler = _HANDLERS.get(sig)
        if handler is None:
            if sig[0] == spec.Tx.CLASS_ID:
                raise not_modelled("transactions (tx.select)")
            raise Refusal(503, f"unexpected method {sig}")
        handler(self, *arguments)

    # -- publishing ---------------------------------------------------------------------------------------

    def _publish(
        self, _: int, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> None:
        if immediate:
            raise Refusal(540, "immediate=true")
        self.incoming = Incoming(exchange, routing_key, mandatory)

    def header(self, payload: bytes) -> None:
        """Take the properties of the message that is coming."""
        incoming = self.incoming
        if incoming is None or incoming.encoded is not None:
            raise Refusal(505, "a header frame came unexpectedly")
        incoming.missing = int.from_bytes(payload[4:12], "big")
        incoming.encoded = payload[12:]
        incoming.parts = []
        self._complete(incoming)

    def body(self, payload: bytes) -> None:
        """Take a part of the body of the message that is coming."""
        incoming = self.incoming
        if incoming is None or incoming.parts is None or len(payload) > incoming.missing:
            raise Refusal(505, "a body frame came unexpectedly")
        incoming.parts.append(payload)
        incoming.missing -= len(payload)
        self._complete(incoming)

    def _complete(self, incoming: Incoming) -> None:
        if incoming.missing or incoming.encoded is None or incoming.parts is None:
            return
        self.incoming = None
        body = b"".join(incoming.parts)
        if self.confirms:
            self.published += 1
        sent = message(incoming.exchange, incoming.routing_key, body, incoming.encoded)
        self._client.published(self, incoming, sent)

    def check(self, sent: Message) -> None:
        """Refuse what cannot be published.

        :raises Refusal: 403, 404 or 406.
        :raises NotImplementedError: if the message asks for something that is not modelled.
        """
        if len(sent.body) > _LARGEST:
            raise Refusal(
                406,
                f"message size {len(sent.body)} is larger than configured max size {_LARGEST}",
            )
        self.vhost.check_target(sent)
        if not sent.has(_REPLY_TO | _EXPIRATION | _USER_ID | _HEADERS):
            return
        properties = sent.properties
        user = properties.get("user_id")
        if user is not None and user != self._client.user:
            raise Refusal(
                406,
                f"user_id property set to '{user}' but authenticated user was '{self._client.user}'",
            )
        if "expiration" in properties:
            _check_expiration(properties["expiration"])
        if str(properties.get("reply_to", "")).startswith("amq.rabbitmq.reply-to"):
            raise not_modelled("direct reply-to (amq.rabbitmq.reply-to)")
        for name in ("CC", "BCC"):
            if name in sent.headers:
                raise not_modelled(f"the header {name!r}, by which RabbitMQ sends copies")

    def give_back(self, sent: Message) -> None:
        """Return *sent*, which no queue takes."""
        self._client.send(
            method(
                self.number,
                spec.Basic.Return,
                "Bsss",
                312,
                "NO_ROUTE",
                sent.exchange,
                sent.routing_key,
            )
            + content(self.number, sent, self._client.frame_max)
        )

    def confirm(self, number: int, taken: bool) -> None:
        """Tell the client that the broker has, or has not, the message of this number."""
        if taken:
            self.send(spec.Basic.Ack, "Lb", number, False)
        else:
            self.send(spec.Basic.Nack, "Lbb", number, False, False)

    def _confirm_select(self, nowait: bool) -> None:
        self.confirms = True
        if not nowait:
            self.send(spec.Confirm.SelectOk)

    # -- exchanges and queues -----------------------------------------------------------------------------

    def _exchange_declare(
        self,
        _: int,
        name: str,
        kind: str,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> None:
        self.vhost.exchange_declare(
            name,
            kind,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            internal=internal,
            arguments=arguments,
        )
        if not nowait:
            self.send(spec.Exchange.DeclareOk)

    def _exchange_delete(self, _: int, name: str, if_unused: bool, nowait: bool) -> None:
        self.vhost.exchange_delete(name, if_unused=if_unused)
        if not nowait:
            self.send(spec.Exchange.DeleteOk)

    def _queue_declare(
        self,
        _: int,
        name: str,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> None:
        found = self.vhost.queue_declare(
            name or (self._last_queue if passive else ""),
            owner=self._client,
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        self._last_queue = found.name
        if not nowait:
            self.send(spec.Queue.DeclareOk, "sll", found.name, len(found), len(found.consumers))

    def _named(self, name: str) -> str:
        # No name is that of the queue that was declared last on this channel.
        if not name and not self._last_queue:
            raise Refusal(404, "no previously declared queue")
        return name or self._last_queue

    def _queue(self, name: str) -> Queue:
        return self.vhost.queue(self._named(name), self._client)

    def _queue_bind(
        self, _: int, queue: str, exchange: str, key: str, nowait: bool, arguments: dict[str, Any]
    ) -> None:
        self.vhost.bind(QUEUE, self._named(queue), exchange, key, arguments, self._client)
        if not nowait:
            self.send(spec.Queue.BindOk)

    def _queue_unbind(
        self, _: int, queue: str, exchange: str, key: str, arguments: dict[str, Any]
    ) -> None:
        self.vhost.unbind(QUEUE, self._named(queue), exchange, key, arguments, self._client)
        self.send(spec.Queue.UnbindOk)

    def _exchange_bind(
        self,
        _: int,
        destination: str,
        source: str,
        key: str,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> None:
        self.vhost.bind(EXCHANGE, destination, source, key, arguments, self._client)
        if not nowait:
            self.send(spec.Exchange.BindOk)

    def _exchange_unbind(
        self,
        _: int,
        destination: str,
        source: str,
        key: str,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> None:
        self.vhost.unbind(EXCHANGE, destination, source, key, arguments, self._client)
        if not nowait:
            self.send(spec.Exchange.UnbindOk)

    def _queue_purge(self, _: int, name: str, nowait: bool) -> None:
        purged = self._queue(name).purge()
        if not nowait:
            self.send(spec.Queue.PurgeOk, "l", purged)

    def _queue_delete(
        self, _: int, name: str, if_unused: bool, if_empty: bool, nowait: bool
    ) -> None:
        deleted = self.vhost.queue_delete(
            self._named(name), owner=self._client, if_unused=if_unused, if_empty=if_empty
        )
        if not nowait:
            self.send(spec.Queue.DeleteOk, "l", deleted)

    # -- consuming ----------------------------------------------------------------------------------------

    def _qos(self, size: int, number: int, in_all: bool) -> None:
        if size:
            raise Refusal(540, f"prefetch_size!=0 ({size})")
        if in_all:
            self._prefetch_in_all = number
        else:
            self._prefetch = number
        self.send(spec.Basic.QosOk)
        self._deliver_all()

    def _get(self, _: int, name: str, no_ack: bool) -> None:
        queue = self._queue(name)
        entry = queue.get(self.vhost.now())
        if entry is None:
            self.send(spec.Basic.GetEmpty, "s", "")
            return
        number = next(self._deliveries)
        if not no_ack:
            self._unacknowledged[number] = entry, None
        sent = entry.message
        self._client.send(
            method(
                self.number,
                spec.Basic.GetOk,
                "Lbssl",
                number,
                entry.redelivered,
                sent.exchange,
                sent.routing_key,
                len(queue),
            )
            + content(self.number, sent, self._client.frame_max)
        )

    def _consume(
        self,
        _: int,
        name: str,
        tag: str,
        no_local: bool,
        no_ack: bool,
        exclusive: bool,
        nowait: bool,
        arguments: dict[str, Any],
    ) -> None:
        if self._named(name) == "amq.rabbitmq.reply-to":
            raise not_modelled("direct reply-to (amq.rabbitmq.reply-to)")
        for key in arguments:
            if key.startswith("x-"):
                raise not_modelled(f"the consumer argument {key!r}")
        if tag in self.consumers:
            raise Refusal(530, f"attempt to reuse consumer tag '{tag}'")
        queue = self._queue(name)
        tag = tag or f"amq.ctag-{next(self._tags):022}"
        consumer = Consumption(
            tag,
            queue,
            no_ack=no_ack,
            exclusive=exclusive,
            prefetch=self._prefetch,
            may_send=self._may_send,
            send=self._deliver,
            tell_cancelled=self._queue_gone,
        )
        self.vhost.add_consumer(queue, consumer)
        self.consumers[tag] = consumer
        if not nowait:
            self.send(spec.Basic.ConsumeOk, "s", tag)
        queue.deliver(self.vhost.now())

    def _may_send(self) -> bool:
        most = self._prefetch_in_all
        having = sum(1 for _, consumer in self._unacknowledged.values() if consumer is not None)
        return not (0 < most <= having)

    def _deliver(self, consumer: Consumption, entry: Entry) -> None:
        number = next(self._deliveries)
        if not consumer.no_ack:
            self._unacknowledged[number] = entry, consumer
            consumer.unacknowledged += 1
        sent = entry.message
        self._client.send(
            method(
                self.number,
                spec.Basic.Deliver,
                "sLbss",
                consumer.tag,
                number,
                entry.redelivered,
                sent.exchange,
                sent.routing_key,
            )
            + content(self.number, sent, self._client.frame_max)
        )

    def _queue_gone(self, consumer: Consumption) -> None:
        self.consumers.pop(consumer.tag, None)
        if not self.closing:
            self.send(spec.Basic.Cancel, "sb", consumer.tag, True)

    def _cancel(self, tag: str, nowait: bool) -> None:
        consumer = self.consumers.pop(tag, None)
        if consumer is not None:
            self.vhost.remove_consumer(consumer.queue, consumer)
        if not nowait:
            self.send(spec.Basic.CancelOk, "s", tag)

    def _take(self, number: int, multiple: bool) -> list[tuple[Entry, Consumption | None]]:
        if multiple:
            numbers = [one for one in self._unacknowledged if not number or one <= number]
            if number and not numbers:
                raise Refusal(406, f"unknown delivery tag {number}")
        elif number in self._unacknowledged:
            numbers = [number]
        else:
            raise Refusal(406, f"unknown delivery tag {number}")
        taken = []
        for one in numbers:
            entry, consumer = self._unacknowledged.pop(one)
            if consumer is not None:
                consumer.unacknowledged -= 1
            taken.append((entry, consumer))
        return taken

    def _ack(self, number: int, multiple: bool) -> None:
        self._take(number, multiple)
        self._deliver_all()

    def _nack(self, number: int, multiple: bool, requeue: bool) -> None:
        taken = [entry for entry, _ in self._take(number, multiple)]
        self._give_up(taken, requeue=requeue)
        self._deliver_all()

    def _reject(self, number: int, requeue: bool) -> None:
        self._nack(number, False, requeue)

    def _give_up(self, entries: list[Entry], *, requeue: bool) -> None:
        touched = []
        for entry in entries:
            queue = self.vhost.queues.get(entry.queue)
            if queue is None:
                continue
            if requeue:
                queue.requeue(entry)
                touched.append(queue)
            else:
                queue.reject(entry)
        for queue in touched:
            queue.deliver(self.vhost.now())

    def _deliver_all(self) -> None:
        for queue in {consumer.queue for consumer in self.consumers.values()}:
            queue.deliver(self.vhost.now())

    def _recover(self, requeue: bool) -> None:
        self._recover_async(requeue)
        self.send(spec.Basic.RecoverOk)

    def _recover_async(self, requeue: bool) -> None:
        if not requeue:
            raise Refusal(540, "requeue=false")
        self._give_up([entry for entry, _ in self._take(0, True)], requeue=True)

    def _flow(self, active: bool) -> None:
        if not active:
            raise Refusal(540, "active=false")
        self.send(spec.Channel.FlowOk, "b", active)

    # -- its end ------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Cancel its consumers, and put back what was not acknowledged."""
        self.closing = True
        consumers, self.consumers = list(self.consumers.values()), {}
        for consumer in consumers:
            self.vhost.remove_consumer(consumer.queue, consumer)
        entries = [entry for entry, _ in self._unacknowledged.values()]
        self._unacknowledged.clear()
        self._give_up(entries, requeue=True)


def _check_expiration(text: str) -> None:
    digits = re.match(r"[+-]?\d+", text)
    if digits is None:
        wrong = "no_integer"
    elif digits.group() != text:
        wrong = f'{{leftover_string,"{text[digits.end() :]}"}}'
    elif int(text) < 0:
        wrong = f"{{value_negative,{int(text)}}}"
    elif int(text) > _LONGEST:
        wrong = f"{{value_too_big,{int(text)}}}"
    else:
        return
    raise Refusal(406, f"invalid expiration '{text}': {wrong}")


_HANDLERS: dict[tuple[int, int], Callable[..., None]] = {
    spec.Basic.Publish: Channel._publish,
    spec.Confirm.Select: Channel._confirm_select,
    spec.Exchange.Declare: Channel._exchange_declare,
    spec.Exchange.Delete: Channel._exchange_delete,
    spec.Exchange.Bind: Channel._exchange_bind,
    spec.Exchange.Unbind: Channel._exchange_unbind,
    spec.Queue.Declare: Channel._queue_declare,
    spec.Queue.Bind: Channel._queue_bind,
    spec.Queue.Unbind: Channel._queue_unbind,
    spec.Queue.Purge: Channel._queue_purge,
    spec.Queue.Delete: Channel._queue_delete,
    spec.Basic.Qos: Channel._qos,
    spec.Basic.Get: Channel._get,
    spec.Basic.Consume: Channel._consume,
    spec.Basic.Cancel: Channel._cancel,
    spec.Basic.Ack: Channel._ack,
    spec.Basic.Nack: Channel._nack,
    spec.Basic.Reject: Channel._reject,
    spec.Basic.Recover: Channel._recover,
    spec.Basic.RecoverAsync: Channel._recover_async,
    spec.Channel.Flow: Channel._flow,
}
