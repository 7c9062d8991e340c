"""A batch's messages go out together, but never later than somebody waits for what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import amqp
import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import publisher
from kombu_pools_ext.broker.amqp.transport import Transport
from kombu_pools_ext.errors import BatchFailed, Outcome
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming
from tests.broker.test_batch import in_queue
from tests.broker.test_confirms import full, make, proxy, sound  # noqa: F401  # fixtures
from tests.broker.test_transport import FRAME, Ends, ends, tls_contexts  # noqa: F401  # fixtures
from tests.proxy import Proxy

MakePool = Callable[..., pools.ProducerPool]
ACKED, NACKED, RETURNED, UNKNOWN = Outcome


@pytest.fixture
def producers(make: MakePool) -> pools.ProducerPool:  # noqa: F811  # a fixture
    return make()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, it is not for the time that messages are sent."""
    monkeypatch.setattr(publisher, "GATHERED_FOR", PATIENCE)


def gathered(producer: Any) -> int:
    size: int = producer._lease.item.pooled_session.transport.gathered
    return size


# -- on the transport ---------------------------------------------------------------------------------------------


def test_what_was_gathered_goes_first(ends: Ends) -> None:  # noqa: F811
    for kind in (1, 2):
        ends.transport.gather(FRAME)
        ends.transport.gather(FRAME.replace(b"\x01", b"\x02", kind))
        assert ends.transport.gathered == 2 * len(FRAME)
        with ends.within(time.monotonic() + PATIENCE if kind == 1 else None):
            ends.transport.write(memoryview(FRAME))
        assert ends.transport.gathered == 0
        assert ends.heard(3 * len(FRAME)) == FRAME + FRAME.replace(b"\x01", b"\x02", kind) + FRAME


def test_before_anything_is_read_it_is_written(ends: Ends) -> None:  # noqa: F811
    for read in (ends.transport.read_frame, lambda: ends.transport.receive(len(FRAME))):
        ends.transport.gather(FRAME)
        ends.peer.sendall(FRAME)
        with ends.within(time.monotonic() + PATIENCE):
            assert read() in ((1, 1, bytes(range(40))), FRAME)
        assert ends.heard(len(FRAME)) == FRAME


def test_what_is_given_up_is_not_written(ends: Ends) -> None:  # noqa: F811
    ends.transport.gather(FRAME)
    ends.transport.forget()
    ends.transport.forget()
    ends.transport.flush()
    ends.transport.write(b"end")
    assert ends.heard(3) == b"end"


def test_a_write_that_is_cut_short_takes_it_along(ends: Ends) -> None:  # noqa: F811
    ends.transport.gather(bytes(16_000_000))
    with pytest.raises(TimeoutError), ends.soon():
        ends.transport.flush()
    assert ends.transport.torn
    with pytest.raises(OSError, match="cut short"):
        ends.transport.write(FRAME)


# -- in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_they_are_written_together(
    producers: pools.ProducerPool, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        transport = producer._lease.item.established._transport
        write = transport._write
        monkeypatch.setattr(transport, "_write", lambda data: (writes.append(1), write(data))[1])
        with producer.batch() as batch:
            for number in range(900):
                producer.publish(number, routing_key=box.name)
                assert gathered(producer) < publisher.GATHERED
        assert gathered(producer) == 0
    assert set(batch.results.values()) == {ACKED}
    assert box.bodies() == ["warm", *range(900)]
    # Of about 200 bytes each.
    assert publisher.AT_ONCE < len(writes) < 30


@pytest.mark.usefixtures("patient")
def test_the_first_are_written_at_once(producers: pools.ProducerPool, box: Inbox) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch() as batch:
            for turn in range(2):
                for _ in range(publisher.AT_ONCE):
                    producer.publish("x", routing_key=box.name)
                eventually(lambda turn=turn: in_queue(box) == 1 + (turn + 1) * publisher.AT_ONCE)
                batch.flush()


