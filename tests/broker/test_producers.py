"""Producers draw on the connections: one limit for both, one deadline, one lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest
from kombu.exceptions import OperationalError

import kombu_pools_ext
from kombu_pools_ext import PoolSettings, pools
from kombu_pools_ext.errors import (
    BrokerUnreachable,
    LeaseError,
    PoolClosed,
    PoolExhausted,
    PoolTimeout,
)
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import Node, confirming, through
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def url(amqp_url: str, proxy: Proxy) -> str:
    return through(proxy, amqp_url)


@pytest.fixture
def pool(url: str) -> Iterator[pools.ConnectionPool]:
    pool = pools.ConnectionPool(confirming(url), limit=3)
    yield pool
    pool.force_close_all()


class Watch:
    """The most connections that the pool kept open at a time, as the broker's side sees them."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self.most = proxy, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.001):
            # What the client has closed is closed, though its broker may not have closed it yet.
            open_now = [one for one in self._proxy.alive if not one.halves[TO_SERVER].ended]
            self.most = max(self.most, len(open_now))


# -- limits ----------------------------------------------------


@pytest.mark.threads
def test_connections_and_producers_together_stay_within_the_limit(
    url: str, proxy: Proxy, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    pools.set_limit(3)
    connection = confirming(url)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                if (number + turn) % 2:
                    with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
                        producer.publish([number, turn], routing_key=box.name)
                else:
                    with pools.connections[connection].acquire(timeout=PATIENCE) as lent:
                        lent.Producer().publish([number, turn], routing_key=box.name)
                if turn == 10 and number == 0:
                    pools.reset()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    with Watch(proxy) as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
    assert failed == []
    assert 1 <= watch.most <= 3
    assert sorted(box.bodies()) == [[n, turn] for n in range(12) for turn in range(20)]


def test_as_the_broker_counts_them(node: Node) -> None:
    pools.set_limit(3)
    # By their names: one of an earlier test's may be going yet.
    before = {one["name"] for one in node.list_connections()}
    leases = [
        pools.producers[node.url].acquire(timeout=PATIENCE),
        pools.connections[node.url].acquire(timeout=PATIENCE),
        pools.producers[node.url].acquire(timeout=PATIENCE),
    ]
    for refused in (pools.producers, pools.connections):
        with pytest.raises(PoolExhausted):
            refused[node.url].acquire()
        with pytest.raises(PoolTimeout):
            refused[node.url].acquire(timeout=0.05)
    eventually(lambda: len({one["name"] for one in node.list_connections()} - before) == 3)
    for lease in leases:
        lease.release()


def test_a_producer_pool_with_a_smaller_limit(pool: pools.ConnectionPool) -> None:
    few, others = pools.ProducerPool(pool, limit=1), pools.ProducerPool(pool)
    assert (few.limit, others.limit, pool.limit) == (1, None, 3)
    one = few.acquire(timeout=PATIENCE)
    with pytest.raises(PoolExhausted):
        few.acquire()
    with pytest.raises(PoolTimeout):
        few.acquire(timeout=0.05)
    # There is room for others, who overtake nobody: those who wait for the share wait for nothing else.
    waited: list[Any] = []
    waiter = threading.Thread(
        target=lambda: waited.append(few.acquire(timeout=PATIENCE)), daemon=True
    )
    waiter.start()
    eventually(lambda: pool.stats().waiting == 1)
    with others.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE):
        assert (few.lent, others.lent, pool.lent) == (1, 1, 3)
    assert waited == []
    one.release()
    waiter.join(PATIENCE)
    assert few.lent == 1
    waited.pop().release()


def test_a_producer_pool_with_a_larger_limit_is_bound_by_its_connections(
    pool: pools.ConnectionPool,
) -> None:
    producers = pools.ProducerPool(pool, limit=9)
    leases = [producers.acquire(timeout=PATIENCE) for _ in range(3)]
    with pytest.raises(PoolTimeout):
        producers.acquire(timeout=0.05)
    for lease in leases:
        lease.release()


def test_resizing_a_share(pool: pools.ConnectionPool) -> None:
    producers = pools.ProducerPool(pool, limit=2)
    leases = [producers.acquire(timeout=PATIENCE) for _ in range(2)]
    with pytest.raises(RuntimeError, match="was=2 now=1, 2 lent"):
        producers.resize(1)
    assert producers.limit == 2
    waited: list[Any] = []
    waiter = threading.Thread(
        target=lambda: waited.append(producers.acquire(timeout=PATIENCE)), daemon=True
    )
    waiter.start()
    eventually(lambda: pool.stats().waiting == 1)
    producers.limit = 3
    waiter.join(PATIENCE)
    assert producers.lent == 3
    producers.resize(1, force=True)
    for lease in (*leases, *waited):
        lease.release()
    assert (producers.limit, pool.limit) == (1, 3)
    producers.acquire().release()


