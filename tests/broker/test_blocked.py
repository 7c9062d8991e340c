"""A broker short of memory or disk: no producers are lent until it takes messages again, and nobody hangs."""

from __future__ import annotations

from collections.abc import Callable

import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import BrokerBlocked, PublishUnknown
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import Node, confirming, through
from tests.engine.fakes import in_thread
from tests.proxy import TO_SERVER, Proxy

#: Frames of a server.
BLOCKED = b"\x01\x00\x00\x00\x00\x00\x12\x00\x0a\x00\x3c\x0dlow on memory\xce"
UNBLOCKED = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x3d\xce"
#: Every connection is checked before it is lent: that reads what the broker has said.
ALWAYS = PoolOptions(check_after=0.0)
#: Seconds of a deadline that is meant to pass.
SOON = 0.1


def pool_of(url: str, limit: int = 2) -> tuple[pools.ConnectionPool, pools.ProducerPool]:
    connections = pools.ConnectionPool(
        kombu.Connection(url), limit=limit, options=ALWAYS, name="shop"
    )
    return connections, pools.ProducerPool(connections)


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def url(amqp_url: str, proxy: Proxy) -> str:
    return through(proxy, amqp_url)


def refused(producers: pools.ProducerPool) -> BrokerBlocked | None:
    """The refusal, once the pool has heard of the blockade."""
    try:
        producers.acquire(timeout=SOON).release()
    except BrokerBlocked as error:
        return error
    return None


def test_no_producers_while_the_broker_takes_no_messages(
    url: str, proxy: Proxy, inbox: Callable[[str], Inbox], amqp_url: str
) -> None:
    box = inbox(amqp_url)
    connections, producers = pool_of(url)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("before", routing_key=box.name)
    proxy.alive[0].say(BLOCKED)
    error = eventually(lambda: refused(producers))
    assert isinstance(error, OperationalError)
    assert isinstance(error, producers.LimitExceeded)
    assert "pool 'shop'" in str(error)
    # Who does not wait is told at once.
    with pytest.raises(BrokerBlocked):
        producers.acquire()
    # Consumers have nothing to do with it.
    with connections.acquire(timeout=PATIENCE) as lease:
        lease.channel().close()

    def publish() -> None:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("after", routing_key=box.name)

    # Whoever waits gets through as soon as the broker says so; maintenance is what reads it.
    with in_thread(publish) as outcome:
        eventually(lambda: connections.stats().waiting)
        proxy.alive[0].say(UNBLOCKED)
    assert outcome.error is None
    assert box.bodies(2) == ["before", "after"]
    assert connections.stats().closed == {}
    connections.force_close_all()


def test_a_blockade_ends_with_its_connection(url: str, proxy: Proxy) -> None:
    connections, producers = pool_of(url, limit=1)
    producers.acquire(timeout=PATIENCE).release()
    proxy.alive[0].say(BLOCKED)
    eventually(lambda: refused(producers))
    # Maintenance finds it dead.
    proxy.cut()
    producers.acquire(timeout=PATIENCE).release()
    assert connections.stats().closed == {"dead": 1}
    connections.force_close_all()


def test_a_producer_that_broke_keeps_nobody_waiting(
    amqp_url: str, url: str, proxy: Proxy, inbox: Callable[[str], Inbox]
) -> None:
    """However long its borrower holds it: nobody will read there that the broker takes messages again."""
    connections = pools.ConnectionPool(confirming(url), limit=2, options=ALWAYS, name="shop")
    producers = pools.ProducerPool(connections)
    held = producers.acquire(timeout=PATIENCE)
    held.publish("before", routing_key=inbox(amqp_url).name)
    proxy.hold(TO_SERVER)
    proxy.alive[0].say(BLOCKED)
    with pytest.raises(PublishUnknown):
        held.publish("meanwhile", routing_key="nobody", timeout=SOON)
    proxy.heal()
    producers.acquire(timeout=PATIENCE).release()
    held.release()
    connections.force_close_all()


@pytest.mark.slow
def test_a_memory_alarm(node: Node, inbox: Callable[[str], Inbox]) -> None:
    box = inbox(node.url)
    connections, producers = pool_of(node.url, limit=3)
    watching = connections.acquire(timeout=PATIENCE)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("before", routing_key=box.name)
    sent = ["before"]
    node.alarm()
    try:

        def publish() -> BrokerBlocked | None:
            # The broker tells those only who have published meanwhile: their messages are on their way.
            try:
                with producers.acquire(timeout=SOON) as producer:
                    producer.publish("meanwhile", routing_key=box.name)
                    sent.append("meanwhile")
            except BrokerBlocked as error:
                return error
            return None

        error = eventually(publish)
        assert "pool 'shop'" in str(error)
        # Connections are lent, and work where nobody has published.
        watching.channel().close()
        connections.acquire(timeout=PATIENCE).release()
    finally:
        node.no_alarm()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("after", routing_key=box.name)
        sent.append("after")
    # Nothing that was sent is lost; "after" may be on another connection, and so come first.
    assert sorted(box.bodies(len(sent))) == sorted(sent)
    assert connections.stats().closed == {}
    watching.release()
    connections.force_close_all()
