"""Random topologies and what is done with them, and a player that does it on any broker and notes the answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import amqp
from amqp.exceptions import AMQPError, ChannelError
from hypothesis import strategies as st

__all__ = ["Player", "Step", "plays"]

#: One step: the name of a method of :class:`Player`, and its arguments.
Step = tuple[str, dict[str, Any]]

QUEUES = ("q1", "q2", "q3")
EXCHANGES = ("x1", "x2", "x3")
KEYS = ("", "a", "a.b", "a.b.c", "b", "a..b")
PATTERNS = (*KEYS, "#", "*", "a.#", "*.b", "#.b", "a.*.c", "*.#", "#.*.#")
#: Seconds for what one queue hands over to another one.
SETTLED = 5.0

queues = st.sampled_from(QUEUES)
exchanges = st.sampled_from(EXCHANGES)
some_exchange = st.one_of(
    exchanges, exchanges, st.sampled_from(("", "amq.topic", "amq.fanout", "amq.headers"))
)
#: None of the broker's own that has bindings: other plays, and other tests, publish there.
bindable = st.one_of(exchanges, exchanges, st.just(""))
flags = st.booleans()
header_values = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.sampled_from(("", "v", "é")),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.just(1 << 40),
)
headers = st.dictionaries(st.sampled_from(("h", "i", "x-own")), header_values, max_size=3)

queue_arguments = st.fixed_dictionaries(
    {},
    optional={
        "x-max-length": st.sampled_from((0, 1, 2, 2, 3, -1, "1")),
        "x-max-length-bytes": st.sampled_from((0, 3, 10)),
        "x-overflow": st.sampled_from(
            ("drop-head", "reject-publish", "reject-publish", "reject-publish-dlx", "other")
        ),
        "x-message-ttl": st.sampled_from((0, 600_000, -1)),
        "x-max-priority": st.sampled_from((1, 3, 255, 256)),
        "x-dead-letter-exchange": st.one_of(exchanges, st.just("")),
        "x-dead-letter-routing-key": st.one_of(queues, st.sampled_from(KEYS)),
        "x-expires": st.sampled_from((600_000, 0)),
        "other": st.integers(0, 1),
    },
)
#: Mostly none, so that what is declared twice is often the same.
few_arguments = st.one_of(st.just({}), st.just({}), queue_arguments)

properties = st.fixed_dictionaries(
    {},
    optional={
        "application_headers": headers,
        "priority": st.integers(0, 5),
        "delivery_mode": st.integers(1, 2),
        "expiration": st.sampled_from(("0", "600000", "x", "5x", "-1", "")),
        "user_id": st.sampled_from(("guest", "somebody")),
        "message_id": st.text(max_size=5),
        "correlation_id": st.just("c"),
        "reply_to": st.just("r"),
        "type": st.just("t"),
        "timestamp": st.integers(0, 1 << 33),
        "content_type": st.just("text/plain"),
        "content_encoding": st.just("utf-8"),
    },
)

publish = st.tuples(
    st.just("publish"),
    st.fixed_dictionaries(
        {
            "exchange": some_exchange,
            "key": st.one_of(queues, st.sampled_from(KEYS)),
            "mandatory": flags,
            "body": st.binary(max_size=6),
            "properties": properties,
        }
    ),
)
others = st.one_of(
    st.tuples(
        st.just("declare_exchange"),
        st.fixed_dictionaries(
            {
                "name": some_exchange,
                "kind": st.sampled_from(("direct", "topic", "fanout", "headers", "strange")),
            },
            optional={
                "passive": flags,
                "durable": flags,
                "auto_delete": flags,
                "alternate": some_exchange,
            },
        ),
    ),
    st.tuples(
        st.just("declare_queue"),
        st.fixed_dictionaries(
            {"name": st.one_of(queues, queues, st.just("amq.mine"))},
            optional={
                "passive": flags,
                "durable": flags,
                "auto_delete": flags,
                "exclusive": flags,
                "arguments": few_arguments,
            },
        ),
    ),
    st.tuples(
        st.sampled_from(("bind", "bind", "bind", "unbind")),
        st.fixed_dictionaries(
            {"queue": queues, "exchange": bindable, "key": st.sampled_from(PATTERNS)},
            optional={"match": st.sampled_from(("all", "any", "some")), "headers": headers},
        ),
    ),
    st.tuples(
        st.sampled_from(("bind_exchange", "bind_exchange", "unbind_exchange")),
        st.fixed_dictionaries(
            {
                "destination": bindable,
                "source": bindable,
                "key": st.sampled_from(PATTERNS),
            }
        ),
    ),
    st.tuples(
        st.just("delete_queue"),
        st.fixed_dictionaries({"name": queues}, optional={"if_unused": flags, "if_empty": flags}),
    ),
    st.tuples(
        st.just("delete_exchange"),
        st.fixed_dictionaries({"name": some_exchange}, optional={"if_unused": flags}),
    ),
    st.tuples(st.just("purge"), st.fixed_dictionaries({"name": queues})),
    st.tuples(
        st.just("get"),
        st.fixed_dictionaries(
            {"name": queues, "then": st.sampled_from(("ack", "reject", "requeue", "keep"))}
        ),
    ),
    st.tuples(st.just("acknowledge_nothing"), st.just({})),
    st.tuples(st.just("consume"), st.fixed_dictionaries({"name": queues, "exclusive": flags})),
    st.tuples(st.just("cancel"), st.just({})),
)


def _declarations(draw: st.DrawFn) -> list[Step]:
    """A topology to begin with, most of which is in order."""
    steps: list[Step] = []
    for name in EXCHANGES[: draw(st.integers(1, 3))]:
        kind = draw(st.sampled_from(("direct", "topic", "fanout", "headers")))
        steps.append(("declare_exchange", {"name": name, "kind": kind}))
    for name in QUEUES[: draw(st.integers(1, 3))]:
        steps.append(("declare_queue", {"name": name, "arguments": draw(few_arguments)}))
    for _ in range(draw(st.integers(0, 4))):
        queue, exchange = draw(queues), draw(exchanges)
        steps.append(
            ("bind", {"queue": queue, "exchange": exchange, "key": draw(st.sampled_from(PATTERNS))})
        )
    return steps


@st.composite
def plays(draw: st.DrawFn) -> list[Step]:
    """A list of steps: a topology, and what is done with it, half of that publishing."""
    return [
        *_declarations(draw),
        *draw(st.lists(st.one_of(publish, publish, others), min_size=1, max_size=12)),
    ]


class Player:
    """Does the steps of a play on one broker, and notes what it answers.

    :param connect: returns a new connection of py-amqp's, which is connected.
    :param prefix: what the names of queues and exchanges begin with, so that plays do not meet.
    """

    def __init__(self, connect: Callable[[], Any], prefix: str) -> None:
        self._connect = connect
        self._prefix = prefix
        self._connection: Any = None
        self._channel: Any = None
        self._returned: list[Any] = []
        self._confirmed: list[str] = []
        self._delivered: list[Any] = []
        self._tag: str | None = None
        #: What was answered, step by step.
        self.notes: list[Any] = []

    def __enter__(self) -> Player:
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        for name in QUEUES:
            self._clean(lambda name=name: self._channel.queue_delete(self._named(name)))
        for name in EXCHANGES:
            self._clean(lambda name=name: self._channel.exchange_delete(self._named(name)))
        self._connection.close()

    def _clean(self, do: Callable[[], object]) -> None:
        try:
            do()
        except AMQPError:
            self._reopen()

    def _named(self, name: str) -> str:
        return name if not name or name.startswith("amq.") else self._prefix + name

    def _key(self, key: str) -> str:
        return self._named(key) if key in QUEUES else key

    # -- the connection -----------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._connection is None or not self._connection.connected:
            self._connection = self._connect()
        channel = self._channel = self._connection.channel()
        channel.confirm_select()
        channel.events["basic_return"].add(
            lambda error, exchange, key, message: self._returned.append(
                (error.reply_code, error.reply_text, self._short(exchange), self._short(key))
            )
        )
        channel.events["basic_ack"].add(lambda tag, multiple: self._confirmed.append("ack"))
        channel.events["basic_nack"].add(lambda tag, multiple: self._confirmed.append("nack"))
        self._tag = None
        self._delivered.clear()

    def _reopen(self) -> None:
        try:
            if self._connection.connected:
                # py-amqp has opened the channel that was closed again.
                self._channel.close()
        except (AMQPError, OSError):
            self._connection.collect()
        self._open()

    def _short(self, text: Any) -> Any:
        return text.replace(self._prefix, "") if isinstance(text, str) else text

    def play(self, steps: list[Step]) -> None:
        """Do *steps*, and note what comes of each."""
        for name, arguments in steps:
            try:
                note = getattr(self, name)(**arguments)
            except ChannelError as error:
                note = self._noted(error)
                self._reopen()
            except AMQPError as error:
                note = self._noted(error)
                self._connection.collect()
                self._open()
            self.notes.append((name, note))

    def _noted(self, error: AMQPError) -> tuple[str, Any, Any, str]:
        return (
            type(error).__name__,
            error.reply_code,
            self._short(error.reply_text),
            error.method_name,
        )

    # -- the steps ----------------------------------------------------------------------------------------

    def declare_exchange(
        self, name: str, kind: str, alternate: str | None = None, **options: Any
    ) -> None:
        options.setdefault("auto_delete", False)
        arguments = {} if alternate is None else {"alternate-exchange": self._named(alternate)}
        self._channel.exchange_declare(self._named(name), kind, arguments=arguments, **options)

    def declare_queue(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> tuple[int, int]:
        given = dict(arguments or {})
        for key in ("x-dead-letter-exchange", "x-dead-letter-routing-key"):
            if key in given:
                value = given[key]
                given[key] = self._named(value) if key.endswith("exchange") else self._key(value)
        options.setdefault("auto_delete", False)
        declared = self._channel.queue_declare(self._named(name), arguments=given, **options)
        return declared.message_count, declared.consumer_count

    def bind(
        self,
        queue: str,
        exchange: str,
        key: str,
        match: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> None:
        self._channel.queue_bind(
            self._named(queue), self._named(exchange), key, arguments=_binding(match, headers)
        )

    def unbind(
        self,
        queue: str,
        exchange: str,
        key: str,
        match: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> None:
        self._channel.queue_unbind(
            self._named(queue), self._named(exchange), key, arguments=_binding(match, headers)
        )

    def bind_exchange(self, destination: str, source: str, key: str) -> None:
        self._channel.exchange_bind(self._named(destination), self._named(source), key)

    def unbind_exchange(self, destination: str, source: str, key: str) -> None:
        self._channel.exchange_unbind(self._named(destination), self._named(source), key)

    def delete_queue(self, name: str, **options: Any) -> int:
        return int(self._channel.queue_delete(self._named(name), **options))

    def delete_exchange(self, name: str, **options: Any) -> None:
        self._channel.exchange_delete(self._named(name), **options)

    def purge(self, name: str) -> int:
        return int(self._channel.queue_purge(self._named(name)))

    def publish(
        self, exchange: str, key: str, mandatory: bool, body: bytes, properties: dict[str, Any]
    ) -> tuple[list[str], list[Any]]:
        self._returned.clear()
        self._confirmed.clear()
        message = amqp.Message(body, **properties)
        self._channel.basic_publish(
            message, exchange=self._named(exchange), routing_key=self._key(key), mandatory=mandatory
        )
        while not self._confirmed:
            self._connection.drain_events(timeout=SETTLED)
        return list(self._confirmed), list(self._returned)

    def get(self, name: str, then: str) -> Any:
        message = self._channel.basic_get(self._named(name), no_ack=False)
        if message is None:
            return None
        if then == "ack":
            self._channel.basic_ack(message.delivery_tag)
        elif then != "keep":
            self._channel.basic_reject(message.delivery_tag, requeue=then == "requeue")
        return self._content(message)

    def acknowledge_nothing(self) -> None:
        self._channel.basic_ack(12345)
        # What follows meets the closed channel.
        self._channel.basic_qos(0, 0, False)

    def consume(self, name: str, exclusive: bool) -> None:
        if self._tag is not None:
            return
        self._tag = self._channel.basic_consume(
            self._named(name),
            exclusive=exclusive,
            callback=lambda message: self._delivered.append(self._content(message)),
            on_cancel=lambda tag: self._delivered.append("cancelled"),
        )
        # Answered after what the queue had to deliver by then was sent.
        self._channel.basic_qos(0, 0, False)

    def cancel(self) -> list[Any]:
        """Cancel the consumer, and return what it got meanwhile."""
        tag, self._tag = self._tag, None
        if tag is not None:
            self._channel.basic_cancel(tag)
            # Answered after all that was on its way.
            self._channel.basic_qos(0, 0, False)
        return list(self._delivered)

    # -- what is there in the end -------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """The number of messages of each queue; ``None`` if there is no such queue."""
        found: dict[str, Any] = {}
        for name in QUEUES:
            try:
                found[name] = self._channel.queue_declare(
                    self._named(name), passive=True
                ).message_count
            except ChannelError as error:
                found[name] = None if error.reply_code == 404 else error.reply_code
                self._reopen()
        return found

    def settle(self, expected: dict[str, Any] | None = None) -> dict[str, Any]:
        """The counts; where messages go on from queue to queue by themselves, once they are as *expected*."""
        # The consumer, and what was not acknowledged: back to where it was.
        self._reopen()
        until = time.monotonic() + SETTLED
        found = self.counts()
        while expected is not None and found != expected and time.monotonic() < until:
            found = self.counts()
        return found

    def contents(self) -> dict[str, list[Any]]:
        """All messages of each queue, which is empty then."""
        found: dict[str, list[Any]] = {}
        for name, count in self.counts().items():
            if isinstance(count, int):
                found[name] = []
                try:
                    while (
                        message := self._channel.basic_get(self._named(name), no_ack=True)
                    ) is not None:
                        found[name].append(self._content(message))
                except ChannelError:
                    self._reopen()
        return found

    def _content(self, message: Any) -> Any:
        info = message.delivery_info
        return (
            bytes(message.body.encode() if isinstance(message.body, str) else message.body),
            self._plain(dict(message.properties)),
            self._short(info["exchange"]),
            self._short(info["routing_key"]),
            info["redelivered"],
        )

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._plain(one) for key, one in value.items() if key != "time"}
        if isinstance(value, list):
            return [self._plain(one) for one in value]
        if isinstance(value, datetime):
            return "a time"
        return self._short(value)


def _binding(match: str | None, headers: dict[str, Any] | None) -> dict[str, Any]:
    return {**({} if match is None else {"x-match": match}), **(headers or {})}
