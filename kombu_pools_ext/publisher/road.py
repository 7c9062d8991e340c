"""The shared road of a pool: which messages take it, and what is declared before them."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import NotFound

from ..broker.event_loops import loops, warn_of_blocking
from ..broker.producers import ProducerPool
from ..broker.retrying import says_it_is_gone
from ..engine.threads import uwsgi_is_yet_to_fork
from ..errors import PublishReturned
from .encoding import outgoing
from .errors import CannotBeShared
from .outgoing import Outgoing
from .publisher import Publisher

__all__ = ["SharedRoad", "road_of"]

#: Queues and exchanges that are remembered, before all are forgotten: some applications make one for each message.
MOST_DECLARED = 1000


class SharedRoad:
    """Publishes the messages of one producer pool over its shared connection, where that can be.

    :param pool: its ``in_flight`` is a number.
    """

    def __init__(self, pool: ProducerPool) -> None:
        self._pool = pool
        self.publisher = Publisher(pool, pool.in_flight or 1)
        #: What was declared for messages of this road, as kombu notes it, and for which of its connections.
        self._declared: set[int] = set()
        self._declared_on = 0

    def prepare(
        self,
        body: Any,
        routing_key: str,
        exchange: Any,
        options: dict[str, Any],
        acquire_timeout: float | None,
        *,
        waits: bool = True,
    ) -> Outgoing | None:
        """Return the message, serialized; ``None`` if it has to be published over a lease.

        The other parameters, and what is raised, are those of :func:`.encoding.outgoing`.

        :param waits: whether the calling thread waits for the outcome. If a signal handler has interrupted a publish
            of this thread, it would wait for itself.
        """
        publisher = self.publisher
        if publisher.unfit or (waits and publisher.interrupts_itself) or uwsgi_is_yet_to_fork():
            return None
        message = outgoing(
            self._pool,
            *(body, routing_key, exchange, options),
            frame_max=self.publisher.numbers.frame_max,
            acquire_timeout=acquire_timeout,
            number_of=self.publisher.numbers.of,
        )
        if message is not None and message.declare:
            connection = self.publisher.connections
            if connection != self._declared_on:
                # Another connection may be one of another broker.
                self._declared.clear()
                self._declared_on = connection
            message.declared_on = connection
            if not self._are_declared(message.declare):
                return None
        return message

    def publish(self, message: Outgoing) -> bool:
        """Publish *message*, and return when the broker has it.

        :returns: whether it did; otherwise it has to be published over a lease.
        :raises Exception: what :meth:`.Publisher.publish` raises.
        """
        if loops.running() is not None:
            warn_of_blocking("publish()")
        try:
            self.publisher.publish(message)
        except CannotBeShared:
            return False
        except (PublishReturned, NotFound) as error:
            if not self.was_not_declared(message, error):
                raise
            # Declared again, and published, over a lease.
            return False
        return True

    def was_not_declared(self, message: Outgoing, error: BaseException) -> bool:
        """Whether *error* says that what *message* had declared is gone, so that the broker does not have it.

        It is declared again with the next message then.
        """
        if not message.declare or message.resent or not says_it_is_gone(error):
            return False
        self._declared.difference_update(hash(entity) for entity in message.declare)
        return True

    def _are_declared(self, entities: tuple[Any, ...]) -> bool:
        return all(hash(entity) in self._declared for entity in entities)

    def note_declared(self, entities: Any) -> None:
        """Note what was declared with a message that was published over a lease."""
        if entities:
            if len(self._declared) >= MOST_DECLARED:
                self._declared.clear()
            self._declared.update([hash(entity) for entity in entities])


def road_of(pool: ProducerPool) -> SharedRoad | None:
    """Return the shared road of *pool*; ``None`` if its messages are published over a lease each."""
    if pool.shared_road is None and pool.in_flight is not None:
        # One step of the interpreter: of two threads that come first, both get the same.
        pool.__dict__.setdefault("shared_road", SharedRoad(pool))
    road: SharedRoad | None = pool.shared_road
    return road
