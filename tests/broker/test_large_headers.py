"""Headers that no frame has room for: the caller's error, which costs neither the connection nor another message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.broker.amqp.publisher import AT_ONCE
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming
from tests.broker.test_fast_publish import OfItsOwn

pytestmark = pytest.mark.broker

#: RabbitMQ's frame_max, less what is in a frame besides properties.
ROOM = 131_072 - 20


@pytest.fixture(params=[True, False], ids=["confirmed", "plain"])
def confirms(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(amqp_url: str, confirms: bool) -> Iterator[Callable[..., pools.ProducerPool]]:
    made: list[pools.ConnectionPool] = []

    def make(**options: Any) -> pools.ProducerPool:
        origin = confirming(amqp_url) if confirms else kombu.Connection(amqp_url)
        made.append(pools.ConnectionPool(origin, limit=1))
        return pools.ProducerPool(made[-1], **options)

    yield make
    for one in made:
        assert (one.stats().opened, one.stats().closed) == (1, {})
        one.force_close_all()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


def headers(size: int) -> dict[str, Any]:
    return {"small": "x", "large": "x" * size}


#: What does not take the fast path, and what does.
WAYS = [
    pytest.param({}, {}, id="the fast path"),
    pytest.param({"Producer": OfItsOwn}, {}, id="a producer of one's own"),
    pytest.param({}, {"compression": "gzip"}, id="compressed"),
]


@pytest.mark.parametrize("options, more", WAYS)
def test_alone(
    make: Callable[..., pools.ProducerPool], box: Inbox, options: Any, more: dict[str, Any]
) -> None:
    producers = make(**options)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(0, routing_key=box.name)
        for size in (ROOM, 1 << 20, 1 << 22):
            with pytest.raises(
                ValueError, match=f"message mine .* room for {ROOM} .*'large'"
            ) as caught:
                producer.publish(
                    "x", routing_key=box.name, message_id="mine", headers=headers(size), **more
                )
            assert "put it into the body" in str(caught.value)
        assert not producer.broken
        producer.publish(1, routing_key=box.name, headers=headers(ROOM - 500), **more)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(2, routing_key=box.name)
    assert box.bodies(3) == [0, 1, 2]


@pytest.mark.parametrize("options, more", WAYS)
@pytest.mark.parametrize("caught", [True, False], ids=["in the block", "that ends it"])
def test_in_a_batch(
    make: Callable[..., pools.ProducerPool],
    box: Inbox,
    options: Any,
    more: dict[str, Any],
    caught: bool,
) -> None:
    producers = make(**options)
    count = 2 * AT_ONCE
    with (
        pytest.raises(ValueError, match="'large'"),
        producers.acquire(timeout=PATIENCE) as producer,
    ):
        with producer.batch():
            for number in range(count):
                producer.publish(number, routing_key=box.name, **more)
            if caught:
                with pytest.raises(ValueError, match="'large'"):
                    producer.publish("x", routing_key=box.name, headers=headers(ROOM), **more)
                producer.publish(count, routing_key=box.name, **more)
            else:
                producer.publish("x", routing_key=box.name, headers=headers(ROOM), **more)
        raise ValueError("'large' was the caller's")
    expected = [*range(count + caught)]
    assert box.bodies(len(expected)) == expected


def test_on_a_channel_of_the_borrowers_own(
    make: Callable[..., pools.ProducerPool], box: Inbox
) -> None:
    with make().connections.acquire(timeout=PATIENCE) as connection:
        channel = connection.channel()
        with pytest.raises(ValueError, match="'large'"):
            channel.basic_publish(
                amqp.Message("x", application_headers=headers(ROOM)), routing_key=box.name
            )
        channel.basic_publish(amqp.Message("y"), routing_key=box.name)
        channel.close()
    assert [message.body for message in box.messages(1)] == ["y"]


def test_arguments_of_a_queue_alike(make: Callable[..., pools.ProducerPool]) -> None:
    with make().connections.acquire(timeout=PATIENCE) as connection:
        declare = connection.default_channel.queue_declare
        with pytest.raises(ValueError, match="frame_max is 131072 bytes"):
            declare("", exclusive=True, arguments=headers(ROOM))
        assert declare("", exclusive=True).queue


def test_by_alias(amqp_url: str, box: Inbox) -> None:
    pools = Pools(default={"url": amqp_url})
    pools.publish(1, box.name)
    with pytest.raises(ValueError, match="'large'"):
        pools.publish(2, box.name, headers=headers(ROOM))
    pools.publish(3, box.name)
    assert pools.connections["default"].stats().opened == 1
    assert box.bodies(2) == [1, 3]
