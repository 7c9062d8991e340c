"""A batch without confirms on AMQP is written together, and nothing that was published in it is kept back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import EncodeError

from kombu_pools_ext import Pools, pools
from kombu_pools_ext.broker.amqp import compat, publisher
from kombu_pools_ext.broker.amqp.transport import HEARTBEAT
from kombu_pools_ext.broker.batch import Batch
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.broker.test_acceptance import UNEXPECTED
from tests.broker.test_batch import in_queue
from tests.broker.test_confirms import proxy, sound  # noqa: F401  # fixtures
from tests.broker.test_fast_publish import OfItsOwn
from tests.broker.test_gathering import by_what_else_is_said, gathered, patient  # noqa: F401  # fixtures
from tests.proxy import TO_SERVER, Proxy

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("patient")]

MakePool = Callable[..., pools.ProducerPool]
AT_ONCE = publisher.AT_ONCE


@pytest.fixture
def make(amqp_url: str, proxy: Proxy) -> Iterator[MakePool]:  # noqa: F811
    """Makes a pool of one producer, by way of the proxy."""
    made: list[pools.ConnectionPool] = []

    def make(confirm_timeout: float | None = None, **options: Any) -> pools.ProducerPool:
        connection = kombu.Connection(through(proxy, amqp_url))
        made.append(pools.ConnectionPool(connection, limit=1, confirm_timeout=confirm_timeout))
        return pools.ProducerPool(made[-1], **options)

    yield make
    for one in made:
        one.force_close_all()


@pytest.fixture
def producers(make: MakePool) -> pools.ProducerPool:
    return make()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


def publish(producer: Any, box: Inbox, count: int) -> None:
    for number in range(count):
        producer.publish(number, routing_key=box.name)


def test_they_are_written_together(
    producers: pools.ProducerPool, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        transport = producer._lease.item.established._transport
        write = transport._write
        monkeypatch.setattr(transport, "_write", lambda data: (writes.append(1), write(data))[1])
        assert producer.supports_batch_publish
        with producer.batch() as batch:
            assert isinstance(batch, Batch)
            for number in range(900):
                producer.publish(number, routing_key=box.name)
                assert gathered(producer) < publisher.GATHERED
            assert gathered(producer) > 0
        assert gathered(producer) == 0
    assert batch.results == {}
    messages = box.messages(901)
    assert [message.payload for message in messages] == ["warm", *range(900)]
    assert len({message.properties["message_id"] for message in messages}) == 901
    # Of about 200 bytes each.
    assert AT_ONCE < len(writes) < AT_ONCE + 10
    assert producers.connections.stats().closed == {}


def test_when_they_are_written(producers: pools.ProducerPool, box: Inbox) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch(max_size=AT_ONCE + 5) as batch:
            # The first ones at once.
            publish(producer, box, AT_ONCE)
            eventually(lambda: in_queue(box) == AT_ONCE)
            # Others by flush, if they are not as many as there may be.
            publish(producer, box, 3)
            assert gathered(producer) > 0
            batch.flush()
            assert gathered(producer) == 0
            eventually(lambda: in_queue(box) == AT_ONCE + 3)
            batch.flush()
            publish(producer, box, 2)
            assert gathered(producer) == 0
            publish(producer, box, 1)
            assert gathered(producer) > 0
        assert gathered(producer) == 0
        # One by one again.
        producer.publish("x", routing_key=box.name)
        eventually(lambda: in_queue(box) == AT_ONCE + 7)


def test_whoever_makes_them_slowly_has_them_sent_meanwhile(
    producers: pools.ProducerPool, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(publisher, "_monotonic", lambda: now)
    with producers.acquire(timeout=PATIENCE) as producer, producer.batch():
        publish(producer, box, AT_ONCE + 3)
        assert gathered(producer) > 0
        now += 2 * publisher.GATHERED_FOR
        publish(producer, box, 1)
        assert gathered(producer) == 0


@by_what_else_is_said
def test_whatever_else_is_said_comes_after_them(
    producers: pools.ProducerPool, box: Inbox, other: Callable[[Any, str], Any]
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer, producer.batch():
        publish(producer, box, AT_ONCE + 5)
        assert gathered(producer) > 0
        other(producer, box.name)
        assert gathered(producer) == 0
    bodies = [message.body for message in box.messages(AT_ONCE + 6)]
    assert [bytes(body, "utf-8") if isinstance(body, str) else body for body in bodies[:-1]] == [
        str(number).encode() for number in range(AT_ONCE + 5)
    ]


# -- how a block ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError, GeneratorExit, KeyboardInterrupt])
def test_what_was_published_before_an_exception_is_sent(
    producers: pools.ProducerPool, box: Inbox, error: type[BaseException]
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(error), producer.batch() as batch:
            publish(producer, box, AT_ONCE + 5)
            assert gathered(producer) > 0
            raise error
        assert gathered(producer) == 0
        with pytest.raises(RuntimeError, match="not active"):
            batch.flush()
    assert box.bodies(AT_ONCE + 5) == list(range(AT_ONCE + 5))
    assert producers.connections.stats().closed == {}


@pytest.mark.parametrize(
    "give_back",
    [
        lambda pool, producer: producer.release(),
        lambda pool, producer: producer.__exit__(None, None, None),
        lambda pool, producer: pool.release(producer),
        lambda pool, producer: pool.replace(producer),
    ],
    ids=["release", "with", "the pool's release", "replace"],
)
def test_so_is_what_was_published_before_the_producer_was_given_back(
    producers: pools.ProducerPool, box: Inbox, give_back: Callable[[Any, Any], None]
) -> None:
    producer = producers.acquire(timeout=PATIENCE)
    with producer.batch():
        publish(producer, box, AT_ONCE + 5)
        assert gathered(producer) > 0
        give_back(producers, producer)
    assert box.bodies(AT_ONCE + 5) == [*range(AT_ONCE + 5)]
    assert "broken" not in producers.connections.stats().closed


def test_a_message_that_cannot_be_sent_at_all_leaves_the_others_alone(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer, producer.batch():
        publish(producer, box, AT_ONCE + 5)
        with pytest.raises(EncodeError):
            producer.publish(object(), routing_key=box.name)
        with pytest.raises(ValueError, match=r"priority must be .*, not 300"):
            producer.publish("x", routing_key=box.name, priority=300)
        publish(producer, box, 1)
    assert box.bodies(AT_ONCE + 6) == [*range(AT_ONCE + 5), 0]


# -- it breaks in the middle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rst", [True, False])
@pytest.mark.parametrize("by", ["the next message", "flush", "the block's end"])
def test_the_connection_breaks(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    by: str,
    rst: bool,
) -> None:
    """What was gathered is lost like all that was on its way; but whoever published it hears of that."""
    with pytest.raises((OSError, amqp.AMQPError)) as caught:
        with producers.acquire(timeout=PATIENCE) as producer, producer.batch() as batch:
            publish(producer, box, AT_ONCE + 5)
            assert gathered(producer) > 0
            proxy.cut(rst=rst)
            transport = producer._lease.item.pooled_session.transport
            eventually(lambda: transport.look() is not None)
            if by == "flush":
                with pytest.raises((OSError, amqp.AMQPError)) as first:
                    batch.flush()
            elif by == "the next message":
                with pytest.raises((OSError, amqp.AMQPError)) as first:
                    producer.publish("x", routing_key=box.name, message_id="mine", retry=True)
            if by != "the block's end":
                assert gathered(producer) == 0
                for more in (lambda: producer.publish("x"), batch.flush):
                    with pytest.raises(RuntimeError, match="aborted batch"):
                        more()
                raise first.value
    count = AT_ONCE + 5 + (by == "the next message")
    (note,) = caught.value.__notes__
    assert f"any of the {count} messages of the batch may not be in the broker" in note
    assert note.endswith("from message mine on, they were not sent") is (by == "the next message")
    assert producers.connections.stats().closed == {"broken": 1}
    assert proxy.accepted == 1
    proxy.heal()
    sound(producers, box.name)


@pytest.mark.parametrize("by", ["the next message", "flush", "the block's end"])
def test_nobody_dials_after_the_broker_has_closed_the_connection(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    by: str,
) -> None:
    with pytest.raises(amqp.AMQPError, match="unexpected method") as caught:
        with producers.acquire(timeout=PATIENCE) as producer, producer.batch() as batch:
            publish(producer, box, AT_ONCE + 5)
            producer._lease.item.established._transport.write(UNEXPECTED)
            transport = producer._lease.item.pooled_session.transport
            eventually(lambda: transport.look() is not None)
            if by == "the next message":
                publish(producer, box, 1)
            elif by == "flush":
                batch.flush()
    assert len(caught.value.__notes__) == 1
    assert producers.connections.stats().closed == {"broken": 1}
    assert proxy.accepted == 1
    sound(producers, box.name)


@pytest.mark.parametrize("by", ["the next message", "flush", "the block's end"])
def test_a_broker_that_reads_no_more(make: MakePool, proxy: Proxy, box: Inbox, by: str) -> None:  # noqa: F811
    producers = make(confirm_timeout=0.3)
    began = time.monotonic()
    with pytest.raises((OSError, amqp.AMQPError)) as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish(b"", routing_key=box.name, timeout=PATIENCE)
            proxy.hold(TO_SERVER)
            with producer.batch() as batch:
                publish(producer, box, AT_ONCE + 5)
                # More than the buffers hold, and whole frames of the connection's own.
                producer._lease.item.pooled_session.transport.gather(bytes(16_000_000))
                if by == "flush":
                    batch.flush()
                elif by == "the next message":
                    # Before it is published, what came is read; and before that, what was gathered is written.
                    proxy.alive[0].say(HEARTBEAT)
                    transport = producer._lease.item.pooled_session.transport
                    eventually(lambda: transport.look() is not None)
                    producer.publish("x", routing_key=box.name, message_id="mine")
    assert time.monotonic() - began < 10.0
    assert isinstance(caught.value, TimeoutError)
    assert "may not be in the broker" in caught.value.__notes__[0]
    assert caught.value.__notes__[0].endswith("from message mine on, they were not sent") is (
        by == "the next message"
    )
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()
    sound(producers, box.name)


def test_the_channels_end_is_heard_before_the_next_publish(
    producers: pools.ProducerPool, box: Inbox, queue: str
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(NotFound, match="no exchange"), producer.batch() as batch:
            publish(producer, box, AT_ONCE)
            producer.publish("x", exchange=f"{queue}-nobody")
            batch.flush()
            transport = producer._lease.item.pooled_session.transport
            eventually(lambda: transport.look() is not None)
            producer.publish("x", routing_key=box.name)
        assert producer.broken
        producer.publish("next", routing_key=box.name)
    assert box.bodies(AT_ONCE + 1) == [*range(AT_ONCE), "next"]
    assert producers.connections.stats().closed == {"broken": 1}


def test_the_first_ones_are_tried_again(
    amqp_url: str,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    aliases = Pools(default={"url": through(proxy, amqp_url), "confirm": False})
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        # The broker answers in turn.
        producer.channel.queue_declare(box.name, passive=True)
        proxy.cut(rst=True)
        transport = producer._lease.item.pooled_session.transport
        eventually(lambda: transport.look() is not None)
        with producer.batch():
            publish(producer, box, AT_ONCE + 5)
    assert box.bodies(AT_ONCE + 6) == ["warm", *range(AT_ONCE + 5)]
    assert proxy.accepted == 2


# -- who gathers ---------------------------------------------------------------------------------------------


def test_where_there_is_no_short_way_each_is_sent_at_once(
    amqp_url: str, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for producer_class, fits in ((OfItsOwn, True), (kombu.Producer, False)):
        monkeypatch.setattr(compat, "_fits", fits)
        connections = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
        producers = pools.ProducerPool(connections, Producer=producer_class)
        with producers.acquire(timeout=PATIENCE) as producer:
            assert not producer.supports_batch_publish
            with producer.batch():
                publish(producer, box, AT_ONCE + 3)
                eventually(lambda: in_queue(box) == AT_ONCE + 3)
        assert box.bodies(AT_ONCE + 3) == list(range(AT_ONCE + 3))
        connections.force_close_all()


def test_over_tls(node: Any, monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    producers = pools.producers[node.tls_url]
    with producers.acquire(timeout=PATIENCE) as producer:
        bound = kombu.Queue(queue, durable=False)(producer.channel)
        bound.declare()
        with producer.batch():
            for number in range(2000):
                producer.publish({"number": number}, routing_key=queue)
        eventually(lambda: bound.queue_declare(passive=True).message_count == 2000)
        bound.delete()
