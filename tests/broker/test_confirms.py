"""A publish that returned is in the broker; one that did not says why, and whether the message may be there."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any

import amqp
import kombu
import pytest
from amqp.exceptions import (
    AMQPError,
    ConnectionError,
    MessageNacked,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
)
from kombu.exceptions import OperationalError

from kombu_pools_ext import PoolSettings, pools
from kombu_pools_ext.errors import (
    BatchFailed,
    Outcome,
    PublishError,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
)
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

MakeInbox = Callable[[str], Inbox]

#: An ack on channel 1, of message 1.
LATE_ACK = b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50" + b"\x00" * 7 + b"\x01\x00\xce"


def closed_channel(number: int) -> bytes:
    """The broker closes a channel, for a publish to an exchange that is not there."""
    text = b"no exchange"
    payload = pack(">HHHB", 20, 40, 404, len(text)) + text + pack(">HH", 60, 40)
    return pack(">BHI", 1, number, len(payload)) + payload + b"\xce"


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def make(amqp_url: str, proxy: Proxy) -> Iterator[Callable[..., pools.ProducerPool]]:
    """Makes a pool of one producer, by way of the proxy, which asks for confirms."""
    made: list[pools.ConnectionPool] = []

    def make(confirm_timeout: float | None = None, **options: Any) -> pools.ProducerPool:
        connections = pools.ConnectionPool(
            confirming(through(proxy, amqp_url)), limit=1, confirm_timeout=confirm_timeout
        )
        made.append(connections)
        return pools.ProducerPool(connections, **options)

    yield make
    for one in made:
        one.force_close_all()


@pytest.fixture
def producers(make: Callable[..., pools.ProducerPool]) -> pools.ProducerPool:
    return make()


@pytest.fixture
def full(amqp_url: str, queue: str) -> Iterator[str]:
    """The name of a queue that has room for nothing."""
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    one = kombu.Queue(f"{queue}-full", durable=False, queue_arguments=arguments)
    with kombu.Connection(amqp_url) as connection:
        bound = one(connection.default_channel)
        bound.declare()
        yield one.name
        bound.delete()


def sound(producers: pools.ProducerPool, name: str) -> None:
    """The pool lends a producer that publishes, and nothing of it is lost."""
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("sound", routing_key=name, timeout=PATIENCE)
    stats = producers.connections.stats()
    assert (stats.lent, stats.idle) == (0, 1)


# -- what the broker says ----------------------------------------------------------------------------------------------


def test_a_publish_that_returned_is_in_the_queue(
    producers: pools.ProducerPool, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    with kombu.Connection(amqp_url) as connection:
        count = kombu.Queue(box.name, durable=False)(connection.default_channel).queue_declare
        for number in range(3):
            with producers.acquire(timeout=PATIENCE) as producer:
                producer.publish(number, routing_key=box.name, mandatory=True)
            assert count(passive=True).message_count == number + 1
    messages = box.messages()
    assert [message.payload for message in messages] == [0, 1, 2]
    assert len({message.properties["message_id"] for message in messages}) == 3


def test_a_message_that_the_broker_refuses(
    producers: pools.ProducerPool, full: str, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(
            PublishNacked, match=r"pool 'amqp://.*message mine was refused"
        ) as caught:
            producer.publish("x", routing_key=full, message_id="mine")
        assert not producer.broken
        producer.publish("next", routing_key=box.name)
    assert caught.value.message_id == "mine"
    # As kombu's users know them.
    assert isinstance(caught.value, OperationalError)
    assert isinstance(caught.value, MessageNacked)
    with pytest.raises(PublishNacked), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=full)
    # The connection is as good as before.
    assert producers.connections.stats().closed == {}
    assert box.bodies() == ["next"]


@pytest.fixture
def exchange(amqp_url: str, queue: str) -> Iterator[Callable[..., str]]:
    """Makes a fan-out exchange that goes with the test, with the queues of these names bound to it."""
    made: list[Any] = []
    with kombu.Connection(amqp_url) as connection:

        def make(*queues: str, **arguments: str) -> str:
            one = kombu.Exchange(
                f"{queue}-{len(made)}", "fanout", durable=False, arguments=arguments or None
            )(connection.default_channel)
            one.declare()
            made.append(one)
            for name in queues:
                connection.default_channel.queue_bind(name, one.name)
            return str(one.name)

        yield make
        for one in made:
            one.delete()


def test_a_message_that_one_of_two_queues_refuses_is_in_the_other(
    producers: pools.ProducerPool,
    full: str,
    amqp_url: str,
    inbox: MakeInbox,
    exchange: Callable[..., str],
) -> None:
    ledger = inbox(amqp_url)
    payments = exchange(ledger.name, full)
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(PublishNacked) as caught:
            producer.publish("alone", exchange=payments, message_id="mine")
        with pytest.raises(BatchFailed) as failed, producer.batch():
            producer.publish("in a batch", exchange=payments, message_id="batched")
    assert ledger.bodies() == ["alone", "in a batch"]
    # And nobody says that it is not.
    for text in (str(caught.value), PublishNacked.__doc__ or ""):
        assert re.search("at least one of its queues does not have it.*others may", text, re.DOTALL)
    assert failed.value.results == {"batched": Outcome.NACKED}


def test_a_message_that_its_only_queue_refuses_may_be_in_the_one_for_dead_letters(
    producers: pools.ProducerPool, amqp_url: str, inbox: MakeInbox, exchange: Callable[..., str]
) -> None:
    dead = inbox(amqp_url)
    arguments = {
        "x-max-length": 0,
        "x-overflow": "reject-publish-dlx",
        "x-dead-letter-exchange": exchange(dead.name),
    }
    only = kombu.Queue(f"{dead.name}-only", durable=False, queue_arguments=arguments)
    with kombu.Connection(amqp_url) as connection:
        bound = only(connection.default_channel)
        bound.declare()
        with producers.acquire(timeout=PATIENCE) as producer, pytest.raises(PublishNacked):
            producer.publish("x", routing_key=only.name)
        bound.delete()
    assert dead.bodies(1) == ["x"]


def test_a_message_that_an_alternate_exchange_finds_a_queue_for_is_not_returned(
    producers: pools.ProducerPool,
    amqp_url: str,
    inbox: MakeInbox,
    exchange: Callable[..., str],
) -> None:
    other = inbox(amqp_url)
    nowhere = exchange(**{"alternate-exchange": exchange()})
    somewhere = exchange(**{"alternate-exchange": exchange(other.name)})
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(PublishReturned, match="is in no queue"):
            producer.publish("x", exchange=nowhere, mandatory=True)
        producer.publish("y", exchange=somewhere, mandatory=True)
    assert other.bodies() == ["y"]


def test_after_a_refusal_the_broker_sees_another_channel(
    producers: pools.ProducerPool, full: str, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        for number in range(3):
            producer.publish(number, routing_key=box.name)
        channel = producer.channel
        for _ in range(2):
            with pytest.raises(PublishNacked):
                producer.publish("x", routing_key=full)
            # What a client keeps of a channel stays; what the broker does begins anew, with the numbers.
            producer.publish("next", routing_key=box.name)
            assert producer.channel is channel
            assert producer.connection.item.pooled_session.confirms.sent == 1
            producer.publish("and on", routing_key=box.name)
            assert producer.connection.item.pooled_session.confirms.sent == 2
    assert producers.connections.stats().closed == {}
    assert box.bodies() == [0, 1, 2, "next", "and on", "next", "and on"]


def test_a_refusal_leaves_a_consumer_alone(
    producers: pools.ProducerPool, full: str, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    heard: list[str] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.channel.basic_consume(
            box.name, no_ack=True, callback=lambda message: heard.append(message.body)
        )
        with pytest.raises(PublishNacked):
            producer.publish("x", routing_key=full)
        producer.publish("next", routing_key=box.name)
        with producer.connection.item.within(time.monotonic() + PATIENCE):
            while not heard:
                producer.connection.drain_events()
    assert heard == ["next"]


def test_a_mandatory_message_that_no_queue_wants(
    producers: pools.ProducerPool, queue: str, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(PublishReturned, match="NO_ROUTE") as caught:
            producer.publish("x", routing_key=queue + "-nobody", mandatory=True)
        producer.publish("next", routing_key=box.name, mandatory=True)
        # Nobody minds if it is not mandatory.
        producer.publish("x", routing_key=queue + "-nobody")
    error = caught.value
    assert (error.reply_code, error.reply_text) == (312, "NO_ROUTE")
    assert (error.exchange, error.routing_key) == ("", queue + "-nobody")
    assert error.message_id
    assert isinstance(error, OperationalError)
    assert producers.connections.stats().closed == {}
    assert box.bodies() == ["next"]


def test_a_callback_for_returned_messages(amqp_url: str, queue: str) -> None:
    returned: list[Any] = []

    def on_return(error: Any, exchange: str, routing_key: str, message: Any) -> None:
        returned.append((error.reply_code, exchange, routing_key, message.body))

    class Listening(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, on_return=on_return)

    connections = pools.ConnectionPool(confirming(amqp_url), limit=1)
    producers = pools.ProducerPool(connections, Producer=Listening)
    with producers.acquire(timeout=PATIENCE) as producer:
        # kombu raises nothing then.
        producer.publish("x", routing_key=queue + "-nobody", mandatory=True)
        with producer.batch() as batch:
            producer.publish("y", routing_key=queue + "-nobody", mandatory=True, message_id="y")
    assert returned == [(312, "", queue + "-nobody", body) for body in "xy"]
    assert batch.results == {"y": Outcome.RETURNED}
    # An alias that asks for it raises besides.
    strict = pools.ProducerPool(connections, Producer=Listening, mandatory=True)
    with strict.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(PublishReturned):
            producer.publish("z", routing_key=queue + "-nobody")
        with pytest.raises(BatchFailed), producer.batch():
            producer.publish("z", routing_key=queue + "-nobody")
    assert len(returned) == 4
    connections.force_close_all()


# -- errors of the channel ---------------------------------------------------------------------------------------------


def test_an_exchange_that_is_not_there(
    producers: pools.ProducerPool, amqp_url: str, inbox: MakeInbox, queue: str
) -> None:
    box = inbox(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(1, routing_key=box.name)
        with pytest.raises(NotFound, match="no exchange"):
            producer.publish("x", exchange=queue, routing_key=box.name)
        assert producer.broken
        # The same producer goes on, and its confirms are its own: the count has begun anew.
        producer.publish(2, routing_key=box.name, mandatory=True)
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=queue + "-nobody", mandatory=True)
        producer.publish(3, routing_key=box.name)
    assert box.bodies() == [1, 2, 3]
    # The next borrower gets a channel that nobody closed.
    assert producers.connections.stats().closed == {"broken": 1}
    sound(producers, queue)


def test_an_answer_to_the_message_says_that_it_is_not_there(
    producers: pools.ProducerPool, proxy: Proxy, queue: str
) -> None:
    for wrong, error in (({"exchange": queue}, NotFound), ({"immediate": True}, ConnectionError)):
        with pytest.raises(AMQPError) as caught:
            with producers.acquire(timeout=PATIENCE) as producer:
                producer.publish("x", message_id="mine", retry=True, **wrong)
        assert isinstance(caught.value, error)
        assert caught.value.__notes__ == [
            f"pool {producers.name!r}: the broker refused message mine; it is not in the broker"
        ]
    assert proxy.accepted == 2


def closed_connection(code: int, method: tuple[int, int]) -> bytes:
    """The broker closes the connection."""
    payload = pack(">HHHB", 10, 50, code, 4) + b"text" + pack(">HH", *method)
    return pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize(
    "code, method, there",
    [
        *((code, (60, 40), False) for code in (501, 502, 503, 504, 505, 530, 540)),
        (541, (60, 40), None),
        (506, (60, 40), None),
        (320, (0, 0), None),
        # Of something else that was sent: the message before it may be there.
        (501, (0, 0), None),
        (504, (20, 40), None),
    ],
)
def test_a_connection_that_ends_for_the_message_is_an_answer(
    producers: pools.ProducerPool,
    proxy: Proxy,
    queue: str,
    code: int,
    method: tuple[int, int],
    there: bool | None,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue)
        proxy.hold(TO_CLIENT)
        proxy.links[-1].say(closed_connection(code, method))
        with pytest.raises((AMQPError, PublishError)) as caught:
            producer.publish("x", routing_key=queue)
    assert isinstance(caught.value, PublishUnknown) is (there is None)
    proxy.heal()
    assert producers.connections.stats().closed == {"broken": 1}
    sound(producers, queue)


def test_the_channel_of_somebody_else_is_closed_meanwhile(
    producers: pools.ProducerPool, proxy: Proxy, queue: str
) -> None:
    """What the broker says of one channel is no news of another one's message."""
    with pytest.raises(PublishUnknown, match="no exchange") as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue, timeout=PATIENCE)
            other = producer.connection.channel()
            # Else py-amqp would wait for an answer before it says what has happened.
            other._do_revive = lambda: None
            proxy.hold(TO_CLIENT)
            proxy.alive[0].say(closed_channel(other.channel_id))
            producer.publish("x", routing_key=queue)
    assert isinstance(caught.value.__cause__, NotFound)
    proxy.heal()
    sound(producers, queue)


