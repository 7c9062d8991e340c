"""The fast path and kombu's own way write the same bytes, and raise the same errors."""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import ChannelError, ConnectionError, NotFound
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError

from kombu_pools_ext import pools
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming

pytestmark = pytest.mark.broker

texts = st.text(max_size=20)
json = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), texts, st.uuids(), st.datetimes()),
        *(st.binary(max_size=20), st.decimals(allow_nan=False)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
bodies = st.one_of(json, st.binary(max_size=5000), st.text(max_size=2000), st.just(object()))
arguments = st.fixed_dictionaries(
    {"message_id": st.one_of(texts, st.integers())},
    optional={
        "exchange": st.one_of(
            *(st.none(), texts, st.integers(), st.just(kombu.Exchange("e", delivery_mode=1))),
        ),
        "routing_key": st.one_of(st.none(), texts, st.text(min_size=250, max_size=300)),
        "delivery_mode": st.sampled_from([None, 1, 2, "transient", "persistent", 3, 300, 2.0]),
        "mandatory": st.booleans(),
        "immediate": st.just(False),
        "priority": st.sampled_from([None, 0, 9, 255, 256, 1.0, "1", True]),
        "content_type": st.sampled_from([None, "", "text/plain", "application/json"]),
        "content_encoding": st.sampled_from([None, "utf-8", "binary", "latin-1", "ascii", "none"]),
        "serializer": st.sampled_from([None, "json", "pickle", "raw", "nobody's"]),
        "headers": st.one_of(st.none(), st.dictionaries(texts, json, max_size=3)),
        "declare": st.sampled_from([None, (), (kombu.Exchange("amq.direct"),)]),
        "compression": st.sampled_from([None, "", "zlib", "nobody's"]),
        "expiration": st.sampled_from([None, 0, 1.5, 60, "1"]),
        "correlation_id": st.one_of(st.none(), texts, st.integers()),
        "reply_to": st.one_of(texts, st.just(kombu.Queue("answers"))),
        "timestamp": st.one_of(st.none(), st.integers(-1, 1 << 65)),
        "type": texts,
        "app_id": texts,
        "weather": texts,
        "application_headers": st.just({}),
    },
)


@pytest.fixture(scope="module")
def said(amqp_url: str) -> Iterator[Callable[..., Any]]:
    """What a publish writes, or what it ends with; nothing of it is sent."""
    connections = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    producers = pools.ProducerPool(connections)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=f"nobody-{uuid.uuid4()}")
        item = producer._lease.item
        transport = item.established._transport
        usual, written = transport._write, []

        def said(body: Any, **kwargs: Any) -> Any:
            written.clear()
            sent = item.established.bytes_sent
            transport._write = lambda data: written.append(bytes(data))
            try:
                done = producer.publish(body, **kwargs)
            except Exception as error:
                assert not written
                return type(error), str(error), getattr(error, "__notes__", None)
            finally:
                transport._write = usual
            assert item.established.bytes_sent == sent + 1
            assert done is None
            return b"".join(written)

        said.producer = producer  # type: ignore[attr-defined]
        yield said
    connections.force_close_all()


@given(body=bodies, kwargs=arguments)
def test_any_publish(said: Callable[..., Any], body: Any, kwargs: dict[str, Any]) -> None:
    short = said(body, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(said.producer), "publishes_as_kombu", False)  # type: ignore[attr-defined]
        assert said(body, **kwargs) == short


