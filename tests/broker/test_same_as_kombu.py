"""Whatever an application does with pools, in whatever order: ours do as kombu's do, but where it is announced.

The same random operations run on `kombu.pools` and on ours, each with names of its own on the broker, and what they
come to is compared: what is returned, the family of what is raised, what is in the queues, how many are lent. Only what
is sound with kombu's pools is done: no use after a release, no second release, no waiting for what kombu never gives.

`SAME_AS_KOMBU=2000` runs so many sequences on each kind of broker, other ones each time; without it they are few, and
where `CI` is set always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import kombu
import kombu.pools
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .common import KOMBU, OURS
from .same_as_kombu.outcomes import ANNOUNCED, Outcome, is_same
from .same_as_kombu.side import OWN_PRODUCERS, Side

Operation = Callable[[Side], Any]

DOCS = Path(__file__).parents[2] / "docs"
#: Sequences for each kind of broker, and operations in each.
EXAMPLES = int(os.environ.get("SAME_AS_KOMBU") or 0)
FEW = {"memory": 25, "redis": 8, "amqp": 10}
STEPS = 30
# Not Phase.explain, which traces each line.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]

QUEUES = ["first", "second", "third", "fourth"]
#: Seconds for a message that is there.
SOON = 10.0

POLICY = {"max_retries": 2, "interval_start": 0, "interval_max": 0.1}

choices = st.integers(0, 1000)
texts = st.text(alphabet="ab ü€", max_size=4)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
#: Bodies, with the arguments that they need.
bodies = st.one_of(
    st.tuples(
        jsons,
        st.fixed_dictionaries({}, optional={"serializer": st.sampled_from(["json", "pickle"])}),
    ),
    st.tuples(texts, st.just({"content_type": "text/plain"})),
    st.tuples(texts, st.just({"content_type": "text/plain", "content_encoding": "utf-16"})),
    st.tuples(
        st.binary(max_size=5),
        st.just({"content_type": "application/data", "content_encoding": "binary"}),
    ),
    st.tuples(st.binary(max_size=5), st.just({"content_type": "application/data"})),
)
#: The same, and those that cannot be serialized: seldom, because they end there.
any_bodies = st.one_of(
    *[bodies] * 8,
    st.tuples(st.just(object()), st.just({"serializer": "json"})),
    st.tuples(jsons, st.just({"serializer": "nobody's"})),
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.dictionaries(
            st.sampled_from(["a", "b"]),
            texts | st.integers(-(2**40), 2**40) | st.booleans() | st.none() | st.lists(st.integers(0, 9), max_size=2)
            | st.dictionaries(texts, texts, max_size=2),
            max_size=2,
        ),
        "priority": st.integers(0, 9),
        "expiration": st.sampled_from([60, 3600, 99.5]),
        "compression": st.sampled_from([None, "gzip", "zlib"]),
        "correlation_id": texts,
        "delivery_mode": st.sampled_from([1, 2, "transient", "persistent"]),
        "mandatory": st.booleans(),
        "timeout": st.sampled_from([None, 5, 5.0]),
        "type": texts,
        "app_id": texts,
        "user_id": st.just("guest"),
        "message_id": st.sampled_from(["one", "two"]),
        "retry": st.booleans(),
        "retry_policy": st.just(POLICY),
    },
)  # fmt: skip
#: Few of them at a time: what is usual goes another way than the rest.
few_arguments = arguments.flatmap(
    lambda given: (
        st.sets(st.sampled_from(sorted(given)), max_size=2).map(
            lambda names: {name: given[name] for name in names}
        )
        if given
        else st.just({})
    )
)
#: What no frame of AMQP can carry.
bad_arguments = st.sampled_from(
    [
        {"priority": 300},
        {"priority": "high"},
        {"expiration": "soon"},
        {"headers": {"a": object()}},
        {"correlation_id": 7},
        {"compression": "nobody's"},
    ]
)


class Machine(RuleBasedStateMachine):
    """Two sides, of which each step is done on both."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.amqp = url.startswith("amqp")
        self.in_memory = url.startswith("memory")
        self.sides: list[Side] = []
        self.stack = ExitStack()
        #: By queue, how many messages it must have.
        self.waiting = dict.fromkeys(QUEUES, 0)

    @initialize(
        kind=st.sampled_from(["group", "global", "pool", "kombu's"]),
        limit=st.sampled_from([None, 1, 2, 3]),
        producer_limit=st.sampled_from([None, 1, 2]),
        producer=st.sampled_from(list(OWN_PRODUCERS)),
        confirm=st.booleans(),
    )
    def build(
        self, kind: str, limit: int | None, producer_limit: int | None, producer: str, confirm: bool
    ) -> None:
        for pools in (KOMBU, OURS):
            side = Side(
                pools,
                self.url,
                kind=kind,
                limit=limit,
                producer_limit=producer_limit,
                producer=producer,
                confirm=confirm,
            )
            self.stack.enter_context(side.ended())
            side.prepare_broker()
            self.sides.append(side)
        self.kind = kind
        self.by_hand = producer == "a function"
        self.fanout = not self.url.startswith("redis")
        #: Whether kombu's producer pool has more places than its limit says, which a resize does to it.
        self.overfull = False
        self.retried = False

    # -- both ---------------------------------------------------------------------------------------------

    def both(self, operation: Operation, *announced: str) -> Outcome:
        """Do *operation* on both sides; the outcome, which must be the same.

        :param announced: the differences that it may have.
        """
        theirs, ours = (side.run(operation) for side in self.sides)
        if theirs != ours and "what cannot be encoded" in announced:
            assert ANNOUNCED["what cannot be encoded"]
            told = {"TypeError", "ValueError"} & set(ours.value)
            if told and theirs.kind == ours.kind == "raised":
                return theirs
        assert is_same(theirs, ours), f"ours: {ours}\nkombu's: {theirs}"
        note(f"   {theirs}")
        return theirs

    def leases(self, what: type[Any]) -> list[int]:
        return [i for i, one in enumerate(self.sides[0].leases) if isinstance(one.lent, what)]

    @property
    def lent(self) -> int:
        return len(self.sides[0].leases)

    def lease_for(self, which: int, what: type[Any]) -> int | None:
        """Which lease to work on; ``None`` for one of its own, as :meth:`Side.borrowed` makes it."""
        leases = self.leases(what)
        return leases[which % len(leases)] if leases else None

    def has_lease(self, what: type[Any]) -> bool:
        """Whether there is one to work on, or one can be had."""
        return bool(self.leases(what)) or (self.has_room and not self.kombus_would_hang)

    @property
    def limit(self) -> int | None:
        return self.sides[0].connections.limit or None

    @property
    def producer_limit(self) -> int | None:
        return self.sides[0].producers.limit or None

    @property
    def has_room(self) -> bool:
        return self.limit is None or self.lent < self.limit

    @property
    def kombus_would_hang(self) -> bool:
        """Whether a producer of kombu's has no connection to wait for: all are lent, or one was replaced."""
        return self.limit is not None and self.sides[0].connections._resource.empty()

    # -- acquire and release --------------------------------------------------------------------------------

    def how(self, pool: Any, *, full: bool, wait: bool) -> dict[str, Any]:
        """The arguments of an acquire.

        :param pool: kombu's.
        :param full: whether all that may be lent is.
        :param wait: whether it is to be asked to wait.
        """
        if not wait:
            return {}
        if full:
            return {"block": True, "timeout": 0.02}
        # kombu's waits for the whole time where a connection was replaced.
        return {} if pool.limit and pool._resource.empty() else {"block": True, "timeout": 30}

    @rule(wait=st.booleans())
    def acquire_connection(self, wait: bool) -> None:
        how = self.how(self.sides[0].connections, full=not self.has_room, wait=wait)
        done = self.both(lambda side: side.lend("connection", **how))
        assert (done.kind == "returned") == self.was_room(done)

    def was_room(self, done: Outcome) -> bool:
        """Whether there was room for what has just been asked for."""
        lent = self.lent - (done.kind == "returned")
        return self.limit is None or lent < self.limit

    @rule(wait=st.booleans())
    def acquire_producer(self, wait: bool) -> None:
        lent = len(self.leases(kombu.Producer))
        full = self.producer_limit is not None and lent >= self.producer_limit
        # Where the connections are used up, kombu's waits for ever; and one that was resized lends too many.
        if (not full and self.kombus_would_hang) or (full and self.overfull):
            return
        how = self.how(self.sides[0].producers, full=full, wait=wait)
        done = self.both(lambda side: side.lend("producer", **how))
        assert (done.kind == "raised") == full

    @precondition(lambda self: self.lent)
    @rule(which=choices, way=st.sampled_from(["itself", "pool", "with"]))
    def release(self, which: int, way: str) -> None:
        def operation(side: Side) -> None:
            lease = side.leases.pop(which % len(side.leases))
            if way == "itself":
                lease.lent.release()
            elif way == "pool":
                lease.pool.release(lease.lent)
            else:
                with lease.lent:
                    pass

        self.both(operation)

    @precondition(lambda self: self.lent)
    @rule(which=choices, error=st.sampled_from([ZeroDivisionError, KeyError, OSError]))
    def leave_with_an_exception(self, which: int, error: type[Exception]) -> None:
        def operation(side: Side) -> None:
            with side.leases.pop(which % len(side.leases)).lent:
                raise error

        assert self.both(operation).kind == "raised"

    @precondition(lambda self: self.lent)
    @rule(which=choices)
    def replace(self, which: int) -> None:
        def operation(side: Side) -> None:
            lease = side.leases.pop(which % len(side.leases))
            connection = lease.connection
            lease.pool.replace(lease.lent)
            if connection is not lease.lent and not side.ours:
                # kombu's forgets the connection under a producer.
                connection.release()

        self.both(operation)

    @precondition(lambda self: self.has_room)
    @rule(depth=st.integers(1, 3))
    def nested(self, depth: int) -> None:
        def operation(side: Side) -> list[bool]:
            with ExitStack() as stack:
                lent: list[Any] = []
                for _ in range(depth):
                    lent.append(stack.enter_context(side.connections.acquire()))
                return [one.default_channel is not lent[0].default_channel for one in lent[1:]]

        self.both(operation)

    @precondition(lambda self: self.has_room)
    @rule()
    def acquire_channel(self) -> None:
        def operation(side: Side) -> list[Any]:
            with side.connections.acquire_channel() as (connection, channel):
                return [channel is connection.default_channel, connection.connected]

        assert self.both(operation).value == [True, True]

    @precondition(lambda self: not self.kombus_would_hang)
    @rule(body=jsons)
    def make_a_producer_outside_acquire(self, body: Any) -> None:
        def operation(side: Side) -> Any:
            producer = side.producers.create_producer()
            producer.publish(body, routing_key=side.queues["first"].name, serializer="json")
            # kombu's own release does nothing there.
            connection = producer.__connection__
            taken = connection is not None
            connection.release()
            return taken

        if self.both(operation).kind == "returned":
            self.waiting["first"] += 1

    # -- publish ------------------------------------------------------------------------------------------------

    def publishing(
        self,
        index: int | None,
        what: tuple[Any, dict[str, Any]],
        kwargs: dict[str, Any],
        to: dict[str, Any],
    ) -> Operation:
        """An operation that publishes on a lent producer, or on one of its own."""
        body, needed = what

        def operation(side: Side) -> Any:
            with side.borrowed(index, "producer") as lease:
                queue = side.queues[to["queue"]]
                given = {**kwargs, **needed}
                if "headers" in given:
                    given["headers"] = dict(given["headers"])
                if "retry_policy" in given:
                    given["retry_policy"] = dict(given["retry_policy"])
                exchange: Any = queue.exchange if to["exchange"] else side.exchanges[""]
                if to["bound"]:
                    exchange = exchange(lease.connection.default_channel)
                if to["by_name"]:
                    exchange = exchange.name
                if exchange or to["exchange"]:
                    given["exchange"] = exchange
                key = queue.routing_key if to["exchange"] else queue.name
                if to["declare"] == "queue":
                    given["declare"] = [queue]
                elif to["declare"] == "both":
                    given["declare"] = [queue.exchange, queue]
                if to["reply_to"] == "name":
                    given["reply_to"] = queue.name
                elif to["reply_to"] == "queue":
                    given["reply_to"] = queue
                if to["positional"]:
                    order = ("delivery_mode", "mandatory", "immediate", "priority")
                    defaults: tuple[Any, ...] = (None, False, False, 0)
                    rest = [given.pop(*one) for one in zip(order, defaults, strict=True)]
                    return lease.lent.publish(body, key, *rest[: to["positional"]], **given)
                return lease.lent.publish(body, routing_key=key, **given)

        return operation

    where = st.fixed_dictionaries(
        {
            "queue": st.sampled_from(QUEUES),
            "exchange": st.booleans(),
            "bound": st.booleans(),
            "by_name": st.booleans(),
            "declare": st.sampled_from(["", "queue", "both"]),
            "reply_to": st.sampled_from(["", "name", "queue"]),
            "positional": st.sampled_from([0, 4]),
        }
    )

    messages = st.lists(
        st.tuples(any_bodies, few_arguments | arguments, where), min_size=2, max_size=6
    )

    @precondition(lambda self: self.has_lease(kombu.Producer))
    @rule(which=choices, messages=messages)
    def publish(self, which: int, messages: list[tuple[Any, ...]]) -> None:
        for what, kwargs, to in messages:
            self.publish_one(self.lease_for(which, kombu.Producer), what, kwargs, to)

    @precondition(lambda self: self.has_lease(kombu.Producer))
    @rule(which=choices, messages=messages, name=st.sampled_from(QUEUES))
    def publish_and_look(self, which: int, messages: list[tuple[Any, ...]], name: str) -> None:
        """The same, and the only rule of its kind: what is done most often has more than one."""
        for what, kwargs, to in messages:
            self.publish_one(self.lease_for(which, kombu.Producer), what, kwargs, to)
        self.look_into_a_queue(name)

    def publish_one(
        self,
        index: int | None,
        what: tuple[Any, dict[str, Any]],
        kwargs: dict[str, Any],
        to: dict[str, Any],
    ) -> None:
        if to["queue"] == "third" and to["exchange"] and not self.fanout:
            # Redis keeps nothing for a fanout exchange that nobody listens to.
            return
        if what[1].get("content_encoding") == "utf-16":
            # py-amqp decodes whatever is said to be UTF-16, what is compressed too.
            kwargs = {**kwargs, "compression": ""}
        done = self.both(self.publishing(index, what, kwargs, to))
        # kombu's writes the policy into the settings that its pools are looked up by.
        self.retried = self.retried or bool(kwargs.get("retry"))
        if done.kind == "returned":
            self.waiting[to["queue"]] += 1

    @rule(bad=bad_arguments, to=where)
    def publish_what_cannot_be_carried(self, bad: dict[str, Any], to: dict[str, Any]) -> None:
        # On kombu's own pools the connection is kombu's, and so is what is left on it.
        if not self.amqp or self.kind == "kombu's":
            return
        lent = len(self.leases(kombu.Producer))
        full = self.producer_limit is not None and lent >= self.producer_limit
        if full or self.kombus_would_hang or not self.has_room:
            return
        to = {**to, "exchange": False, "reply_to": ""}
        # On a lease of its own: kombu's may leave half a frame on the connection, which is of no use then.
        operation = self.publishing(None, ([], {}), bad, to)
        done = self.both(operation, "what cannot be encoded")
        if done.kind == "returned":
            self.waiting[to["queue"]] += 1

    @precondition(lambda self: self.has_lease(kombu.Producer) and hasattr(kombu.Producer, "batch"))
    @rule(which=choices, many=st.lists(jsons, max_size=4), size=st.integers(1, 3))
    def batch(self, which: int, many: list[Any], size: int) -> None:
        index = self.lease_for(which, kombu.Producer)

        def operation(side: Side) -> None:
            with side.borrowed(index, "producer") as lease:
                producer = lease.lent
                with producer.batch(max_size=size):
                    for one in many:
                        producer.publish(
                            one, routing_key=side.queues["first"].name, serializer="json"
                        )

        if self.both(operation).kind == "returned":
            self.waiting["first"] += len(many)

    @precondition(lambda self: self.has_lease(kombu.Producer))
    @rule(
        which=choices,
        queue=st.sampled_from(QUEUES),
        what=st.sampled_from(["declare", "exchange", "queue"]),
    )
    def declare(self, which: int, queue: str, what: str) -> None:
        index = self.lease_for(which, kombu.Producer)

        def operation(side: Side) -> Any:
            with side.borrowed(index, "producer") as lease:
                producer = lease.lent
                if what == "declare":
                    return producer.declare()
                entity = side.queues[queue]
                producer.maybe_declare(entity if what == "queue" else entity.exchange)
                # Whether it was new depends on whether the connection was: kept or not, which is announced.
                assert ANNOUNCED["unlimited pools"]
                return None

        self.both(operation)

    @precondition(lambda self: self.has_lease(kombu.Producer))
    @rule(
        which=choices,
        name=st.sampled_from(["serializer", "compression", "routing_key"]),
        body=jsons,
    )
    def set_on_a_producer(self, which: int, name: str, body: Any) -> None:
        index = self.lease_for(which, kombu.Producer)
        value = {"serializer": "pickle", "compression": "zlib", "routing_key": None}[name]

        def operation(side: Side) -> Any:
            with side.borrowed(index, "producer") as lease:
                producer = lease.lent
                before = getattr(producer, name)
                setattr(producer, name, value or side.queues["first"].name)
                try:
                    if name == "routing_key":
                        return producer.publish(body, serializer="json")
                    return producer.publish(body, side.queues["first"].name)
                finally:
                    setattr(producer, name, before)

        if self.both(operation).kind == "returned":
            self.waiting["first"] += 1

    # -- what is done with a lent connection ------------------------------------------------------------------

    def on_a_connection(self, which: int, work: Callable[[Side, Any], Any]) -> Outcome:
        index = self.lease_for(which, object)

        def operation(side: Side) -> Any:
            with side.borrowed(index, "connection") as lease:
                connection = lease.connection
                # kombu's may be closed by an exception in a former block, which is announced.
                assert ANNOUNCED["exception in a with block"]
                connection.ensure_connection(max_retries=1)
                return work(side, connection)

        return self.both(operation)

    @precondition(lambda self: self.has_lease(object))
    @rule(which=choices, body=jsons, end=st.sampled_from(["ack", "reject", "requeue"]))
    def simple_queue(self, which: int, body: Any, end: str) -> None:
        def work(side: Side, connection: Any) -> Any:
            simple = connection.SimpleQueue(
                f"{side.prefix}simple",
                queue_opts={"durable": False},
                exchange_opts={"durable": False},
            )
            try:
                simple.put(body, serializer="json")
                size = simple.qsize() if self.in_memory else 1
                message = simple.get(timeout=SOON)
                getattr(message, end)()
                if end == "requeue":
                    message = simple.get(timeout=SOON)
                    message.ack()
                try:
                    simple.get(block=False)
                except simple.Empty:
                    # Redis forgets an empty queue, and says so when it is asked how long it is.
                    return [size, side.message(message), len(simple) if self.in_memory else 0]
                raise AssertionError("more than one")
            finally:
                simple.close()
                simple.queue.delete()

        self.on_a_connection(which, work)

    @precondition(lambda self: self.has_lease(object))
    @rule(which=choices, many=st.lists(jsons, min_size=1, max_size=3), no_ack=st.booleans())
    def consume(self, which: int, many: list[Any], no_ack: bool) -> None:
        def work(side: Side, connection: Any) -> Any:
            channel = connection.channel()
            queue = kombu.Queue(f"{side.prefix}work", durable=False)
            queue(channel).declare()
            try:
                producer = connection.Producer(channel)
                for one in many:
                    producer.publish(one, routing_key=queue.name)
                got: list[Any] = []

                def on_message(body: Any, message: Any) -> None:
                    got.append([body, side.message(message)])
                    if not no_ack:
                        message.ack()

                with connection.Consumer(
                    queue, callbacks=[on_message], channel=channel, no_ack=no_ack
                ):
                    while len(got) < len(many):
                        connection.drain_events(timeout=SOON)
                    with pytest.raises(TimeoutError):
                        connection.drain_events(timeout=0.01)
                return got
            finally:
                queue(channel).delete()
                channel.close()

        self.on_a_connection(which, work)

    @precondition(lambda self: self.has_lease(object))
    @rule(which=choices, name=st.sampled_from(QUEUES))
    def get(self, which: int, name: str) -> None:
        if self.waiting[name] != 1:
            # Which of several comes first is chance, where they came by several connections.
            return

        def work(side: Side, connection: Any) -> Any:
            bound = side.queues[name](connection.default_channel)
            # Without confirms it may be still on its way.
            for _ in range(1000):
                message = bound.get()
                if message is not None:
                    break
            message.ack()
            return [side.message(message), message.acknowledged]

        self.on_a_connection(which, work)
        self.waiting[name] = 0

    @precondition(lambda self: self.has_lease(object))
    @rule(which=choices)
    def look_at_a_connection(self, which: int) -> None:
        def work(side: Side, connection: Any) -> Any:
            # kombu's connects when it is used first; ours is connected, which is announced.
            assert ANNOUNCED["acquire connects"]
            connection.default_channel
            info = {**connection.info(), "transport_options": None}
            return [
                connection.connected,
                connection.connection is connection.connection,
                connection.default_channel is connection.default_channel,
                connection.as_uri().replace("://:**@", "://"),
                connection.as_uri(include_password=True),
                info,
                # kombu's keeps the policy of a retry there.
                sorted(set(connection.transport_options) - POLICY.keys()),
                connection.transport_cls,
                connection.transport.driver_type,
                connection.userid,
                connection.virtual_host,
                connection.port,
                connection.heartbeat,
                connection.get_heartbeat_interval(),
                connection.heartbeat_check(),
                connection.supports_heartbeats,
                connection.is_evented,
                connection.qos_semantics_matches_spec,
                connection.transport.implements.asynchronous,
                isinstance(connection.channel(), type(connection.default_channel)),
                bool(connection),
                connection == connection,
            ]

        self.on_a_connection(which, work)

    @precondition(lambda self: self.has_lease(object))
    @rule(which=choices)
    def ensure(self, which: int) -> None:
        def work(side: Side, connection: Any) -> Any:
            same = connection.ensure_connection(max_retries=1)
            done = connection.ensure(connection, lambda one: one + 1, max_retries=1)(1)
            tried, channel = connection.autoretry(lambda value, channel: value, max_retries=1)(2)
            return [same is not None, done, tried, channel is not None]

        self.on_a_connection(which, work)

    # -- pools and groups -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.kind != "global")
    @rule(limit=st.sampled_from([1, 2, 3, 5]), by=st.sampled_from(["resize", "limit"]))
    def resize_connections(self, limit: int, by: str) -> None:
        if self.limit is None or (self.lent and self.lent <= limit < self.limit):
            # kombu's refuses any number that is less, while anything is lent.
            return

        def operation(side: Side) -> Any:
            if by == "resize":
                side.connections.resize(limit)
            else:
                side.connections.limit = limit
            return side.connections.limit

        self.both(operation)

    @precondition(lambda self: self.kind != "global" and not self.leases(kombu.Producer))
    @rule(limit=st.sampled_from([1, 2, 3]))
    def resize_producers(self, limit: int) -> None:
        if self.producer_limit is None:
            return
        self.overfull = self.overfull or limit >= self.producer_limit

        def operation(side: Side) -> Any:
            side.producers.resize(limit)
            return side.producers.limit

        self.both(operation)

    @precondition(lambda self: self.kind == "global" and not self.lent)
    @rule(limit=st.sampled_from([1, 2, 3, 5]))
    def set_limit(self, limit: int) -> None:
        if self.limit is None or self.producer_limit is None:
            return
        self.overfull = self.overfull or limit >= self.producer_limit
        self.both(lambda side: [side.pools.set_limit(limit), side.pools.get_limit()])

    @precondition(lambda self: not self.lent)
    @rule()
    def close_what_is_idle(self) -> None:
        # kombu's has no place to wait after that, so nobody waits without end here.
        self.both(lambda side: side.connections.force_close_all(close_pool=False) and None)

    @precondition(lambda self: self.kind in ("group", "global") and not self.retried)
    @rule(how=st.sampled_from(["itself", "equal", "clone", "copy"]))
    def look_up(self, how: str) -> None:
        def operation(side: Side) -> Any:
            template = side.template
            same = {
                "itself": template,
                "equal": kombu.Connection(
                    side.url, transport_options=dict(template.transport_options)
                ),
                "clone": template.clone(),
                "copy": template.__copy__(),
            }[how]
            return [
                [group[same] is group[template] for group in side.groups],
                [len(group) for group in side.groups],
                [group.limit is side.pools.use_global_limit for group in side.groups],
                [pool.limit or 0 for group in side.groups for pool in group.values()],
            ]

        self.both(operation)

    @precondition(lambda self: not self.lent and not self.retried)
    @rule()
    def register(self) -> None:
        def operation(side: Side) -> Any:
            class Mine(side.pools.PoolGroup):  # type: ignore[misc, name-defined]  # a module's
                def create(self, connection: Any, limit: int | None) -> Any:
                    return side.pools.connections[connection]

            before = side.pools.connections.limit is side.pools.use_global_limit
            group = Mine(limit=3)
            same = side.pools.register_group(group) is group
            pool = group[side.template]
            with pool.acquire() as connection:
                connected = connection.default_channel is not None
            pool.force_close_all(close_pool=False)
            known = len(group)
            group.clear()
            if self.kind != "global":
                side.pools.connections.clear()
            return [before, same, connected, known, len(group)]

        self.both(operation)

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def both_say_the_same(self) -> None:
        if self.sides:
            theirs, ours = (side.state for side in self.sides)
            assert ours == theirs, f"ours: {ours}\nkombu's: {theirs}"

    @rule(name=st.sampled_from(QUEUES))
    def look_into_a_queue(self, name: str) -> None:
        theirs, ours = (
            sorted(side.arrived(name, self.waiting[name]), key=repr) for side in self.sides
        )
        assert ours == theirs, f"in {name}\nours: {ours}\nkombu's: {theirs}"
        assert len(theirs) == self.waiting[name]
        self.waiting[name] = 0

    def teardown(self) -> None:
        try:
            # Else the machine has failed before.
            if len(self.sides) == 2 and all(len(side.leases) == self.lent for side in self.sides):
                self.end()
        finally:
            self.stack.close()

    def end(self) -> None:
        while self.lent:
            self.both(lambda side: side.leases.pop().lent.release())
        for name in QUEUES:
            self.look_into_a_queue(name)
        # All places are free again.
        for _ in range(self.limit or 3):
            assert self.both(lambda side: side.lend("connection")).kind == "returned"
        if self.limit is not None:
            assert self.both(lambda side: side.lend("connection")).kind == "raised"
        if self.kind != "global" and self.limit is not None and self.limit > 1:
            assert self.both(lambda side: side.connections.resize(1)).kind == "raised"
        while self.lent:
            self.both(lambda side: side.leases.pop().lent.release())
        places = self.producer_limit
        if (
            places is not None
            and not self.overfull
            and (self.limit is None or places <= self.limit)
        ):
            for _ in range(places):
                assert self.both(lambda side: side.lend("producer")).kind == "returned"
            assert self.both(lambda side: side.lend("producer")).kind == "raised"
        while self.lent:
            self.both(lambda side: side.leases.pop().lent.release())
        self.both(lambda side: side.connections.force_close_all() and None)
        for what in ("connection", "producer"):
            assert self.both(lambda side, w=what: side.lend(w)).kind == "raised"  # type: ignore[misc]


@pytest.mark.threads
def test_whatever_is_done_ours_do_as_kombus_do(url: str) -> None:
    scheme = url.partition(":")[0]
    run_state_machine_as_test(
        partial(Machine, url),
        settings=settings(
            max_examples=EXAMPLES or FEW[scheme],
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
            report_multiple_bugs=False,
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("name", ANNOUNCED)
def test_each_difference_is_announced(name: str) -> None:
    page, words = ANNOUNCED[name]
    assert words in (DOCS / page).read_text()