# -- one deadline ----------------------------------------------------


@pytest.mark.parametrize("way", ["connections lent", "share used up", "silent peer"])
def test_a_timeout_holds_over_both_levels(
    pool: pools.ConnectionPool, proxy: Proxy, way: str
) -> None:
    producers = pools.ProducerPool(pool, limit=1 if way == "share used up" else None)
    leases: list[Any] = []
    if way == "connections lent":
        leases = [pool.acquire(timeout=PATIENCE) for _ in range(3)]
    elif way == "share used up":
        leases = [producers.acquire(timeout=PATIENCE)]
    else:
        proxy.hold(TO_CLIENT)
    for block in (True, False):
        began = time.monotonic()
        with pytest.raises(producers.LimitExceeded):
            producers.acquire(block=block, timeout=0.2)
        # An opening may take 5 s.
        assert 0.15 < time.monotonic() - began < 4.0
    assert pool.stats().waiting == 0
    proxy.heal()
    for lease in leases:
        lease.release()
    producers.acquire(timeout=PATIENCE).release()


# -- over kombu's own pool ----------------------------------------------------


@pytest.fixture
def kombus(amqp_url: str) -> Iterator[Any]:
    pool = kombu.Connection(amqp_url).Pool(limit=2)
    yield pool
    pool.force_close_all()


def test_over_kombus_own_pool(kombus: Any, amqp_url: str, inbox: Callable[[str], Inbox]) -> None:
    box = inbox(amqp_url)
    producers = pools.ProducerPool(kombus, limit=5)
    for body in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish(body, routing_key=box.name)
            assert len(kombus._dirty) == 1
        # Given back at once: the others of that pool need it.
        assert len(kombus._dirty) == 0
    assert sorted(box.bodies(3)) == [0, 1, 2]
    # One connection did it all.
    opened = [one for one in kombus._resource.queue if getattr(one, "connected", False)]
    assert len(opened) == 1
    with pytest.raises(LeaseError):
        producer.publish("x", routing_key=box.name)


def test_over_kombus_own_pool_it_waits_for_it(kombus: Any) -> None:
    producers = pools.ProducerPool(kombus, limit=5)
    held = [kombus.acquire() for _ in range(2)]
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            producers.acquire(timeout=0.2)
        assert time.monotonic() - began < PATIENCE / 2
    got: list[Any] = []
    waiter = threading.Thread(
        target=lambda: got.append(producers.acquire(timeout=PATIENCE)), daemon=True
    )
    waiter.start()
    eventually(lambda: producers.stats().waiting == 1)
    for one in held:
        one.release()
    waiter.join(PATIENCE)
    got.pop().release()
    # What the borrowers that gave up had asked for went back as well.
    eventually(lambda: len(kombus._dirty) == 0)
    eventually(lambda: producers.stats().size == 0)
    assert len(kombus._resource.queue) == 2


def test_over_kombus_own_pool_an_error_discards(kombus: Any, queue: str) -> None:
    producers = pools.ProducerPool(kombus, limit=5)
    for error in (amqp.RecoverableConnectionError("by peer"), KeyboardInterrupt()):
        with pytest.raises(type(error)), producers.acquire(timeout=PATIENCE) as producer:
            broken = producer.connection.connection
            raise error
        assert len(kombus._dirty) == 0
        with producers.acquire(timeout=PATIENCE) as producer:
            assert producer.connection.connection is not broken
            producer.publish("x", routing_key=queue)


def test_over_kombus_own_pool_of_a_broker_that_is_down() -> None:
    # Without kombu's waits of six seconds.
    at_once = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    pool = kombu.Connection("amqp://127.0.0.1:1//", transport_options=at_once).Pool(limit=2)
    producers = pools.ProducerPool(pool, limit=2)
    for _ in range(3):
        # kombu's pool opens late: at the first use.
        with pytest.raises((OperationalError, ConnectionRefusedError)):
            with producers.acquire(timeout=PATIENCE) as producer:
                producer.publish("x", routing_key="nobody-is-there", retry=False)
    assert len(pool._dirty) == 0
    assert producers.stats().size == 0


# -- what its settings say ----------------------------------------------------


