"""A message that comes with its declarations, after somebody has deleted what was declared before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishReturned
from tests.broker.common import PATIENCE

pytestmark = pytest.mark.broker

Delete = Callable[[Any], None]


@pytest.fixture
def delete(amqp_url: str) -> Iterator[Delete]:
    """Deletes a queue or an exchange by way of a connection of its own."""
    with kombu.Connection(amqp_url) as connection:
        yield lambda entity: entity(connection.default_channel).delete()


@pytest.fixture
def pools(amqp_url: str) -> Iterator[Pools]:
    made = Pools({"default": {"URL": amqp_url, "LIMIT": 1}})
    yield made
    made.reset()


def depth(url: str, name: str) -> int:
    with kombu.Connection(url) as connection:
        count = kombu.Queue(name)(connection.default_channel).queue_declare(passive=True)
        return int(count.message_count)


def test_a_deleted_queue_is_declared_again_and_gets_the_message(
    pools: Pools, delete: Delete, amqp_url: str, queue: str
) -> None:
    entity = kombu.Queue(queue)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        for _ in range(2):
            producer.publish("x", routing_key=queue, declare=[entity], mandatory=True)
            delete(entity)
        producer.publish("x", routing_key=queue, declare=[entity], mandatory=True)
    assert depth(amqp_url, queue) == 1
    assert pools.connections["default"].stats().closed == {}
    delete(entity)


@pytest.mark.parametrize("mandatory", [False, True])
def test_a_deleted_exchange_is_declared_again_with_its_queue(
    pools: Pools, delete: Delete, amqp_url: str, queue: str, mandatory: bool
) -> None:
    exchange = kombu.Exchange(f"{queue}-exchange", "topic")
    entity = kombu.Queue(queue, exchange, routing_key="a.#")
    what = {"exchange": exchange, "routing_key": "a.b", "declare": [entity], "mandatory": mandatory}
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("x", **what)
        delete(entity)
        delete(exchange)
        producer.publish("x", **what)
    assert depth(amqp_url, queue) == 1
    delete(entity)
    delete(exchange)


def test_it_is_declared_again_once_and_then_the_broker_has_the_last_word(
    pools: Pools, delete: Delete, queue: str
) -> None:
    # What is declared leads nowhere.
    exchange = kombu.Exchange(f"{queue}-exchange", "topic")
    what = {"exchange": exchange, "routing_key": "a.b", "declare": [exchange], "mandatory": True}
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(PublishReturned):
            producer.publish("x", **what)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(NotFound):
            producer.publish("x", exchange=f"{queue}-nowhere", routing_key="x", declare=[exchange])
    delete(exchange)


def test_without_declarations_a_return_is_told_at_once(pools: Pools, queue: str) -> None:
    with pytest.raises(PublishReturned):
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key=queue, mandatory=True)


def test_in_a_batch_what_follows_a_return_declares_again(
    pools: Pools, delete: Delete, amqp_url: str, queue: str
) -> None:
    entity = kombu.Queue(queue)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue, declare=[entity])
    delete(entity)
    outcomes = []
    for name in ("lost", "kept"):
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            made = producer.batch()
            try:
                with made:
                    producer.publish("x", routing_key=queue, declare=[entity], message_id=name)
            except BatchFailed:
                pass
        outcomes.append(made.results)
    assert outcomes == [{"lost": Outcome.RETURNED}, {"kept": Outcome.ACKED}]
    assert depth(amqp_url, queue) == 1
    delete(entity)


def test_who_wants_it_tried_again_has_it_tried_as_often_as_that_and_no_more(
    pools: Pools, queue: str
) -> None:
    told: list[Any] = []
    policy = {
        "max_retries": 2,
        "interval_start": 0,
        "interval_step": 0,
        "retry_errors": (NotFound,),
        "errback": lambda error, pause: told.append(error),
    }
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(NotFound):
            producer.publish(
                "x", exchange=queue, routing_key="x", retry=True, retry_policy=policy, declare=[]
            )
    assert len(told) == 2
