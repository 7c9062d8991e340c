"""One of the two that are compared: a module of pools, its pools, what they lend, and a broker to itself."""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import kombu
from hypothesis import note
from kombu import Connection, Exchange, Queue

from ..common import OURS
from .outcomes import Outcome, outcome_of, seen

__all__ = ["MEMORY", "OWN_PRODUCERS", "Lease", "Side"]

#: The scheme of the broker that both sides have in this process.
MEMORY = "memory"
#: Seconds for a message that AMQP has published without confirms to be there.
PATIENCE = 5.0

_numbers = itertools.count(1)


class Compressing(kombu.Producer):
    """A producer class of an application."""

    compression = "gzip"


class Setting(kombu.Producer):
    """Another one, whose constructor sets things."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, serializer="pickle", routing_key="first", **kwargs)


def made_by_hand(connection: Any) -> kombu.Producer:
    """Not a class at all."""
    return kombu.Producer(connection, serializer="pickle", auto_declare=False)


#: What may make the producers of a pool.
OWN_PRODUCERS: dict[str, Any] = {
    "kombu's": None,
    "compressing": Compressing,
    "setting": Setting,
    "a function": made_by_hand,
}


class Lease:
    """What was lent, and the pool that lent it."""

    def __init__(self, pool: Any, lent: Any) -> None:
        self.pool, self.lent = pool, lent

    @property
    def connection(self) -> Any:
        return self.lent.connection if isinstance(self.lent, kombu.Producer) else self.lent


class Side:
    """The pools of one module on one broker.

    Names on the broker begin with something of this side's own, which is left out of all that is compared.

    :param pools: the module.
    :param kind: how its pools are had: ``"group"``, ``"global"``, ``"pool"`` or, for ours, on ``"kombu's"``.
    """

    def __init__(
        self,
        pools: ModuleType,
        url: str,
        *,
        kind: str,
        limit: int | None,
        producer_limit: int | None,
        producer: str,
        confirm: bool,
    ) -> None:
        self.pools = pools
        self.ours = pools is OURS
        self.prefix = f"same-{os.getpid()}-{next(_numbers)}-"
        self.url = f"{url}-{self.prefix}" if url.startswith(MEMORY) else url
        options = {"confirm_publish": True} if confirm else {}
        # Else the two would share the pools of a group with other tests.
        options["of"] = self.prefix
        if url.startswith("redis"):
            options["global_keyprefix"] = self.prefix
        self.template = Connection(self.url, transport_options=options)
        own = OWN_PRODUCERS[producer]
        self.groups: list[Any] = []
        if kind == "group":
            self.groups = [pools.Connections(limit=limit)]
            self.connections = self.groups[0][self.template]
        elif kind == "global":
            pools.set_limit(limit or 0)
            self.groups = [pools.connections, pools.producers]
            self.connections = pools.connections[self.template]
        elif kind == "pool" and self.ours:
            self.connections = pools.ConnectionPool(self.template, limit=limit)
        else:
            self.connections = self.template.Pool(limit=limit)
        if kind == "global" and own is None:
            self.producers = pools.producers[self.template]
        else:
            self.producers = pools.ProducerPool(
                self.connections, limit=producer_limit, Producer=own
            )
        self.leases: list[Lease] = []
        self.exchanges = {
            "": Exchange(""),
            "direct": Exchange(f"{self.prefix}direct", "direct", durable=False),
            "topic": Exchange(f"{self.prefix}topic", "topic", durable=False, auto_delete=False),
            "fanout": Exchange(f"{self.prefix}fanout", "fanout", durable=False),
            "transient": Exchange(
                f"{self.prefix}transient", "direct", durable=False, delivery_mode="transient"
            ),
        }
        self.queues = {
            name: Queue(
                f"{self.prefix}{name}",
                self.exchanges[exchange],
                routing_key=f"{self.prefix}{name}",
                durable=False,
            )
            for name, exchange in {
                "first": "direct",
                "second": "topic",
                "third": "fanout",
                "fourth": "transient",
            }.items()
        }
        self.outside = Connection(self.url, transport_options=options)

    # -- comparing ----------------------------------------------------------------------------------------

    def run(self, operation: Callable[[Side], Any]) -> Outcome:
        """Do *operation*, and say what it came to."""
        try:
            result, error = operation(self), None
        except Exception as raised:
            result, error = None, raised
            note("".join(traceback.format_exception(raised)[-3:]))
        told = outcome_of(result, error, self.outside)
        return Outcome(told.kind, self.without_prefix(told.value))

    def without_prefix(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(self.prefix, "")
        if isinstance(value, dict):
            return {
                self.without_prefix(key): self.without_prefix(one) for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.without_prefix(one) for one in value]
        return value

    def lend(self, what: str, **how: Any) -> str:
        """Borrow, and note it."""
        pool = self.producers if what == "producer" else self.connections
        lent = pool.acquire(**how)
        self.leases.append(Lease(pool, lent))
        kind = kombu.Producer if what == "producer" else kombu.Connection
        return f"a {what}: {isinstance(lent, kind)}"

    @contextmanager
    def borrowed(self, index: int | None, what: str) -> Iterator[Lease]:
        """One of the leases, or one for the block alone."""
        if index is not None:
            yield self.leases[index]
            return
        pool = self.producers if what == "producer" else self.connections
        lent = pool.acquire()
        lease = Lease(pool, lent)
        try:
            yield lease
        except Exception:
            if not self.ours:
                lease.connection.collect()
            raise
        finally:
            # Not by the lease's own block: an exception there is another operation.
            lent.release()

    @property
    def state(self) -> dict[str, Any]:
        """What pools and groups say of themselves."""
        return {
            "limits": [self.connections.limit or 0, self.producers.limit or 0],
            "groups": [len(group) for group in self.groups],
            "values": [
                [type(pool).__mro__[0].__name__ for pool in one.values()] for one in self.groups
            ],
            "leases": len(self.leases),
        }

    # -- the broker, seen from outside ------------------------------------------------------------------------

    def prepare_broker(self) -> None:
        """Declare what the operations use."""
        channel = self.outside.default_channel
        for queue in self.queues.values():
            queue(channel).declare()

    def arrived(self, name: str, count: int) -> list[Any]:
        """All that is in a queue, which is *count* messages: it is empty then."""
        found: list[Any] = []
        deadline = time.monotonic() + (PATIENCE if self.url.startswith("amqp") else 0.0)
        bound = self.queues[name](self.outside.default_channel)
        while True:
            message = bound.get(no_ack=True)
            if message is not None:
                found.append(self.message(message))
            elif len(found) >= count or time.monotonic() > deadline:
                return found
            else:
                time.sleep(0.002)

    def message(self, message: Any) -> dict[str, Any]:
        """What a consumer sees of a message."""
        info = message.delivery_info
        properties = dict(message.properties)
        for passing in ("delivery_tag", "delivery_info"):
            properties.pop(passing, None)
        # Ours gives each message one, which is announced.
        named = properties.pop("message_id", None)
        if named is not None and not (self.ours and len(named) == 36):
            properties["message_id"] = named
        # Not what it means: some serializers are not accepted unless asked for.
        body = message.body
        told = {
            "body": bytes(body) if isinstance(body, memoryview) else body,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": dict(message.headers),
            "properties": properties,
            "redelivered": bool(info.get("redelivered")),
            "where": [info.get("exchange"), info.get("routing_key")],
        }
        shown: dict[str, Any] = self.without_prefix(seen(told))
        return shown

    @contextmanager
    def ended(self) -> Iterator[None]:
        """At the end give everything back, and take everything from the broker."""
        try:
            yield
        finally:
            for lease in self.leases:
                lease.lent.release()
            self.leases.clear()
            self.connections.force_close_all()
            for group in self.groups:
                group.clear()
            channel = self.outside.channel()
            for queue in self.queues.values():
                queue(channel).delete()
            for name, exchange in self.exchanges.items():
                if name and not self.url.startswith(("redis", MEMORY)):
                    exchange(channel).delete()
            self.outside.release()
