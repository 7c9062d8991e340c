"""Faults on demand: what a publisher sees of each, and that it is over afterwards."""

from __future__ import annotations

import time
from typing import Any

import kombu
import pytest
from amqp.exceptions import ConnectionForced
from kombu import Queue

from kombu_pools_ext import Pools, configure
from kombu_pools_ext.errors import BrokerUnreachable, PoolError, PublishNacked, PublishUnknown
from kombu_pools_ext.testing import Broker, ManualClock, brokers
from tests.broker.common import PATIENCE, eventually

WAYS = ["leased", "shared"]


@pytest.fixture(params=WAYS)
def pools(request: pytest.FixtureRequest, broker: Broker) -> Pools:
    made = configure(default={"URL": "test://default", "PUBLISH_OVER": request.param})
    made.publish("first", routing_key="q", declare=[Queue("q")])
    return made


def bodies(broker: Broker) -> list[Any]:
    return [one.body for one in broker.published if one.outcome == "ACKED"]


def test_a_broker_that_is_down(pools: Pools, broker: Broker) -> None:
    with broker.down():
        assert broker.connections == []
        # The pool's own, or UNKNOWN if the shared connection was in use when it broke.
        with pytest.raises((PoolError, PublishUnknown)):
            pools.publish("x", routing_key="q", acquire_timeout=0.2, timeout=0.5)
        with pytest.raises(ConnectionRefusedError, match="test://default is down"):
            kombu.Connection("test://default").connection  # a property that connects
    # As soon as the breaker asks again.
    pools.publish("after", routing_key="q", acquire_timeout=PATIENCE)
    assert bodies(broker) == ["first", "after"]


def test_a_fault_ends_once(broker: Broker) -> None:
    one, other = broker.down(), broker.down()
    one.end()
    one.end()
    aliases = configure(default="test://default")
    with pytest.raises(BrokerUnreachable):
        aliases.publish("x", routing_key="q", acquire_timeout=0.2)
    other.end()


def test_messages_that_are_refused(pools: Pools, broker: Broker) -> None:
    broker.refuse_next(2)
    for _ in range(2):
        with pytest.raises(PublishNacked):
            pools.publish("x", routing_key="q", retry=False)
    pools.publish("after", routing_key="q")
    assert [one.outcome for one in broker.published] == ["ACKED", "NACKED", "NACKED", "ACKED"]
    assert [message.body for message in broker.vhost().queues["q"]] == [b"first", b"after"]
    with broker.refuse_next(5):
        with pytest.raises(PublishNacked):
            pools.publish("x", routing_key="q", retry=False)
    pools.publish("at last", routing_key="q", retry=False)
    with pytest.raises(ValueError, match="one message or more, got 0"):
        broker.refuse_next(0)


def test_confirms_that_are_lost(pools: Pools, broker: Broker) -> None:
    with broker.lose_confirms():
        with pytest.raises(PublishUnknown):
            pools.publish("maybe", routing_key="q", retry=False)
    # It is there all the same: that is what makes the outcome unknown.
    assert [message.body for message in broker.vhost().queues["q"]] == [b"first", b"maybe"]
    assert broker.published[-1].outcome == "UNKNOWN"
    pools.publish("after", routing_key="q", retry=False)


def test_a_lost_confirm_is_a_copy_after_a_retry(pools: Pools, broker: Broker) -> None:
    fault = broker.lose_confirms()
    future = pools.submit("twice", routing_key="q")
    eventually(lambda: any(one.outcome == "UNKNOWN" for one in broker.published))
    fault.end()
    future.result(PATIENCE)
    copies = broker.published.matching(body="twice")
    assert len(copies) >= 2
    assert len({one.message_id for one in copies}) == 1


@pytest.mark.threads
def test_a_slow_broker_answers_when_its_clock_says_so(
    pools: Pools, broker: Broker, clock: ManualClock
) -> None:
    # The way of a submitted message is open before the broker gets slow.
    pools.submit("opened", routing_key="q").result(PATIENCE)
    fault = broker.slow(3)
    future = pools.submit("x", routing_key="q")
    eventually(lambda: len(broker.published) == 3)
    clock.advance(2.9)
    assert not future.done()
    clock.advance(0.1)
    future.result(PATIENCE)
    fault.end()
    before = time.monotonic()
    pools.publish("y", routing_key="q")
    assert time.monotonic() - before < PATIENCE
    with pytest.raises(ValueError, match="expected seconds, got -1"):
        broker.slow(-1)


def test_with_the_systems_clock_a_slow_broker_takes_its_time() -> None:
    aliases = configure(default="test://slow")
    aliases.publish("first", routing_key="q", declare=[Queue("q")])
    with brokers["slow"].slow(0.2):
        before = time.monotonic()
        aliases.publish("x", routing_key="q")
        assert 0.2 <= time.monotonic() - before < PATIENCE


@pytest.mark.threads
def test_an_alarm_holds_what_is_published(pools: Pools, broker: Broker) -> None:
    pools.submit("opened", routing_key="q").result(PATIENCE)
    fault = broker.blocked()
    future = pools.submit("held", routing_key="q")
    eventually(lambda: any(one.is_blocked for one in broker.connections))
    eventually(lambda: pools.connections["default"].stats().blocked is not None)
    assert bodies(broker) == ["first", "opened"]
    assert not future.done()
    fault.end()
    future.result(PATIENCE)
    assert bodies(broker) == ["first", "opened", "held"]


def test_connections_that_are_closed_are_made_anew(pools: Pools, broker: Broker) -> None:
    with kombu.Connection("test://default") as connection:
        connection.connect()
        broker.close_connections("maintenance")
        with pytest.raises(ConnectionForced, match=r"320.*CONNECTION_FORCED - maintenance"):
            connection.drain_events(timeout=PATIENCE)
    pools.publish("after", routing_key="q")
    assert bodies(broker) == ["first", "after"]
