"""A virtual host: its exchanges, queues and bindings, and the way of a message through them.

Each method does what RabbitMQ does for the AMQP method of that name, and raises a :class:`.Refusal` where RabbitMQ
closes the channel. Only one thread at a time may call them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from .arguments import check_exchange, check_queue, same_arguments, same_field
from .binding import EXCHANGE, QUEUE, Binding, check_headers_binding
from .consumer import Consumer
from .dead_letters import Letter, dead_letter, is_in_circle
from .exchange import TYPES, Exchange
from .message import Message
from .queue import Queue
from .refusals import Refusal, not_modelled
from .words import named

__all__ = ["VirtualHost"]

_DEFAULT = "operation not permitted on the default exchange"
_OWN = (
    ("", "direct"),
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
    ("amq.topic", "topic"),
)


class VirtualHost:
    """One virtual host.

    :param clock: returns seconds that only grow.
    :param wall_clock: returns seconds since 1970.
    :param make: makes the message of a dead letter.
    :param takes_undeclared: whether a message to an exchange or a queue that nobody has declared is taken.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        make: Letter,
        takes_undeclared: Callable[[], bool] = bool,
    ) -> None:
        self.name = name
        self._clock = clock
        self._wall_clock = wall_clock
        self._make = make
        self._takes_undeclared = takes_undeclared
        self._names = count(1)
        self.exchanges: dict[str, Exchange] = {
            name: Exchange(name, kind, durable=True) for name, kind in _OWN
        }
        self.exchanges["amq.rabbitmq.trace"] = Exchange(
            "amq.rabbitmq.trace", "topic", durable=True, internal=True
        )
        self.queues: dict[str, Queue] = {}
        self._cancelled: list[Consumer] = []

    # -- exchanges ----------------------------------------------------------------------------------------

    def exchange(self, name: str) -> Exchange:
        """Return the exchange of this name.

        :raises Refusal: 404 if there is none.
        """
        found = self.exchanges.get(name)
        if found is None:
            raise Refusal(404, f"no {named('exchange', name, self.name)}")
        return found

    def exchange_declare(
        self,
        name: str,
        kind: str,
        *,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an exchange, or check that it is there and the same.

        :raises Refusal: 403, 404, 406 or 503.
        :raises NotImplementedError: for a type or an argument that is not modelled.
        """
        if passive:
            if not name:
                raise Refusal(403, _DEFAULT)
            self.exchange(name)
            return
        if kind.startswith("x-"):
            raise not_modelled(f"exchanges of type {kind!r}")
        if kind not in TYPES:
            raise Refusal(503, f"unknown exchange type '{kind}'")
        if not name:
            raise Refusal(403, _DEFAULT)
        given = dict(arguments or {})
        found = self.exchanges.get(name)
        if found is None or found.provisional:
            self._check_name("exchange", name)
            check_exchange(name, given)
            self.exchanges[name] = Exchange(
                name,
                kind,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=given,
            )
            return
        what = named("exchange", name, self.name)
        same_field(what, "type", kind, found.kind)
        same_field(what, "durable", durable, found.durable)
        same_field(what, "auto_delete", auto_delete, found.auto_delete)
        same_field(what, "internal", internal, found.internal)
        same_arguments(what, given, found.arguments, ("alternate-exchange",))

    def _check_name(self, kind: str, name: str) -> None:
        if name.startswith("amq."):
            raise Refusal(403, f"{kind} name '{name}' contains reserved prefix 'amq.*'")

    def exchange_delete(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange, if there is one.

        :raises Refusal: 403 for one of the broker's own; 406 if it is in use.
        """
        if not name:
            raise Refusal(403, _DEFAULT)
        if name.startswith("amq."):
            raise Refusal(
                403, f"deletion of system {named('exchange', name, self.name)} not allowed"
            )
        found = self.exchanges.get(name)
        if found is None:
            return
        if if_unused and found.bindings:
            raise Refusal(406, f"{named('exchange', name, self.name)} in use")
        self._forget_exchange(found)

    def _forget_exchange(self, exchange: Exchange) -> None:
        del self.exchanges[exchange.name]
        self._unbind_all(EXCHANGE, exchange.name)

    # -- queues -------------------------------------------------------------------------------------------

    def queue(self, name: str, owner: object | None) -> Queue:
        """Return the queue of this name, for *owner*, a connection.

        :raises Refusal: 404 if there is none; 405 if it is another connection's.
        """
        found = self.queues.get(name)
        if found is None:
            raise Refusal(404, f"no {named('queue', name, self.name)}")
        if found.owner is not None and found.owner is not owner:
            raise self._locked(name)
        return found

    def _locked(self, name: str) -> Refusal:
        return Refusal(
            405,
            f"cannot obtain exclusive access to locked {named('queue', name, self.name)}. It could be originally "
            "declared on another connection or the exclusive property value does not match that of the original "
            "declaration.",
        )

    def queue_declare(
        self,
        name: str,
        *,
        owner: object | None = None,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Queue:
        """Declare a queue, or check that it is there and the same.

        :param owner: the connection that asks.
        :raises Refusal: 403, 404, 405 or 406.
        :raises NotImplementedError: for an argument that is not modelled.
        """
        if passive:
            return self.queue(name, owner)
        given = dict(arguments or {})
        found = self.queues.get(name)
        if found is not None and not found.provisional:
            if found.owner is not (owner if exclusive else None):
                raise self._locked(name)
            what = named("queue", name, self.name)
            same_field(what, "durable", durable, found.durable)
            same_field(what, "auto_delete", auto_delete, found.auto_delete)
            same_arguments(what, given, found.arguments, None)
            found.used = self._clock()
            return found
        if name:
            self._check_name("queue", name)
        check_queue(name, self.name, given)
        made = Queue(
            name or f"amq.gen-{next(self._names):022}",
            durable=durable,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
            arguments=given,
            dead_letter=self._dead_letter,
        )
        made.used = self._clock()
        self.queues[made.name] = made
        if found is not None:
            for message in list(found):
                made.publish(message, self._clock())
        return made

    def queue_delete(
        self, name: str, *, owner: object | None, if_unused: bool = False, if_empty: bool = False
    ) -> int:
        """Delete a queue, if there is one; return how many messages it had.

        :raises Refusal: 405 or 406.
        """
        if name not in self.queues:
            return 0
        found = self.queue(name, owner)
        if if_unused and found.consumers:
            raise Refusal(406, f"{named('queue', name, self.name)} in use")
        if if_empty and len(found):
            raise Refusal(406, f"{named('queue', name, self.name)} is not empty")
        messages = len(found)
        self.forget_queue(found)
        return messages

    def forget_queue(self, queue: Queue) -> None:
        """Delete *queue*; its consumers are told by :meth:`tell_cancelled`."""
        if self.queues.get(queue.name) is queue:
            del self.queues[queue.name]
        consumers, queue.consumers = queue.consumers, []
        self._cancelled += consumers
        self._unbind_all(QUEUE, queue.name)

    def tell_cancelled(self) -> None:
        """Tell the consumers of queues that are gone: after the answer to who has deleted them, as RabbitMQ does."""
        consumers, self._cancelled = self._cancelled, []
        for consumer in consumers:
            consumer.cancelled()

    def add_consumer(self, queue: Queue, consumer: Consumer) -> None:
        """Have *consumer* get the messages of *queue*.

        :raises Refusal: 403 if somebody wants the queue for itself.
        """
        if any(one.exclusive for one in queue.consumers) or (
            consumer.exclusive and queue.consumers
        ):
            raise Refusal(403, f"{named('queue', queue.name, self.name)} in exclusive use")
        queue.consumers.append(consumer)
        queue.had_consumers = True

    def remove_consumer(self, queue: Queue, consumer: Consumer) -> None:
        """Take *consumer* away; a queue that deletes itself goes with the last one."""
        if consumer not in queue.consumers:
            return
        queue.consumers.remove(consumer)
        queue.used = self._clock()
        if queue.auto_delete and not queue.consumers:
            self.forget_queue(queue)

    # -- bindings -----------------------------------------------------------------------------------------

    def bind(
        self,
        kind: str,
        destination: str,
        source: str,
        key: str,
        arguments: Mapping[str, Any],
        owner: object | None,
    ) -> None:
        """Bind a queue or an exchange, as *kind* says, to the exchange *source*.

        :raises Refusal: 403, 404, 405 or 406.
        """
        exchange = self._ends_of_binding(kind, destination, source, owner)
        if exchange.kind == "headers":
            check_headers_binding(arguments)
        if not any(one.is_same(kind, destination, key, arguments) for one in exchange.bindings):
            exchange.bindings.append(Binding(kind, destination, key, dict(arguments)))

    def unbind(
        self,
        kind: str,
        destination: str,
        source: str,
        key: str,
        arguments: Mapping[str, Any],
        owner: object | None,
    ) -> None:
        """Take a binding away, if there is one.

        :raises Refusal: 403 or 405.
        """
        self._check_ends(kind, destination, source, owner)
        exchange = self.exchanges.get(source)
        if exchange is None:
            return
        left = [
            one for one in exchange.bindings if not one.is_same(kind, destination, key, arguments)
        ]
        self._keep_bindings(exchange, left)

    def _check_ends(self, kind: str, destination: str, source: str, owner: object | None) -> None:
        """Refuse the default exchange as an end of a binding, and a queue of another connection."""
        if not source or (kind == EXCHANGE and not destination):
            raise Refusal(403, _DEFAULT)
        if kind == QUEUE and destination in self.queues:
            self.queue(destination, owner)

    def _ends_of_binding(
        self, kind: str, destination: str, source: str, owner: object | None
    ) -> Exchange:
        self._check_ends(kind, destination, source, owner)
        # RabbitMQ names the source first if both are missing.
        exchange = self.exchange(source)
        if kind == QUEUE:
            self.queue(destination, owner)
        else:
            self.exchange(destination)
        return exchange

    def _keep_bindings(self, exchange: Exchange, left: list[Binding]) -> None:
        fewer = len(left) < len(exchange.bindings)
        exchange.bindings = left
        if fewer and not left and exchange.auto_delete and exchange.name in self.exchanges:
            self._forget_exchange(exchange)

    def _unbind_all(self, kind: str, destination: str) -> None:
        for exchange in list(self.exchanges.values()):
            left = [
                one
                for one in exchange.bindings
                if (one.kind, one.destination) != (kind, destination)
            ]
            self._keep_bindings(exchange, left)

    # -- messages -----------------------------------------------------------------------------------------

    def check_target(self, message: Message) -> None:
        """Refuse *message* if nobody may publish to its exchange.

        :raises Refusal: 403 or 404.
        """
        if self._takes_undeclared():
            self._declare_for(message)
        if self.exchange(message.exchange).internal:
            raise Refusal(
                403,
                f"cannot publish to internal {named('exchange', message.exchange, self.name)}",
            )

    def publish(self, message: Message) -> tuple[list[str], bool]:
        """Put *message*, which was checked, into the queues that it is for.

        :returns: their names, and whether each of them has taken it.
        """
        names = self._route(message)
        now = self._clock()
        taken = [self.queues[name].publish(message, now) for name in names]
        return names, all(taken)

    def takes(self, exchange: str) -> bool:
        """Whether a message to *exchange* counts as routed, whatever is bound there."""
        return self._takes_undeclared() and self.exchanges[exchange].provisional

    def _declare_for(self, message: Message) -> None:
        if message.exchange:
            if message.exchange not in self.exchanges:
                made = Exchange(message.exchange, "fanout", provisional=True)
                self.exchanges[message.exchange] = made
        elif message.routing_key not in self.queues:
            self.queues[message.routing_key] = Queue(
                message.routing_key,
                durable=True,
                dead_letter=self._dead_letter,
                provisional=True,
            )

    def _route(self, message: Message) -> list[str]:
        if not message.exchange:
            return [message.routing_key] if message.routing_key in self.queues else []
        found: dict[str, None] = {}
        seen = {message.exchange}
        work = [self.exchanges[message.exchange]]
        while work:
            exchange = work.pop()
            taking = list(exchange.matching(message, message.routing_key))
            onward = [one.destination for one in taking if one.kind == EXCHANGE]
            if not taking and exchange.alternate is not None:
                onward = [exchange.alternate]
            for name in onward:
                if name in self.exchanges and name not in seen:
                    work.append(self.exchanges[name])
                seen.add(name)
            found.update((one.destination, None) for one in taking if one.kind == QUEUE)
        return sorted(name for name in found if name in self.queues)

    def _dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        name = queue.arguments.get("x-dead-letter-exchange")
        if name is None or name not in self.exchanges:
            return
        letter = dead_letter(queue, message, reason, name, self._wall_clock(), self._make)
        now = self._clock()
        for target in self._route(letter):
            if reason == "rejected" or not is_in_circle(letter, target):
                self.queues[target].publish(letter, now)

    # -- time ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the seconds of the broker's clock."""
        return self._clock()

    def expire(self) -> None:
        """Do what is due: give up messages and queues whose time is over."""
        now = self._clock()
        for queue in list(self.queues.values()):
            queue.expire(now)
            after = queue.expires_unused
            if after is not None and after <= now:
                self.forget_queue(queue)

    @property
    def next_dead_letter(self) -> float | None:
        """When a message expires next that somebody else gets then; ``None`` is never.

        Whatever else expires is noticed when it is asked for.
        """
        times = [
            queue.next_expiry
            for queue in self.queues.values()
            if "x-dead-letter-exchange" in queue.arguments
        ]
        return min((one for one in times if one is not None), default=None)
