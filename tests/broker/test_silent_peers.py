"""A publish over a lease, whose connection is open and says nothing: the broker is asked, and given up in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.amqp.silence import PATIENCE as FOR_A_SIGN
from kombu_pools_ext.broker.amqp.silence import SILENCE
from kombu_pools_ext.errors import PublishNacked, PublishUnknown
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, through
from tests.brokers import PrivateRabbitMQ
from tests.proxy import TO_CLIENT, Proxy
from tests.publisher.conftest import Crowd

MakeInbox = Callable[[str], Inbox]
MakeProxy = Callable[[str], Proxy]
MakeLeased = Callable[..., Pools]

#: The class and the method of a nack, as a frame has them.
NACK = b"\x00\x3c\x00\x78"


@pytest.fixture
def leased() -> Iterator[MakeLeased]:
    """Makes pools whose publishes take a lease each."""
    made: list[Pools] = []

    def make(url: str, **settings: object) -> Pools:
        made.append(Pools({"default": {"URL": url, "PUBLISH_OVER": "leased", **settings}}))
        return made[-1]

    yield make
    for pools in made:
        pools.connections["default"].force_close_all()


@pytest.mark.slow
@pytest.mark.parametrize("broker_url", AMQP, indirect=True)
def test_a_silent_connection_costs_no_error(
    broker_url: str, leased: MakeLeased, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(broker_url), inbox(broker_url)
    pools = leased(through(proxy, broker_url))
    pools.publish("before", box.name)
    (link,) = proxy.alive
    # The system of the proxy acknowledges what it receives, and nothing passes.
    link.silence()
    began = time.monotonic()
    pools.publish("lost", box.name, message_id="mine")
    assert SILENCE + FOR_A_SIGN <= time.monotonic() - began < 10
    pools.publish("after", box.name)
    assert box.bodies(3) == ["before", "lost", "after"]
    stats = pools.connections["default"].stats()
    assert (stats.opened, sum(stats.closed.values())) == (2, 1)


@pytest.mark.slow
def test_without_retry_it_is_unknown_and_says_why(
    amqp_url: str, leased: MakeLeased, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = leased(through(proxy, amqp_url), RETRY=None)
    pools.publish("before", box.name)
    (link,) = proxy.alive
    link.silence()
    with pytest.raises(
        PublishUnknown, match=r"has said nothing for \d\.\d s, also when it was ask"
    ):
        pools.publish("lost", box.name)


def test_a_short_time_limit_asks_for_nothing(
    amqp_url: str, leased: MakeLeased, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = leased(through(proxy, amqp_url), RETRY=None)
    pools.publish("before", box.name)
    (link,) = proxy.alive
    link.silence()
    with pytest.raises(PublishUnknown, match="no confirm came") as caught:
        pools.publish("lost", box.name, timeout=0.2)
    assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.slow
def test_a_queue_that_takes_its_time_is_not_taken_for_silence(
    private_rabbitmq: PrivateRabbitMQ, leased: MakeLeased, inbox: MakeInbox
) -> None:
    box = inbox(private_rabbitmq.url)
    pools = leased(private_rabbitmq.url)
    pools.publish("warm", box.name)
    with private_rabbitmq.suspended_queue(box.name):
        one = Crowd(1, lambda thread: pools.publish(thread, box.name))
        # Longer than it waits before it asks for a sign, and for that.
        with pytest.raises(AssertionError, match="have not come to an end"):
            one.join(SILENCE + FOR_A_SIGN + 1)
    assert one.errors() == []
    assert pools.connections["default"].stats().opened == 1


@pytest.mark.slow
def test_a_slow_broker_is_not_taken_for_silent(
    amqp_url: str, leased: MakeLeased, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = leased(through(proxy, amqp_url))
    pools.publish("warm", box.name)
    # Longer than it waits before it asks for a sign, and shorter than it waits for that.
    proxy.delay(SILENCE + 0.5, TO_CLIENT)
    pools.publish("slow", box.name)
    proxy.delay(0.0, TO_CLIENT)
    # What the broker has said to the question does not disturb the next one.
    pools.publish("next", box.name)
    assert pools.connections["default"].stats().opened == 1
    assert box.bodies(3) == ["warm", "slow", "next"]


@pytest.mark.slow
def test_a_broker_with_an_alarm_is_not_taken_for_silent(
    private_rabbitmq: PrivateRabbitMQ, leased: MakeLeased, inbox: MakeInbox
) -> None:
    box = inbox(private_rabbitmq.url)
    pools = leased(private_rabbitmq.url, CONFIRM_TIMEOUT=30.0)
    pools.publish("warm", box.name)
    with private_rabbitmq.memory_alarm():
        one = Crowd(1, lambda thread: pools.publish("held", box.name))
        eventually(lambda: pools.producers["default"].blocked)
        with pytest.raises(AssertionError, match="have not come to an end"):
            one.join(SILENCE + FOR_A_SIGN + 1)
    assert one.errors() == []
    assert pools.connections["default"].stats().opened == 1
    assert box.bodies(2) == ["warm", "held"]


# -- a nack ------------------------------------------------------------------------------------------------


@pytest.fixture
def full(amqp_url: str, queue: str) -> Iterator[Callable[[], int]]:
    """A queue that refuses all but one message; calling it takes that out, and returns how many there were."""
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with Connection(amqp_url) as connection:
        bound = Queue(queue, durable=False, queue_arguments=arguments)(connection.default_channel)
        bound.declare()
        yield bound.purge
        bound.delete()


def test_a_nack_is_tried_again_until_the_queue_has_room(
    amqp_url: str, queue: str, full: Callable[[], int], leased: MakeLeased
) -> None:
    pools = leased(amqp_url)
    pools.publish("first", queue)
    one = Crowd(1, lambda thread: pools.publish("second", queue))
    with pytest.raises(AssertionError, match="have not come to an end"):
        one.join(0.5)
    assert full() == 1
    assert one.errors() == []
    assert full() == 1
    stats = pools.connections["default"].stats()
    # On the connection that it had.
    assert (stats.opened, stats.acquires) == (1, 2)


def test_a_nack_is_an_error_at_the_end_of_its_time(
    amqp_url: str, queue: str, full: Callable[[], int], leased: MakeLeased
) -> None:
    pools = leased(amqp_url, RETRY={"max_retries": 1})
    pools.publish("first", queue)
    began = time.monotonic()
    with pytest.raises(PublishNacked, match="was refused"):
        pools.publish("second", queue, timeout=1.0)
    assert 0.1 < time.monotonic() - began < PATIENCE


def test_what_fails_after_a_nack_does_not_deny_that_some_queues_have_the_message(
    amqp_url: str,
    queue: str,
    full: Callable[[], int],
    leased: MakeLeased,
    proxied: MakeProxy,
) -> None:
    proxy = proxied(amqp_url)
    # The second try comes when the connection is gone.
    pools = leased(through(proxy, amqp_url), RETRY={"interval_start": 0.5}, CONFIRM_TIMEOUT=2.0)
    pools.publish("first", queue)
    (link,) = proxy.alive
    one = Crowd(1, lambda thread: pools.publish("second", queue))
    eventually(lambda: NACK in link.sent(TO_CLIENT))
    proxy.refuse()
    proxy.cut()
    [error] = one.errors()
    assert isinstance(error, PublishNacked)
    assert isinstance(error.__cause__, OperationalError)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    "settings, options",
    [
        ({"RETRY": {"nacked": False}}, {}),
        ({"RETRY": None}, {}),
        ({"RETRY": {"max_retries": 0}}, {}),
        ({}, {"retry": False}),
        ({}, {"retry": True, "retry_policy": {"max_retries": 3}}),
    ],
    ids=["nacked", "none", "max_retries", "the call", "kombu's policy"],
)
def test_a_nack_is_an_error_at_once_where_it_is_not_to_be_tried_again(
    amqp_url: str,
    queue: str,
    full: Callable[[], int],
    leased: MakeLeased,
    settings: dict[str, object],
    options: dict[str, object],
) -> None:
    pools = leased(amqp_url, CONFIRM_TIMEOUT=PATIENCE, **settings)
    pools.publish("first", queue)
    began = time.monotonic()
    with pytest.raises(PublishNacked, match="was refused"):
        pools.publish("second", queue, **options)  # type: ignore[arg-type]  # one of its keywords
    assert time.monotonic() - began < PATIENCE / 2