@pytest.mark.parametrize("size", [0, 1, 131_000, 131_072, 400_000, 2_000_000])
def test_any_size(said: Callable[..., Any], size: int) -> None:
    body = uuid.uuid4().bytes * (size // 16 + 1)
    short = said(body[:size], message_id="m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(said.producer), "publishes_as_kombu", False)  # type: ignore[attr-defined]
        assert said(body[:size], message_id="m") == short


def test_the_callers_dictionaries_stay_as_they_are(said: Callable[..., Any]) -> None:
    headers, kwargs = {"a": 1}, {"message_id": "m", "correlation_id": "c", "timestamp": 5}
    said({"b": decimal.Decimal("1.5")}, headers=headers, **kwargs)
    assert headers == {"a": 1}


# -- which way -----------------------------------------------------------------------------------------------


class OfItsOwn(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
    """Changes how it is published."""

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        return super()._publish(*args, **kwargs)


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize(
    "short, kwargs",
    [
        (True, {}),
        (True, {"headers": {"a": 1}, "expiration": 60, "priority": 5, "correlation_id": "c"}),
        (True, {"serializer": "pickle"}),
        (True, {"mandatory": True, "timeout": PATIENCE}),
        (True, {"retry": True, "retry_policy": {"max_retries": 1}}),
        (False, {"compression": "zlib"}),
        (True, {"declare": [kombu.Exchange("amq.direct"), kombu.Queue("", no_declare=True)]}),
        (False, {"weather": "fine"}),
    ],
)
def test_the_short_way_is_for_the_usual(
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    taken: list[bytes],
    confirmed: bool,
    short: bool,
    kwargs: dict[str, Any],
) -> None:
    box = inbox(amqp_url)
    connection = confirming(amqp_url) if confirmed else kombu.Connection(amqp_url)
    with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
        # kombu's: it opens the channel.
        producer.publish(0, routing_key=box.name)
        for number in range(1, 4):
            producer.publish([number], routing_key=box.name, **kwargs)
        assert len(taken) == (3 if short else 0)
    messages = box.messages(4)
    with_pickle = [message.decode() if "serializer" not in kwargs else None for message in messages]
    assert with_pickle in ([0, [1], [2], [3]], [None] * 4)
    ids = {message.properties["message_id"] for message in messages}
    assert len(ids) == 4


def test_what_a_borrower_sets_on_it(
    amqp_url: str, inbox: Callable[[str], Inbox], taken: list[bytes]
) -> None:
    box = inbox(amqp_url)
    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish(0, routing_key=box.name)
        producer.compression = "zlib"
        producer.publish(1, routing_key=box.name)
        assert taken == []
        producer.compression = None
        producer.serializer, producer.routing_key = "raw", box.name
        producer.publish(b"2")
        assert len(taken) == 1
        del producer.serializer, producer.routing_key
    assert [message.body for message in box.messages(3)][-1] == b"2"


@pytest.mark.parametrize("confirmed", [False, True])
def test_what_is_to_be_declared_is_there(
    amqp_url: str, queue: str, taken: list[bytes], confirmed: bool
) -> None:
    exchange = kombu.Exchange(queue, durable=False, auto_delete=True)
    bound = kombu.Queue(queue, exchange, routing_key="key", durable=False, auto_delete=True)
    connection = confirming(amqp_url) if confirmed else kombu.Connection(amqp_url)
    with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
        producer.publish("first", routing_key=f"{queue}-nobody")
        asked: list[Any] = []
        maybe_declare = producer.maybe_declare
        producer.maybe_declare = lambda *args, **kwargs: (
            asked.append((args, kwargs)),
            maybe_declare(*args, **kwargs),
        )
        before, producer.exchange = producer.exchange, exchange(producer.channel)
        given = [bound]
        for number in range(3):
            producer.publish(number, routing_key="key", declare=given)
        # Its own exchange as well, as kombu has it.
        assert given == [bound, exchange]
        assert len(taken) == 3
        assert len(asked) == 6
        del producer.maybe_declare
        producer.exchange = before
        inbox = bound(producer.connection.channel())
        found: list[int] = []
        eventually(lambda: found.extend(_all(inbox)) or found == [0, 1, 2])
        inbox.delete()


def _all(inbox: kombu.Queue) -> list[Any]:
    message = inbox.get(no_ack=True)
    return [] if message is None else [message.payload]


def test_a_declaration_that_fails(amqp_url: str, taken: list[bytes], queue: str) -> None:
    wrong = kombu.Exchange(f"{queue}-wrong", type="nobody-knows")
    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish("first", routing_key=f"{queue}-nobody")
        with pytest.raises((ChannelError, ConnectionError)):
            producer.publish("x", routing_key=queue, declare=[wrong])
        assert producer.broken
    assert taken == []


def test_a_class_that_publishes_otherwise(
    amqp_url: str, inbox: Callable[[str], Inbox], taken: list[bytes]
) -> None:
    box = inbox(amqp_url)
    connections = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    producers = pools.ProducerPool(connections, Producer=OfItsOwn)
    with producers.acquire(timeout=PATIENCE) as producer:
        for number in range(2):
            producer.publish(number, routing_key=box.name)
    assert taken == []
    assert box.bodies(2) == [0, 1]
    connections.force_close_all()


def test_on_a_channel_of_the_borrowers_own(
    amqp_url: str, inbox: Callable[[str], Inbox], taken: list[bytes]
) -> None:
    box = inbox(amqp_url)
    for connection, short in ((kombu.Connection(amqp_url), 2), (confirming(amqp_url), 0)):
        taken.clear()
        with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
            producer.revive(producer.connection.channel())
            for number in range(2):
                producer.publish(number, routing_key=box.name)
        assert len(taken) == short
    assert sorted(box.bodies(4)) == [0, 0, 1, 1]


def test_it_is_serialized_once(amqp_url: str, inbox: Callable[[str], Inbox]) -> None:
    box, asked = inbox(amqp_url), []

    class Counted:
        def __json__(self) -> int:
            asked.append(1)
            return len(asked)

    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        for more in ({}, {}, {"weather": "fine"}, {"mandatory": True}):
            producer.publish(Counted(), routing_key=box.name, **more)
        with pytest.raises(EncodeError):
            producer.publish(object(), routing_key=box.name)
        assert not producer.broken
    assert box.bodies(4) == [1, 2, 3, 4]


def test_the_channels_end_is_heard_before_the_next_publish(
    amqp_url: str, inbox: Callable[[str], Inbox], queue: str, taken: list[bytes]
) -> None:
    """As py-amqp does: what came unasked is read, and raised."""
    box = inbox(amqp_url)
    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish(0, routing_key=box.name)
        producer.publish("x", exchange=f"{queue}-nobody", routing_key=box.name)
        transport = producer._lease.item.pooled_session.transport
        eventually(lambda: transport.look() is not None)
        with pytest.raises(NotFound, match="no exchange"):
            producer.publish(1, routing_key=box.name)
        assert producer.broken
        producer.publish(2, routing_key=box.name)
    assert box.bodies(2) == [0, 2]