def test_a_confirm_that_does_not_come(url: str, proxy: Proxy, queue: str) -> None:
    pool = pools.ConnectionPool(confirming(url), limit=1, confirm_timeout=0.2)
    producers = pools.ProducerPool(pool)
    assert producers.confirm_timeout == 0.2
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue, timeout=PATIENCE)
    proxy.hold(TO_CLIENT)
    began = time.monotonic()
    with pytest.raises((TimeoutError, OperationalError)):
        with producers.acquire() as producer:
            producer.publish("x", routing_key=queue)
    assert time.monotonic() - began < 5.0
    # A late confirm would be taken for the next one's.
    assert pool.stats().closed == {"broken": 1}
    proxy.heal()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue, timeout=PATIENCE)
    pool.force_close_all()


def test_serializer_and_compression_of_settings(
    amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    settings = PoolSettings(url=amqp_url, serializer="pickle", compression="zlib")
    with pools.producers[settings].acquire(timeout=PATIENCE) as producer:
        producer.publish({"id": 1}, routing_key=box.name)
        producer.publish({"id": 2}, routing_key=box.name, serializer="json")
    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish({"id": 3}, routing_key=box.name)
    one, two, three = box.messages(3)
    assert (one.content_type, one.headers["compression"]) == (
        "application/x-python-serialize",
        "application/x-gzip",
    )
    assert (two.content_type, two.headers["compression"]) == (
        "application/json",
        "application/x-gzip",
    )
    assert (three.content_type, three.headers) == ("application/json", {})
    # Other defaults, the same connections.
    assert pools.producers[settings].connections is pools.connections[settings]


# -- closed ----------------------------------------------------


def test_a_closed_producer_pool_leaves_its_connections_usable(
    pool: pools.ConnectionPool, queue: str
) -> None:
    producers, others = pools.ProducerPool(pool), pools.ProducerPool(pool)
    lent = producers.acquire(timeout=PATIENCE)
    others.acquire(timeout=PATIENCE).release()
    assert producers.force_close_all() == (1, 1)
    with pytest.raises(PoolClosed, match="closed pool") as caught:
        producers.acquire(timeout=1)
    assert isinstance(caught.value, RuntimeError)
    lent.publish("x", routing_key=queue)
    lent.release()
    assert pool.stats().closed == {"drained": 2}
    with others.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)


def test_a_drained_producer_pool_goes_on(pool: pools.ConnectionPool, queue: str) -> None:
    producers = pools.ProducerPool(pool)
    producers.acquire(timeout=PATIENCE).release()
    assert producers.force_close_all(close_pool=False) == (1, 0)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)


def test_a_producer_class_that_fails_costs_nothing(pool: pools.ConnectionPool, queue: str) -> None:
    class Picky(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("not today")

    producers = pools.ProducerPool(pool, Producer=Picky)
    for _ in range(4):
        with pytest.raises(ValueError, match="not today"):
            producers.acquire(timeout=PATIENCE)
    assert (pool.stats().idle, pool.stats().lent, pool.stats().opened) == (1, 0, 1)


def test_a_broker_that_is_down() -> None:
    producers = kombu_pools_ext.producers["amqp://127.0.0.1:1//"]
    with pytest.raises(BrokerUnreachable):
        producers.acquire()
    assert producers.stats().size == 0


class LooksLikeOne:
    """What kombu's pools need of a producer, and no subclass of kombu's."""

    def __init__(self, connection: Any) -> None:
        self.exchange = kombu.Exchange("")
        self.serializer = None
        self.revive(connection)

    def revive(self, connection: Any) -> None:
        self.__connection__, self._channel = connection, connection.default_channel

    def publish(self, body: Any, **properties: Any) -> str:
        return f"published {body}"


def test_a_producer_class_that_is_not_a_subclass_of_kombus(memory_url: str) -> None:
    producers = pools.ProducerPool(
        pools.ConnectionPool(kombu.Connection(memory_url)), Producer=LooksLikeOne
    )
    with producers.acquire() as producer:
        assert isinstance(producer, LooksLikeOne)
        assert isinstance(producer, kombu.Producer)
        assert producer.publish("x") == "published x"
    with pytest.raises(LeaseError):
        producer.publish("x")


def test_a_producer_class_with_slots(memory_url: str) -> None:
    class Slotted(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
        __slots__ = ("mine",)

    with pools.ProducerPool(
        pools.ConnectionPool(kombu.Connection(memory_url)), Producer=Slotted
    ).acquire() as producer:
        producer.mine = 1
        assert producer.mine == 1
