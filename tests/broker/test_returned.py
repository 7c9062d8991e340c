"""Mandatory messages without confirms: one that comes back is named in the log, and is nobody else's failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.publisher import AT_ONCE
from kombu_pools_ext.engine import PoolOptions
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.test_fast_publish import OfItsOwn

pytestmark = pytest.mark.broker


@pytest.fixture
def make(amqp_url: str) -> Iterator[Callable[..., pools.ProducerPool]]:
    """Makes a pool of one producer, whose connection is checked before each loan; it keeps it to the end."""
    made: list[pools.ConnectionPool] = []

    def make(**options: Any) -> pools.ProducerPool:
        checked = PoolOptions(check_after=0)
        made.append(pools.ConnectionPool(kombu.Connection(amqp_url), limit=1, options=checked))
        return pools.ProducerPool(made[-1], **options)

    yield make
    for one in made:
        assert (one.stats().opened, one.stats().closed) == (1, {})
        one.force_close_all()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged."""
    caplog.set_level(logging.INFO, logger="kombu_pools_ext")
    return lambda: [record.getMessage() for record in caplog.records]


def lost(producer: Any, message_id: str, nobody: str = "nobody's") -> None:
    """Publish a message that comes back, and wait until it has come."""
    producer.publish("x", routing_key=nobody, mandatory=True, message_id=message_id)
    item = producer.connection.item
    eventually(lambda: item.pooled_session.transport.look() == "readable")


@pytest.mark.parametrize("options", [{}, {"Producer": OfItsOwn}], ids=["short", "kombu's way"])
def test_the_next_message_of_the_lease_is_published(
    make: Callable[..., pools.ProducerPool],
    box: Inbox,
    said: Callable[[], list[str]],
    options: dict[str, Any],
) -> None:
    producers = make(**options)
    with producers.acquire(timeout=PATIENCE) as producer:
        lost(producer, "mine")
        producer.publish("y", routing_key=box.name)
        assert not producer.broken
    (line,) = said()
    name = producers.connections.name
    assert line.startswith(
        f"pool {name!r}: message mine came back, and is in no queue: 312 NO_ROUTE"
    )
    assert "(exchange '', routing key \"nobody's\")" in line
    assert box.bodies(1) == ["y"]


def test_the_next_borrower_publishes(
    make: Callable[..., pools.ProducerPool], box: Inbox, said: Callable[[], list[str]]
) -> None:
    producers = make()
    with producers.acquire(timeout=PATIENCE) as producer:
        lost(producer, "mine")
    with producers.acquire(timeout=PATIENCE) as producer:
        assert ["message mine came back" in line for line in said()] == [True]
        producer.publish("y", routing_key=box.name)
    assert box.bodies(1) == ["y"]


def test_in_a_batch_the_others_are_published(
    make: Callable[..., pools.ProducerPool], box: Inbox, said: Callable[[], list[str]]
) -> None:
    with make().acquire(timeout=PATIENCE) as producer:
        with producer.batch() as batch:
            for number in range(2 * AT_ONCE):
                producer.publish(number, routing_key=box.name)
                producer.publish(
                    "x", routing_key="nobody's", mandatory=True, message_id=f"lost {number}"
                )
            batch.flush()
            producer.publish("y", routing_key=box.name)
        # A round trip: all of them have come.
        producer.channel.queue_declare(box.name, passive=True)
    assert [line.split("message ")[1].split(" came")[0] for line in said()] == [
        f"lost {number}" for number in range(2 * AT_ONCE)
    ]
    assert box.bodies(2 * AT_ONCE + 1) == [*range(2 * AT_ONCE), "y"]


def test_on_a_channel_of_the_borrowers_own(
    make: Callable[..., pools.ProducerPool], said: Callable[[], list[str]]
) -> None:
    with make().connections.acquire(timeout=PATIENCE) as connection:
        channel = connection.channel()
        channel.basic_publish(
            amqp.Message("x", message_id="mine"), routing_key="nobody's", mandatory=True
        )
        # The answer comes behind what came back.
        channel.queue_declare("", exclusive=True)
        channel.close()
    assert ["message mine came back" in line for line in said()] == [True]


def test_whoever_wants_to_hear_of_it_does(
    make: Callable[..., pools.ProducerPool], box: Inbox, said: Callable[[], list[str]]
) -> None:
    heard: list[Any] = []

    def on_return(error: Any, exchange: str, routing_key: str, message: Any) -> None:
        heard.append((error.reply_code, routing_key, message.properties["message_id"]))

    class Listening(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, on_return=on_return)

    with make(Producer=Listening).acquire(timeout=PATIENCE) as producer:
        lost(producer, "mine")
        producer.publish("y", routing_key=box.name)
    assert heard == [(312, "nobody's", "mine")]
    assert said() == []
    assert box.bodies(1) == ["y"]
