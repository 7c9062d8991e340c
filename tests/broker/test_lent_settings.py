"""What a borrower sets on a producer or connection is forgotten when the lease ends."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import kombu
import pytest

from kombu_pools_ext import configure, pools
from kombu_pools_ext.errors import LeaseError
from kombu_pools_ext.settings import PoolSettings
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import Proxy


def heard(*args: Any) -> None:
    raise AssertionError("called for somebody else's message")


#: What a borrower sets, each with what the pool's settings say of it.
SET = {
    "serializer": ("pickle", "json"),
    "compression": ("gzip", "zlib"),
    "exchange": (kombu.Exchange("amq.fanout"), None),
    "routing_key": ("mine", ""),
    "auto_declare": (False, True),
    "on_return": (heard, None),
    "tenant": ("of a request", None),
}


@pytest.fixture
def settings(url: str) -> PoolSettings:
    return PoolSettings(url=url, limit=1, serializer="json", compression="zlib")


@pytest.fixture
def producers(settings: PoolSettings) -> Any:
    pool = pools.producers[settings]
    yield pool
    pool.connections.force_close_all()


def look(producer: Any) -> dict[str, Any]:
    found = {name: getattr(producer, name, None) for name in SET}
    found["exchange"] = producer.exchange.name or None
    return found


@pytest.mark.parametrize("published", [True, False], ids=["published", "not published"])
def test_what_is_set_on_a_producer_is_for_one_lease(
    producers: Any, queue: str, published: bool
) -> None:
    expected = {name: pools for name, (_, pools) in SET.items()}
    channels = set()
    for number in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            assert look(producer) == expected
            used = published or number
            if used:
                channels.add(producer.channel)
            for name, (mine, _) in SET.items():
                setattr(producer, name, mine)
            if used:
                producer.publish("x", routing_key=queue)
            assert producer.serializer == "pickle"
    # And the channel stays the same.
    assert len(channels) == 1
    assert producers.stats().opened == 1


def test_the_next_message_is_as_the_alias_says(url: str, inbox: Callable[[str], Inbox]) -> None:
    box = inbox(url)
    configure(default={"url": url, "limit": 1, "serializer": "json"})
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.serializer, producer.routing_key = "pickle", box.name
        producer.publish("mine")
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish(["next"], routing_key=box.name)
    first, second = box.messages(2)
    assert first.content_type == "application/x-python-serialize"
    assert (second.content_type, second.payload) == ("application/json", ["next"])
    pools.connections["default"].force_close_all()


def test_what_a_producer_class_sets_itself_stays(url: str) -> None:
    class Named(kombu.Producer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.name = "in the beginning"
            self.loans = 0
            super().__init__(*args, serializer="pickle", **kwargs)

    class NamedProducers(pools.ProducerPool):
        def prepare(self, p: Any) -> Any:
            p = super().prepare(p)
            p.loans += 1
            return p

    connections = pools.ConnectionPool(kombu.Connection(url), limit=1)
    producers = NamedProducers(connections, Producer=Named)
    for number in range(1, 4):
        with producers.acquire(timeout=PATIENCE) as producer:
            assert isinstance(producer, Named)
            assert (producer.name, producer.loans) == ("in the beginning", number)
            assert producer.serializer == "pickle"
            producer.name, producer.serializer, producer.loans = "mine", "json", 100
    connections.force_close_all()


def test_what_was_set_is_kept_through_a_retry_and_forgotten_after_it(
    amqp_url: str, inbox: Callable[[str], Inbox], proxied: Callable[[str], Proxy]
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    settings = PoolSettings(url=through(proxy, amqp_url), limit=2)
    producers = pools.producers[settings]
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(["before"], routing_key=box.name)
        producer.routing_key, producer.serializer = box.name, "pickle"
        proxy.cut()
        producer.publish(["on another connection"])
        producer.publish(["the same one"])
    with producers.acquire(timeout=PATIENCE) as producer:
        assert (producer.routing_key, producer.serializer) == ("", None)
        producer.publish(["after"], routing_key=box.name)
    kinds = [message.content_type for message in box.messages(4)]
    assert kinds == [
        "application/json",
        *["application/x-python-serialize"] * 2,
        "application/json",
    ]
    producers.connections.force_close_all()


def test_nothing_keeps_alive_what_was_set(producers: Any) -> None:
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.tenant = big
    del big
    assert gone() is None


# -- connections ------------------------------------------------------------------------------------


def test_what_is_set_on_a_connection_is_for_one_lease(url: str) -> None:
    pool = pools.ConnectionPool(
        kombu.Connection(url, connect_timeout=4, transport_options={"max_retries": 7}), limit=1
    )
    for _ in range(3):
        with pool.acquire(timeout=PATIENCE) as connection:
            assert (connection.connect_timeout, connection.heartbeat) == (4, 0)
            assert connection.transport_options == {"max_retries": 7}
            assert not hasattr(connection, "tenant")
            assert connection.failover_strategy is kombu.Connection("memory://").failover_strategy
            connection.connect_timeout = 77
            connection.heartbeat = 5
            connection.failover_strategy = None
            connection.transport_options["max_retries"] = 1
            connection.transport_options.update(interval_start=1)
            connection.tenant = "of a request"
            assert (connection.connect_timeout, connection.tenant) == (77, "of a request")
    with pool.acquire(timeout=PATIENCE) as connection:
        connection.transport_options = {}
    with pool.acquire(timeout=PATIENCE) as connection:
        assert connection.transport_options == {"max_retries": 7}
    assert pool.stats().opened == 1
    with pytest.raises(LeaseError):
        connection.connect_timeout = 3
    pool.force_close_all()


def test_a_retry_policy_of_one_lease_is_not_the_next_ones(amqp_url: str, queue: str) -> None:
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    with pool.acquire(timeout=PATIENCE) as connection:
        producer = kombu.Producer(connection)
        producer.publish("x", routing_key=queue, retry=True, retry_policy={"max_retries": 3})
    with pool.acquire(timeout=PATIENCE) as connection:
        assert connection.transport_options == {}
    pool.force_close_all()


# -- copies, which nobody says heartbeats for ------------------------------------------------------------


COPIES = {
    "clone": lambda lease: lease.clone(),
    "copy": copy.copy,
    "pickle": lambda lease: pickle.loads(pickle.dumps(lease)),
    "clone of the pooled": lambda lease: lease.item.clone(),
    "copy of the pooled": lambda lease: copy.copy(lease.item),
    "pickle of the pooled": lambda lease: pickle.loads(pickle.dumps(lease.item)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_no_heartbeat_and_all_else(amqp_url: str, how: str) -> None:
    settings = PoolSettings(
        url=amqp_url, heartbeat=17, connect_timeout=3, transport_options={"client_properties": {}}
    )
    pool = pools.connections[settings]
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.heartbeat == 17
        plain = COPIES[how](lease)
        assert type(plain) is kombu.Connection
        assert plain.heartbeat == 0
        mine, its = dict(lease.info()), dict(plain.info())
        assert mine.pop("heartbeat") == 17
        assert its.pop("heartbeat") == 0
        assert its == mine
        assert lease.clone(heartbeat=9).heartbeat == 9
        # What is done to the one is nothing to the other.
        plain.transport_options["x"] = 1
        assert "x" not in lease.transport_options
        with plain:
            plain.connect()
            assert plain.get_heartbeat_interval() == 0
    pool.force_close_all()


def test_a_pool_for_a_leased_connection_keeps_its_heartbeat(amqp_url: str) -> None:
    pool = pools.ConnectionPool(confirming(amqp_url, heartbeat=17), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        another = pools.ConnectionPool(lease, limit=1)
    with another.acquire(timeout=PATIENCE) as lease:
        assert lease.get_heartbeat_interval() == 17
    pool.force_close_all()
    another.force_close_all()