def test_whoever_makes_them_slowly_has_them_sent_meanwhile(
    producers: pools.ProducerPool, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(publisher, "_monotonic", lambda: now)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch():
            for _ in range(publisher.AT_ONCE + 3):
                producer.publish("x", routing_key=box.name)
            assert gathered(producer) > 0
            now += 2 * publisher.GATHERED_FOR
            producer.publish("x", routing_key=box.name)
            assert gathered(producer) == 0
            eventually(lambda: in_queue(box) == 1 + publisher.AT_ONCE + 4)


#: What is not gathered, and must not overtake what is.
by_what_else_is_said = pytest.mark.parametrize(
    "other",
    [
        lambda producer, name: producer.publish("last", routing_key=name, compression="zlib"),
        lambda producer, name: producer.channel.basic_publish(
            amqp.Message("last"), routing_key=name
        ),
        lambda producer, name: kombu.Producer(producer.connection.channel()).publish(
            "last", routing_key=name
        ),
        lambda producer, name: producer.publish(b"x" * publisher.GATHERED, routing_key=name),
    ],
    ids=["a message of another kind", "on the channel", "on another channel", "a large one"],
)


@pytest.mark.usefixtures("patient")
@by_what_else_is_said
def test_whatever_else_is_said_comes_after_them(
    producers: pools.ProducerPool, box: Inbox, other: Callable[[Any, str], Any]
) -> None:
    count = publisher.AT_ONCE + 5
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch():
            for number in range(count):
                producer.publish(number, routing_key=box.name)
            assert gathered(producer) > 0
            other(producer, box.name)
            assert gathered(producer) == 0
    bodies = [message.body for message in box.messages(count + 2)]
    assert [bytes(body, "utf-8") if isinstance(body, str) else body for body in bodies[1:-1]] == [
        str(number).encode() for number in range(count)
    ]


@pytest.mark.usefixtures("patient")
def test_whoever_asks_the_broker_asks_after_them(producers: pools.ProducerPool, box: Inbox) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch():
            for number in range(publisher.AT_ONCE + 5):
                producer.publish(number, routing_key=box.name)
            assert gathered(producer) > 0
            producer.channel.queue_declare(box.name, passive=True)
            assert gathered(producer) == 0


@pytest.mark.usefixtures("patient")
def test_what_was_never_written_is_unknown(
    producers: pools.ProducerPool,
    box: Inbox,
    queue: str,
    proxy: Proxy,  # noqa: F811
) -> None:
    """It is not there; but who reads the outcome need not be told two kinds of failure."""
    with pytest.raises(KeyboardInterrupt), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch() as batch:
            for number in range(publisher.AT_ONCE + 5):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            raise KeyboardInterrupt
    assert set(batch.results.values()) <= {ACKED, UNKNOWN}
    assert batch.results[str(publisher.AT_ONCE + 4)] is UNKNOWN
    assert producers.connections.stats().closed == {"broken": 1}
    # Or the connection breaks, and their write fails.
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch():
            for number in range(publisher.AT_ONCE + 5):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            proxy.cut(rst=True)
    assert caught.value.results[str(publisher.AT_ONCE + 4)] is UNKNOWN
    sound(producers, queue)


@pytest.mark.usefixtures("patient")
def test_a_channel_that_ends_takes_them_along(
    producers: pools.ProducerPool, box: Inbox, queue: str
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch():
            producer.publish("x", exchange=f"{queue}-nobody", message_id="first")
            for number in range(publisher.AT_ONCE + 5):
                producer.publish(number, routing_key=box.name, message_id=str(number))
        assert set(caught.value.results.values()) == {UNKNOWN}
        # The count begins anew, and nothing of the old is sent.
        producer.publish("next", routing_key=box.name, mandatory=True)
        assert gathered(producer) == 0
    assert box.bodies() == ["next"]


def test_over_tls(node: Any, monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    with pools.producers[confirming(node.tls_url)].acquire(timeout=PATIENCE) as producer:
        for _ in range(3):
            producer.publish("x", routing_key=queue)
        with producer.batch() as batch:
            for number in range(2000):
                producer.publish({"number": number}, routing_key=queue)
        assert isinstance(producer._lease.item.pooled_session.transport, Transport)
    assert len(batch.results) == 2000
    assert set(batch.results.values()) == {ACKED}
