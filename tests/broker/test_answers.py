"""Answers in bulk: straight out of what was received, each for its message, and the rest left to py-amqp."""

from __future__ import annotations

import random
from collections.abc import Callable
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.deliveries import Delivery, DeliveryTracker
from kombu_pools_ext.broker.amqp.frames import ANSWER, take_answers
from kombu_pools_ext.broker.amqp.publisher import ChannelPublisher
from kombu_pools_ext.broker.amqp.transport import HEARTBEAT
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishReturned
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.test_confirms import (  # noqa: F401  # fixtures
    closed_channel,
    full,
    make,
    proxy,
    sound,
)
from tests.proxy import TO_CLIENT, Proxy

MakePool = Callable[..., pools.ProducerPool]

ACKED, NACKED, RETURNED, UNKNOWN = Outcome
CHANNEL = 3


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def answer(method: int, tag: int, bits: int, channel: int = CHANNEL) -> bytes:
    return frame(1, channel, pack(">HHQB", 60, method, tag, bits))


#: Of acks (80) and nacks (120), with their number and their bits: "multiple" is the first.
answers = st.tuples(st.sampled_from([80, 120]), st.integers(0, 30), st.sampled_from([0, 1, 2, 3]))
#: What is none, or none of ours.
others = st.sampled_from(
    [
        HEARTBEAT,
        answer(80, 1, 0, CHANNEL + 1),
        frame(1, CHANNEL, pack(">HHQB", 60, 90, 1, 0)),
        frame(1, CHANNEL, pack(">HHQ", 60, 80, 1)),
        frame(1, CHANNEL, pack(">HHQBB", 60, 80, 1, 0, 0)),
        frame(2, CHANNEL, pack(">HHQB", 60, 80, 1, 0)),
        answer(80, 1, 0)[:-1] + b"\x00",
        answer(80, 1, 0)[:-1],
        answer(80, 1, 0)[:5],
        b"",
    ]
)


def sending(count: int) -> tuple[DeliveryTracker, list[Delivery]]:
    tracker = DeliveryTracker()
    sent = [Delivery(str(number), "", "", False, 1) for number in range(count)]
    for one in sent:
        tracker.add(one)
    return tracker, sent


@given(first=st.lists(answers, max_size=20), other=others, later=st.lists(answers, max_size=3))
def test_each_answer_is_told_up_to_what_is_none(
    first: list[tuple[int, int, int]], other: bytes, later: list[tuple[int, int, int]]
) -> None:
    said = b"".join(answer(*one) for one in first) + other
    if other:
        said += b"".join(answer(*one) for one in later)
    tracker, sent = sending(25)
    assert take_answers(said, CHANNEL, tracker) == len(first) * ANSWER
    other_tally, expected = sending(25)
    for method, tag, bits in first:
        (other_tally.ack if method == 80 else other_tally.nack)(tag, bool(bits & 1))
    assert [one.outcome for one in sent] == [one.outcome for one in expected]
    assert list(tracker.pending) == list(other_tally.pending)


# -- with a broker ---------------------------------------------------------------------------------------------


@pytest.fixture
def producers(make: MakePool) -> pools.ProducerPool:  # noqa: F811  # a fixture
    return make()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each read began with answers."""
    found: list[bool] = []
    read = ChannelPublisher.read_answers

    def note(self: ChannelPublisher) -> bool:
        found.append(read(self))
        return found[-1]

    monkeypatch.setattr(ChannelPublisher, "read_answers", note)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_all_kinds_come_together(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    full: str,  # noqa: F811
    box: Inbox,
    at_once: list[bool],
    seed: int,
) -> None:
    """Held up by the proxy, they lie in one buffer: acks, nacks, what came back, and heartbeats between."""
    chance = random.Random(seed)
    expected = {}
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        proxy.hold(TO_CLIENT)
        with pytest.raises(BatchFailed) as caught, producer.batch() as batch:
            for number in range(200):
                fate = chance.choice([ACKED] * 12 + [NACKED, RETURNED])
                expected[str(number)] = fate
                name = {ACKED: box.name, NACKED: full, RETURNED: f"{box.name}-nobody"}[fate]
                producer.publish(
                    number, routing_key=name, message_id=str(number), mandatory=fate is RETURNED
                )
            proxy.alive[0].say(HEARTBEAT)
            proxy.heal()
            batch.flush()
        assert caught.value.results == expected
        assert not producer.broken
        # Counted on.
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=f"{box.name}-nobody", mandatory=True)
    assert True in at_once
    assert producers.connections.stats().closed == {}
    there = [int(name) for name, fate in expected.items() if fate is ACKED]
    assert box.bodies() == ["warm", *there]


def test_an_answer_in_pieces(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        proxy.drip(0.001, TO_CLIENT)
        for number in range(3):
            producer.publish(number, routing_key=box.name)
        proxy.heal()
    assert box.bodies() == ["warm", 0, 1, 2]
    assert producers.connections.stats().closed == {}


def test_whoever_listens_to_the_channel_hears_them_too(
    producers: pools.ProducerPool, box: Inbox, at_once: list[bool]
) -> None:
    heard: list[tuple[int, bool]] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        listeners = producer.channel.events["basic_ack"]
        listener = lambda tag, multiple: heard.append((tag, multiple))  # noqa: E731  # a set holds it
        listeners.add(listener)
        producer.publish("x", routing_key=box.name)
        listeners.remove(listener)
        assert at_once.pop() is False
        producer.publish("y", routing_key=box.name)
        assert at_once.pop() is True
    assert heard == [(2, False)]


def test_the_connection_ends_instead(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    for rst in (False, True):
        with pytest.raises(BatchFailed) as caught:
            with producers.acquire(timeout=PATIENCE) as producer:
                producer.publish("warm", routing_key=box.name, timeout=PATIENCE)
                proxy.hold(TO_CLIENT)
                with producer.batch():
                    producer.publish("x", routing_key=box.name)
                    proxy.cut(rst=rst)
        assert isinstance(caught.value.__cause__, OSError)
        assert set(caught.value.results.values()) == {UNKNOWN}
        proxy.heal()
        sound(producers, box.name)


def test_the_channel_ends_behind_answers(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    queue: str,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        proxy.hold(TO_CLIENT)
        with pytest.raises(BatchFailed) as caught, producer.batch():
            for number in range(10):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            producer.publish("x", exchange=f"{queue}-nobody", message_id="10")
            proxy.heal()
        results = caught.value.results
        assert len(results) == 11
        assert results["10"] is UNKNOWN
        assert set(results.values()) <= {ACKED, UNKNOWN}
        producer.publish("next", routing_key=box.name, mandatory=True)
    eventually(lambda: producers.connections.stats().closed == {"broken": 1})
