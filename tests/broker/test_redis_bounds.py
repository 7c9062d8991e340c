"""Redis: nobody waits for a silent one without end, and a connection that died while idle is nobody's trouble."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.broker import redis_sockets
from kombu_pools_ext.broker.connection import OpenConnection
from kombu_pools_ext.broker.driver import ConnectionDriver
from kombu_pools_ext.broker.plain import PlainSession
from kombu_pools_ext.errors import BrokerUnreachable, PublishUnknown
from kombu_pools_ext.pools import connections
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import sockets_to, through
from tests.brokers import PrivateRedis
from tests.proxy import TO_CLIENT, Proxy

redis = pytest.importorskip("redis")

pytestmark = pytest.mark.redis

#: Seconds for an answer, in tests of what happens without one.
SOON = 0.2


def alias(url: Any, **settings: Any) -> Pools:
    return Pools({"default": {"URL": url, "CHECK_AFTER": 0, "RETRY": None, **settings}})


def client_of(connection: Any) -> Any:
    return connection.default_channel.client


def sockets_of(connection: Any) -> list[Any]:
    return list(redis_sockets.sockets_of(connection.transport))


# -- time-outs ---------------------------------------------------------------------------------------


def timeouts(connection: OpenConnection) -> tuple[Any, Any]:
    """What redis-py was told: for an answer, and for connecting."""
    options = connection.default_channel.async_pool.connection_kwargs
    return options["socket_timeout"], options["socket_connect_timeout"]


def test_the_time_for_an_answer_follows_from_the_settings(redis_url: str) -> None:
    with connections[redis_url].acquire(timeout=PATIENCE) as connection:
        assert timeouts(connection) == (10.0, 5)
        assert sockets_of(connection)[0].gettimeout() == 10.0
    settings = {"CONFIRM_TIMEOUT": 7, "CONNECT_TIMEOUT": 8}
    with alias(redis_url, **settings).connections["default"].acquire(timeout=PATIENCE) as one:
        assert timeouts(one) == (7.0, 8.0)
    # What the user says wins.
    options = {"socket_timeout": 3, "socket_connect_timeout": 4}
    pool = connections[kombu.Connection(redis_url, transport_options=options)]
    with pool.acquire(timeout=PATIENCE) as connection:
        assert timeouts(connection) == (3, 4)


def test_the_users_options_stay_the_users(redis_url: str) -> None:
    origin = kombu.Connection(redis_url)
    pool = connections[origin]
    with pool.acquire(timeout=PATIENCE) as connection:
        assert connection.transport_options == origin.transport_options == {}
        # A pool is looked up by its own connections too.
        assert connections[connection] is pool
        assert isinstance(connection.default_channel, type(origin.channel()))
    origin.close()


def test_a_unix_socket_has_a_time_out_too(tmp_path: Any) -> None:
    path = tmp_path / "redis.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        origin = kombu.Connection(f"redis+socket://{path}", connect_timeout=SOON)
        with pytest.raises(OperationalError, match="said nothing"):
            within(PATIENCE, ConnectionDriver(lambda: origin).open)


@pytest.mark.parametrize("retries", [False, True])
def test_a_silent_redis_ends_a_publish_and_its_connection(
    proxied: Callable[[str], Proxy], redis_url: str, queue: str, retries: bool
) -> None:
    proxy = proxied(redis_url)
    url = through(proxy, redis_url)
    # Even when redis-py tries again itself.
    options = {"retry_on_timeout": retries}
    # It is the time for what arrives as well.
    pools = alias(url, CONFIRM_TIMEOUT=1.0, CONNECT_TIMEOUT=1.0, TRANSPORT_OPTIONS=options)
    pool = pools.producers["default"]
    with pool.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue)
    proxy.silence()
    began = time.monotonic()
    with pytest.raises((OperationalError, redis.TimeoutError)):
        with pool.acquire(timeout=PATIENCE) as producer:
            within(PATIENCE, lambda: producer.publish("lost", routing_key=queue))
    assert time.monotonic() - began < PATIENCE
    assert pool.stats().closed["broken"] == 1
    eventually(lambda: not sockets_to(proxy.port))
    proxy.heal()
    proxy.cut()
    with pool.acquire(timeout=PATIENCE) as producer:
        producer.publish("again", routing_key=queue)
    Inbox(redis_url, queue).delete()


def test_a_deadline_bounds_all_answers_together(
    proxied: Callable[[str], Proxy], redis_url: str
) -> None:
    proxy = proxied(redis_url)
    with connections[through(proxy, redis_url)].acquire(timeout=PATIENCE) as connection:
        client, item = client_of(connection), connection.item
        with item.within(time.monotonic() + PATIENCE):
            assert client.ping()
            # Of nested ones the earlier holds.
            with item.within(time.monotonic() + 2 * PATIENCE), item.within(None):
                assert item.pooled_session.deadline < time.monotonic() + PATIENCE
        assert item.pooled_session.deadline is None
        assert sockets_of(connection)[0].gettimeout() == 10.0
        proxy.hold(TO_CLIENT)
        with item.within(time.monotonic() + SOON):
            with pytest.raises(redis.TimeoutError):
                within(PATIENCE, client.ping)
            # No time for another try, and none to connect in.
            with pytest.raises(redis.TimeoutError):
                within(PATIENCE, client.ping)
        proxy.heal()
        assert client.ping()


def test_a_publish_keeps_to_its_own_time_whatever_redis_py_does(
    proxied: Callable[[str], Proxy], redis_url: str, queue: str
) -> None:
    proxy = proxied(redis_url)
    # Without it, this test would hang.
    options = {"retry_on_timeout": True, "socket_timeout": 10 * PATIENCE}
    pool = alias(through(proxy, redis_url), TRANSPORT_OPTIONS=options).producers["default"]
    with pool.acquire(timeout=PATIENCE) as producer:
        proxy.silence()
        with pytest.raises((OperationalError, redis.TimeoutError)):
            within(PATIENCE, lambda: producer.publish("lost", routing_key=queue, timeout=SOON))


# -- what died while idle ------------------------------------------------------------------------------


@pytest.fixture
def server(private_redis: PrivateRedis) -> Iterator[redis.Redis]:
    with redis.Redis(port=private_redis.port, client_name="list_connections") as client:
        yield client


def test_the_check_knows_a_living_one(private_redis: PrivateRedis) -> None:
    pool = alias(private_redis.url).connections["default"]
    with pool.acquire(timeout=PATIENCE) as connection:
        item = connection.item
        assert client_of(connection).ping()
    assert redis_sockets.alive(item)
    with pool.acquire(timeout=PATIENCE) as connection:
        assert connection.item is item
        # What is in use is its user's.
        # redis-py wants an argument up to 5.2, and none from 5.3 on.
        arguments = () if redis.VERSION >= (5, 3) else ("PING",)
        item.default_channel.client.connection_pool.get_connection(*arguments)
        assert redis_sockets.alive(item)


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_who_was_hung_up_on_is_not_lent(
    private_redis: PrivateRedis, proxied: Callable[[str], Proxy], queue: str, rst: bool
) -> None:
    proxy = proxied(private_redis.url)
    pool = alias(through(proxy, private_redis.url)).producers["default"]
    with pool.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue)
        item = producer.connection.item
    proxy.cut(rst=rst)
    eventually(lambda: not redis_sockets.alive(item))
    with pool.acquire(timeout=PATIENCE) as producer:
        assert producer.connection.item is not item
        producer.publish("new", routing_key=queue)
    assert Inbox(private_redis.url, queue).bodies(2) == ["warm", "new"]


def test_client_kill_and_a_restart_are_not_the_borrowers_trouble(
    private_redis: PrivateRedis, server: redis.Redis, queue: str
) -> None:
    pool = alias(private_redis.url).producers["default"]
    items = []

    def publish(body: str) -> None:
        with pool.acquire(timeout=PATIENCE) as producer:
            producer.publish(body, routing_key=queue)
            items.append(producer.connection.item)

    publish("first")
    server.client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: not redis_sockets.alive(items[0]))
    publish("second")
    private_redis.restart()
    eventually(lambda: not redis_sockets.alive(items[1]))
    publish("third")
    assert len({*map(id, items)}) == 3
    assert Inbox(private_redis.url, queue).bodies(1) == ["third"]


def test_when_it_is_gone_for_good_the_acquire_says_so_and_no_publish(
    private_redis: PrivateRedis,
) -> None:
    pool = alias(private_redis.url, OUTAGE_PATIENCE=SOON).connections["default"]
    with pool.acquire(timeout=PATIENCE) as connection:
        item = connection.item
    private_redis.kill()
    eventually(lambda: not redis_sockets.alive(item))
    with pytest.raises(BrokerUnreachable):
        within(PATIENCE, lambda: pool.acquire())


def test_what_redis_py_reconnects_by_itself_is_bounded_as_well(
    private_redis: PrivateRedis, server: redis.Redis
) -> None:
    with connections[private_redis.url].acquire(timeout=PATIENCE) as connection:
        client = client_of(connection)
        assert client.ping()
        server.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: not redis_sockets.alive(connection.item))
        assert client.ping()
        (sock,) = sockets_of(connection)
        assert isinstance(sock, redis_sockets.BoundedSocket)


def test_a_repair_in_place_keeps_its_bounds(redis_url: str) -> None:
    with connections[redis_url].acquire(timeout=PATIENCE) as connection:
        connection.collect()
        connection.ensure_connection(max_retries=1)
        assert timeouts(connection) == (10.0, 5)


def test_other_transports_have_no_bounds(memory_url: str) -> None:
    connection = ConnectionDriver(lambda: kombu.Connection(memory_url)).open()
    assert type(connection.pooled_session) is PlainSession
    with connection.within(0):
        assert connection.default_channel
    assert urlsplit(memory_url).scheme == "memory"
    connection._close()


def test_without_time_for_a_byte_a_message_was_not_sent(redis_url: str, queue: str) -> None:
    pools = alias(redis_url, LIMIT=1)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue)
        with pytest.raises((OperationalError, redis.RedisError, TimeoutError)) as caught:
            producer.publish("late", routing_key=queue, message_id="late", timeout=0)
    assert not isinstance(caught.value, PublishUnknown)
    (note,) = caught.value.__notes__
    assert "message late was not sent; it is not in the broker" in note
