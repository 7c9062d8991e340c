"""``MANDATORY``: by default, a message to the default exchange that no queue takes is an error."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from kombu import Exchange, Queue

from kombu_pools_ext import Pools, configure, connections, pools, producers
from kombu_pools_ext.broker.amqp.publisher import MOST_RETURNABLE
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishReturned
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import Node, confirming

MakeInbox = Callable[[str], Inbox]


@pytest.fixture
def exchange(amqp_url: str, queue: str) -> Iterator[Exchange]:
    """One that no queue is bound to."""
    with kombu.Connection(amqp_url) as connection:
        made = Exchange(f"{queue}.exchange", "direct", durable=False)(connection.default_channel)
        made.declare()
        yield Exchange(made.name, "direct", durable=False)
        made.delete()


def returns(publish: Callable[..., Any], *args: Any, **given: Any) -> bool:
    """Whether the message comes back; if not, it is confirmed."""
    try:
        publish({"n": 1}, *args, **given)
    except PublishReturned:
        return True
    return False


def test_by_default_what_nobody_can_ever_get_is_an_error(
    amqp_url: str, queue: str, exchange: Exchange, inbox: MakeInbox
) -> None:
    aliases = configure(default={"url": amqp_url})
    with producers["default"].acquire(timeout=PATIENCE) as producer:
        for publish in (aliases.publish, producer.publish):
            assert returns(publish, routing_key=queue)
            assert returns(publish, routing_key=queue, exchange="")
            assert returns(publish, routing_key=queue, exchange=Exchange(""))
            # Where it is not for us to say.
            assert not returns(publish, routing_key=queue, exchange=exchange)
            assert not returns(publish, routing_key=queue, exchange=exchange.name)
            assert not returns(publish, routing_key=queue, mandatory=False)
        assert returns(producer.publish, queue)
        # The third is `mandatory`.
        assert not returns(producer.publish, queue, None, False)
        assert returns(producer.publish, queue, None, True)
        # A borrower's own exchange is as good as one that is passed.
        before, producer.exchange = producer.exchange, exchange
        assert not returns(producer.publish, routing_key=queue)
        producer.exchange = before
    box = inbox(amqp_url)
    aliases.publish({"n": 2}, box.name)
    assert box.bodies(1) == [{"n": 2}]
    stats = connections["default"].stats()
    assert (stats.closed, stats.lent) == ({}, 0)


def test_true_is_for_every_exchange_and_false_for_none(
    amqp_url: str, queue: str, exchange: Exchange
) -> None:
    aliases = Pools(
        strict={"url": amqp_url, "mandatory": True}, loose={"url": amqp_url, "mandatory": False}
    )
    for using, come_back in (("strict", True), ("loose", False)):
        with aliases.producers[using].acquire(timeout=PATIENCE) as producer:
            for publish, given in (
                (aliases.publish, {"using": using}),
                (producer.publish, {"compression": "gzip"}),
                (producer.publish, {}),
            ):
                assert returns(publish, queue, **given) is come_back
                assert returns(publish, queue, exchange=exchange, **given) is come_back
                assert returns(publish, queue, mandatory=not come_back, **given) is not come_back
            # To say nothing, in so many words, is to leave it to the setting.
            assert returns(aliases.publish, queue, using=using, mandatory=None) is come_back
    # One pool of connections; the producers have their own ways.
    assert aliases.connections["strict"] is aliases.connections["loose"]
    assert aliases.producers["strict"] is not aliases.producers["loose"]


def test_without_confirms_nothing_is_mandatory_by_itself(amqp_url: str, queue: str) -> None:
    """A message that came back would be told to whoever reads next."""
    came_back: list[Any] = []
    aliases = Pools(default={"url": amqp_url, "confirm": False})
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.channel.events["basic_return"].add(lambda *args: came_back.append(args))
        producer.publish({"n": 1}, routing_key=queue)
        # An RPC: what was published before it has been routed.
        producer.channel.queue_declare(queue, durable=False, auto_delete=True, exclusive=True)
        assert came_back == []


def test_a_pool_of_a_url_publishes_as_kombu_does(amqp_url: str, queue: str) -> None:
    for broker in (amqp_url, confirming(amqp_url)):
        with pools.producers[broker].acquire(timeout=PATIENCE) as producer:
            producer.publish({"n": 1}, routing_key=queue)


@pytest.mark.parametrize(
    "url", ["memory", pytest.param("redis", marks=pytest.mark.redis)], indirect=True
)
@pytest.mark.parametrize("mandatory", ["default_exchange", True])
def test_what_has_no_returns_keeps_the_message_under_its_key(
    url: str, queue: str, mandatory: Any
) -> None:
    aliases = Pools(default={"url": url, "mandatory": mandatory})
    aliases.publish({"n": 1}, queue)
    assert Inbox(url, queue).bodies(1) == [{"n": 1}]


def test_the_error_says_what_to_do(amqp_url: str, queue: str, exchange: Exchange) -> None:
    aliases = Pools(default={"url": amqp_url})
    with pytest.raises(
        PublishReturned, match=r"312 NO_ROUTE.*no queue of that name: declare it"
    ) as caught:
        aliases.publish({}, queue)
    assert (caught.value.exchange, caught.value.routing_key) == ("", queue)
    for told in ("mandatory=False", "MANDATORY", "declare=[Queue(…)]"):
        assert told in str(caught.value)
    with pytest.raises(PublishReturned, match="bind a queue to the exchange with that key"):
        aliases.publish({}, queue, exchange=exchange, mandatory=True)


def test_a_direct_reply_is_delivered_and_no_error(amqp_url: str) -> None:
    """RabbitMQ delivers it, and calls it unroutable all the same."""
    aliases = Pools(default={"url": amqp_url}, strict={"url": amqp_url, "mandatory": True})
    answers: list[Any] = []
    asked: list[Any] = []
    with kombu.Connection(amqp_url) as client:
        channel = client.default_channel
        pseudo = Queue("amq.rabbitmq.reply-to", no_ack=True, no_declare=True)
        consumer = kombu.Consumer(channel, no_ack=True, auto_declare=False)
        consumer.queues = [pseudo(channel)]
        consumer.register_callback(lambda body, message: answers.append(body))
        consumer.consume()
        with kombu.Connection(amqp_url) as server:
            requests = Queue(f"rpc-{uuid.uuid4().hex}", auto_delete=True)(server.default_channel)
            requests.declare()
            kombu.Producer(channel).publish(
                {"n": 1}, routing_key=requests.name, reply_to="amq.rabbitmq.reply-to"
            )
            while not asked:
                message = requests.get(no_ack=True)
                asked += [] if message is None else [message.properties["reply_to"]]
            for using in ("default", "strict"):
                aliases.publish({"using": using}, asked[0], using=using)
                with aliases.producers[using].acquire(timeout=PATIENCE) as producer:
                    producer.publish({"lease": using}, asked[0])
            requests.delete()
        while len(answers) < 4:
            client.drain_events(timeout=PATIENCE)
    assert answers == [
        {"using": "default"},
        {"lease": "default"},
        {"using": "strict"},
        {"lease": "strict"},
    ]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_tells_what_came_back(amqp_url: str, queue: str, inbox: MakeInbox) -> None:
    box, aliases = inbox(amqp_url), Pools(default={"url": amqp_url})
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch():
            for number in range(40):
                key = f"{queue}-nobody" if number % 4 else box.name
                producer.publish({"n": number}, routing_key=key, message_id=str(number))
    assert caught.value.results == {
        str(number): Outcome.RETURNED if number % 4 else Outcome.ACKED for number in range(40)
    }
    assert box.bodies(10) == [{"n": number} for number in range(0, 40, 4)]


@pytest.mark.parametrize("over", ["plain", "tls"])
def test_large_messages_that_all_come_back_block_nobody(node: Node, queue: str, over: str) -> None:
    """Far more than the buffers of both sides hold, and than may be under way at once."""
    settings: dict[str, Any] = {"url": node.url}
    if over == "tls":
        settings = {"url": node.tls_url, "ssl": {"ca_certs": str(node.certificate)}}
    aliases = Pools(default={**settings, "confirm_timeout": PATIENCE})
    body = b"x" * 300_000
    count = 8 * MOST_RETURNABLE // len(body)
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch():
            for number in range(count):
                producer.publish(body, routing_key=queue, message_id=str(number))
    assert caught.value.results == {str(number): Outcome.RETURNED for number in range(count)}
    assert aliases.connections["default"].stats().closed == {}
