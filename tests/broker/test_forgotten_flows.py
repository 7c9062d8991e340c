"""Connections that look alive until something is sent on them: a balancer lost its table, a firewall its flows.

The broker is there all the time, so nobody who publishes may notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import PublishUnknown
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import BROKERS, through
from tests.proxy import TO_SERVER, Proxy

MakeInbox = Callable[[str], Inbox]


@pytest.fixture
def proxy(broker_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(broker_url)


@pytest.fixture
def make(broker_url: str, proxy: Proxy) -> Iterator[Callable[..., Pools]]:
    """Makes pools by alias, behind the proxy."""
    made: list[Pools] = []

    def make(**settings: Any) -> Pools:
        made.append(Pools({"default": {"URL": through(proxy, broker_url), **settings}}))
        return made[-1]

    yield make
    for pools in made:
        pools.reset()


def idle(pools: Pools, count: int, name: str) -> None:
    """Have *count* idle connections, each of which has published."""
    with ExitStack() as stack:
        for _ in range(count):
            producer = stack.enter_context(pools.producers["default"].acquire(timeout=PATIENCE))
            producer.publish("warm", routing_key=name)
    assert pools.connections["default"].stats().idle == count


def forget(proxy: Proxy) -> None:
    """Answer the next byte on each connection that exists with a RST; new ones are welcome."""
    for link in proxy.alive:
        link.play([(TO_SERVER, len(link.sent(TO_SERVER)) + 1, "reset")])


@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("broker_url", BROKERS, indirect=True)
def test_no_publish_fails_however_many_connections_were_forgotten(
    make: Callable[..., Pools], proxy: Proxy, broker_url: str, inbox: MakeInbox, count: int
) -> None:
    box, pools = inbox(broker_url), make(LIMIT=10)
    idle(pools, count, box.name)
    forget(proxy)
    for number in range(count):
        pools.publish(f"after {number}", routing_key=box.name)
    bodies = box.bodies()
    assert [f"after {number}" for number in range(count)] == sorted(
        {body for body in bodies if body != "warm"}, key=lambda body: int(body.split()[1])
    )


@pytest.mark.parametrize("broker_url", BROKERS, indirect=True)
def test_no_lease_publishes_on_a_connection_that_was_forgotten_after_the_first_is_found(
    make: Callable[..., Pools], proxy: Proxy, broker_url: str, inbox: MakeInbox
) -> None:
    box, pools = inbox(broker_url), make(LIMIT=10)
    idle(pools, 5, box.name)
    forget(proxy)
    pools.publish("first", routing_key=box.name)
    # Without tries of their own.
    for number in range(5):
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            producer.publish(number, routing_key=box.name, retry=False)
    assert [body for body in box.bodies() if isinstance(body, int)] == list(range(5))
    assert pools.connections["default"].stats().size == 1


@pytest.mark.broker
def test_of_connections_that_fell_silent_one_publish_at_most_learns_the_hard_way(
    make: Callable[..., Pools], proxied: Callable[[str], Proxy], amqp_url: str, inbox: MakeInbox
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    pools = Pools({"default": {"URL": through(proxy, amqp_url), "LIMIT": 10, "CONFIRM_TIMEOUT": 1}})
    idle(pools, 5, box.name)
    for link in proxy.alive:
        link.silence()
    with pytest.raises(PublishUnknown):
        pools.publish("lost", routing_key=box.name)
    for number in range(5):
        pools.publish(number, routing_key=box.name)
    assert [body for body in box.bodies() if isinstance(body, int)] == list(range(5))
    pools.reset()


@pytest.mark.broker
def test_a_single_connection_that_breaks_costs_the_others_a_question_and_no_more(
    proxied: Callable[[str], Proxy], amqp_url: str, inbox: MakeInbox
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    pools = Pools({"default": {"URL": through(proxy, amqp_url), "LIMIT": 10}})
    idle(pools, 3, box.name)
    pool = pools.connections["default"]
    warmest = pool.engine.state.idle[-1].item.pooled_session.transport._sock.getsockname()
    (link,) = [one for one in proxy.alive if one.client.getpeername() == warmest]
    link.play([(TO_SERVER, len(link.sent(TO_SERVER)) + 1, "reset")])
    for number in range(3):
        pools.publish(number, routing_key=box.name)
    eventually(lambda: pool.stats().closed == {"broken": 1})
    assert pool.stats().opened == 3
    pools.reset()