# -- no word ---------------------------------------------------------------------------------------------------------


def cut_after_sending(producer: Any, proxy: Proxy) -> None:
    """The next message gets through, its confirm does not: the connection is cut."""
    proxy.hold(TO_CLIENT)
    confirms = producer._lease.item.pooled_session.confirms
    send = confirms.channel.send_method

    def and_cut(*args: Any, **kwargs: Any) -> Any:
        done = send(*args, **kwargs)
        proxy.cut(rst=True)
        proxy.heal()
        return done

    confirms.channel.send_method = and_cut


def test_a_connection_that_breaks_between_send_and_confirm(
    producers: pools.ProducerPool, proxy: Proxy, queue: str
) -> None:
    with pytest.raises(PublishUnknown, match="message mine may be in the broker") as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue, timeout=PATIENCE)
            cut_after_sending(producer, proxy)
            producer.publish("x", routing_key=queue, message_id="mine")
    assert caught.value.message_id == "mine"
    assert caught.value.pool == producers.name
    assert isinstance(caught.value.__cause__, OSError | RecoverableConnectionError)
    assert producers.connections.stats().closed == {"broken": 1}
    sound(producers, queue)


def test_a_connection_that_breaks_before_is_no_doubt(
    producers: pools.ProducerPool, proxy: Proxy, queue: str
) -> None:
    with pytest.raises((OSError, RecoverableConnectionError)) as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.channel.confirm_select()
            producer.channel.close()
            producer.publish("x", routing_key=queue, message_id="mine")
    assert not isinstance(caught.value, PublishError)
    (note,) = caught.value.__notes__
    assert "message mine was not sent; it is not in the broker" in note
    sound(producers, queue)


def test_a_peer_that_says_nothing_any_more(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    """Row 12: the wait ends, the exit too, and the late ack is nobody's."""
    producers = make(confirm_timeout=0.2)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue, timeout=PATIENCE)
    proxy.hold(TO_CLIENT)
    began = time.monotonic()
    with pytest.raises(PublishUnknown) as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            first = producer.channel
            try:
                producer.publish("x", routing_key=queue)
            finally:
                # Whoever swallows it finds nothing that would take the late ack for its own.
                with pytest.raises(RecoverableConnectionError, match="not used any more"):
                    producer.publish("y", routing_key=queue)
    assert time.monotonic() - began < 5.0
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.channel is not first
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=queue + "-nobody", mandatory=True, timeout=PATIENCE)


def test_the_callers_own_time(producers: pools.ProducerPool, proxy: Proxy, queue: str) -> None:
    for name in ("timeout", "confirm_timeout"):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue, timeout=PATIENCE)
        proxy.hold(TO_CLIENT)
        began = time.monotonic()
        with pytest.raises(PublishUnknown), producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key=queue, **{name: 0.1})
        assert time.monotonic() - began < 5.0
        proxy.heal()


def test_an_answer_that_drips(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    producers = make(confirm_timeout=0.3)
    producer = producers.acquire(timeout=PATIENCE)
    producer.publish("warm", routing_key=queue, timeout=PATIENCE)
    proxy.hold(TO_CLIENT)
    link, done = proxy.alive[0], threading.Event()

    def drip() -> None:
        # Heartbeats, byte by byte: there is always something to read, and never an answer.
        while not done.wait(0.02):
            for byte in b"\x08\x00\x00\x00\x00\x00\x00\xce":
                link.say(bytes([byte]))
                if done.wait(0.02):
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    try:
        with pytest.raises(PublishUnknown):
            producer.publish("x", routing_key=queue)
        assert time.monotonic() - began < 5.0
    finally:
        done.set()
        dripping.join()
        producer.release()
    proxy.heal()
    sound(producers, queue)


def test_a_peer_that_reads_no_more(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    """More than the buffers take: the message is cut short, so it is certain that it is not there."""
    producers = make(confirm_timeout=0.3)
    with pytest.raises(TimeoutError) as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue, timeout=PATIENCE)
            proxy.hold(TO_SERVER)
            producer.publish(b"x" * 32_000_000, routing_key=queue)
    assert "was not sent; it is not in the broker" in caught.value.__notes__[0]
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()
    sound(producers, queue)


def test_an_answer_to_another_message_is_not_taken(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    producers = make(confirm_timeout=0.3)
    with pytest.raises(PublishUnknown), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue, timeout=PATIENCE)
        proxy.hold(TO_CLIENT)
        # py-amqp's own confirms would be content with it.
        proxy.alive[0].say(LATE_ACK)
        producer.publish("x", routing_key=queue)
    proxy.heal()


# -- who else publishes on the channel ---------------------------------------------------------------------------------


def test_whoever_publishes_on_the_channel_is_counted(
    producers: pools.ProducerPool, full: str, queue: str, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        channel = producer.channel
        assert channel is producer.connection.default_channel
        channel.basic_publish(amqp.Message("1"), routing_key=box.name)
        producer.publish(2, routing_key=box.name)
        kombu.Producer(channel).publish(3, routing_key=box.name)
        with pytest.raises(PublishReturned):
            channel.basic_publish(amqp.Message("x"), routing_key=queue + "-nobody", mandatory=True)
        with pytest.raises(PublishNacked):
            kombu.Producer(producer.connection).publish("x", routing_key=full)
        producer.publish(4, routing_key=box.name)
    with producers.connections.acquire(timeout=PATIENCE) as connection:
        connection.Producer().publish(5, routing_key=box.name)
        # Other channels are py-amqp's affair.
        connection.channel().basic_publish(amqp.Message("6"), routing_key=box.name)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(7, routing_key=box.name)
    assert producers.connections.stats().closed == {}
    assert [int(message.body) for message in box.messages()] == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_published_on_a_leased_connections_default_channel_is_counted(
    producers: pools.ProducerPool, queue: str
) -> None:
    with producers.connections.acquire(timeout=PATIENCE) as connection:
        channel = connection.default_channel
        connection.Producer().publish("x", routing_key=queue)
        assert connection.item.pooled_session.confirms.sent == 1
        with pytest.raises(PublishReturned):
            connection.Producer().publish("x", routing_key=queue + "-nobody", mandatory=True)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
        assert producer.channel is channel


def test_a_channel_on_which_nobody_counted_is_left_alone(
    producers: pools.ProducerPool, queue: str
) -> None:
    with producers.connections.acquire(timeout=PATIENCE) as connection:
        plain = connection.item._default_channel = connection.channel()
        plain.basic_publish(amqp.Message("x"), routing_key=queue)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
        assert producer.channel is not plain
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=queue + "-nobody", mandatory=True)


def test_publishing_on_the_channel_alone_is_bounded_as_well(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    producers = make(confirm_timeout=1.0)
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.connection.item.within(time.monotonic() + PATIENCE):
            producer.channel.basic_publish(amqp.Message("x"), routing_key=queue)
        proxy.hold(TO_CLIENT)
        with pytest.raises(PublishUnknown):
            producer.channel.basic_publish(amqp.Message("x"), routing_key=queue)
    # Nobody told the producer; its connection knows.
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()


def test_without_confirms_a_publish_is_bounded_as_well(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    settings = PoolSettings(
        url=through(proxy, amqp_url), confirm=False, confirm_timeout=0.3, retry=None
    )
    # By its version py-amqp calls it one of the connection, or of the channel.
    with pytest.raises((OSError, AMQPError)) as caught:
        with pools.producers[settings].acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue, timeout=PATIENCE)
            proxy.hold(TO_SERVER)
            producer.publish(b"x" * 32_000_000, routing_key=queue)
    assert not isinstance(caught.value, PublishError)
    assert "it is not in the broker" in caught.value.__notes__[0]
    proxy.heal()


def test_what_cannot_be_sent_at_all(producers: pools.ProducerPool, queue: str) -> None:
    for wrong in ({"routing_key": "x" * 300}, {"routing_key": queue, "headers": {"a": object()}}):
        with pytest.raises(Exception, match=r".") as caught:
            with producers.acquire(timeout=PATIENCE) as producer:
                producer.publish("x", **wrong)
        assert not isinstance(caught.value, PublishError)
        sound(producers, queue)


def test_what_cannot_be_sent_at_all_was_not_begun(
    producers: pools.ProducerPool, queue: str
) -> None:
    """A mistake in a message is no fault of the connection, and is not counted as a message."""
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(ValueError, match="routing_key has 300 bytes"):
            producer.publish("x", routing_key="x" * 300)
        # The broker's count goes on without it.
        producer.publish("x", routing_key=queue)
        assert not producer.broken
    assert producers.stats().closed == {}


@pytest.mark.slow
def test_a_body_over_the_brokers_limit(
    producers: pools.ProducerPool, queue: str, amqp_url: str
) -> None:
    with pytest.raises(PreconditionFailed, match="larger than"):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish(b"x" * (134_217_728 + 1), routing_key=queue)
    sound(producers, queue)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_the_errors_travel() -> None:
    returned = PublishReturned("mine", 312, "NO_ROUTE", "", "q")
    failed = BatchFailed({"a": Outcome.ACKED, "b": Outcome.UNKNOWN, "c": Outcome.NACKED})
    failed.pool = "amqp://h//"
    for error in (returned, failed, PublishNacked("no", "mine"), PublishUnknown("perhaps")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert failed.message_id == "b"
    assert str(failed) == (
        "pool 'amqp://h//': 2 of 3 messages of the batch were not confirmed (1 ACKED, 1 NACKED, 1 UNKNOWN); those "
        "UNKNOWN may be in the broker; see .results: a message that is not in it was not given to the batch"
    )
