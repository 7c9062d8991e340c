"""A connection that its borrower connects anew: the care it goes on to have, and what becomes of it at the release."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from amqp import RecoverableConnectionError
from kombu import Connection, Exchange, Queue
from kombu.common import maybe_declare

from kombu_pools_ext import pools
from kombu_pools_ext.broker import tls
from kombu_pools_ext.broker.amqp.session import AmqpSession
from kombu_pools_ext.broker.credentials import Credentials
from kombu_pools_ext.broker.pool_key import key_of
from kombu_pools_ext.broker.redis import RedisSession
from kombu_pools_ext.errors import (
    BatchFailed,
    BrokerUnreachable,
    ConnectTimeout,
    LeaseError,
    PublishUnknown,
)
from tests.brokers import PrivateRabbitMQ, PrivateRedis
from tests.proxy import TO_CLIENT, Proxy

from .common import PATIENCE, eventually, within
from .conftest import Inbox
from .rig import Node, confirming, in_child, port_of, sockets_to, through

pytestmark = pytest.mark.threads

QUICK = {"max_retries": 3, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", port_of(amqp_url)) as made:
        yield made


@pytest.fixture
def second(amqp_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", port_of(amqp_url)) as made:
        yield made


@pytest.fixture
def make(amqp_url: str, proxy: Proxy) -> Iterator[Callable[..., pools.ConnectionPool]]:
    """Makes a pool for one connection, with confirms, on the broker behind the proxies given, or behind the first."""
    made: list[pools.ConnectionPool] = []

    def new(*proxies: Proxy, limit: int = 1, **options: Any) -> pools.ConnectionPool:
        urls = ";".join(through(one, amqp_url) for one in proxies or (proxy,))
        made.append(pools.ConnectionPool(confirming(urls, **options), limit=limit))
        return made[-1]

    yield new
    for pool in made:
        pool.force_close_all()


@pytest.fixture
def pool(make: Callable[..., pools.ConnectionPool]) -> pools.ConnectionPool:
    return make()


def broken(pool: pools.ConnectionPool, proxy: Proxy) -> Any:
    """A lease whose connection the broker has just hung up."""
    lease = pool.acquire(timeout=PATIENCE)
    assert lease.default_channel
    proxy.cut()
    eventually(lambda: not proxy.alive)
    return lease


def repaired(pool: pools.ConnectionPool, proxy: Proxy) -> Any:
    lease = broken(pool, proxy)
    lease.collect()
    lease.ensure_connection(**QUICK)
    return lease


def put(box: Inbox) -> None:
    """Put a message into it, from outside all pools."""
    with Connection(box.url) as connection:
        connection.Producer().publish("x", routing_key=box.name)


# -- what it goes on to have -------------------------------------------------------------------------------------------


def test_a_silent_peer_does_not_hang_a_repaired_connection(
    pool: pools.ConnectionPool, proxy: Proxy, queue: str
) -> None:
    pool.confirm_timeout = 0.5
    lease = repaired(pool, proxy)
    lease.item.confirm_timeout = 0.5
    lease.Producer().publish("x", routing_key=queue)
    proxy.silence()
    with pytest.raises(PublishUnknown):
        within(PATIENCE, lambda: lease.Producer().publish("x", routing_key=queue))
    within(PATIENCE, lease.release)
    assert pool.stats().closed == {"broken": 1}


def test_what_is_published_on_a_repaired_connection_is_counted(
    pool: pools.ConnectionPool, proxy: Proxy, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    with repaired(pool, proxy) as lease:
        lease.Producer().publish(1, routing_key=box.name)
        assert lease.item.pooled_session.confirms.sent == 1
        assert lease.item.pooled_session.confirms.channel is lease.default_channel
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        producer.publish(2, routing_key=box.name)
    assert box.bodies() == [1, 2]
    assert proxy.accepted == 2


def test_heartbeats_are_kept_up_on_a_repaired_connection(
    make: Callable[..., pools.ConnectionPool], proxy: Proxy
) -> None:
    pool = make(heartbeat=1)
    lease = repaired(pool, proxy)
    established, transport = lease.connection, lease.item.pooled_session.transport
    first = transport.beaten
    # Longer than the broker waits for a word of ours: three of its intervals.
    eventually(lambda: transport.beaten > first + 3.5)
    assert lease.connection is established
    lease.default_channel.basic_qos(0, 0, False)
    lease.release()


def test_another_heartbeat_after_a_repair_is_kept_up(pool: pools.ConnectionPool) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    assert lease.entry.keep_every is None
    lease.heartbeat = 6
    lease.collect()
    lease.ensure_connection(**QUICK)
    assert lease.entry.keep_every == 2.0
    lease.release()
    # The next borrower gets the pool's own.
    eventually(lambda: pool.stats().closed == {"switched": 1})
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.heartbeat == 0


def test_an_alarm_is_heard_on_a_repaired_connection(private_rabbitmq: PrivateRabbitMQ) -> None:
    pool = pools.ConnectionPool(Connection(private_rabbitmq.url), limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    lease.collect()
    lease.ensure_connection(**QUICK)
    channel = lease.default_channel
    with private_rabbitmq.memory_alarm():
        lease.Producer(channel).publish("x", routing_key="nobody")

        def heard() -> bool:
            try:
                lease.drain_events(timeout=0.1)
            except TimeoutError:
                pass
            return pool.publishing.reason is not None

        eventually(heard)
        # Nobody is left to hear of its end.
        lease.collect()
        lease.ensure_connection(**QUICK)
        assert pool.publishing.reason is None
    lease.release()
    pool.force_close_all()


def test_leftovers_of_a_repaired_connection_end_with_the_lease(
    pool: pools.ConnectionPool, proxy: Proxy, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    put(box)
    with repaired(pool, proxy) as lease:
        lease.channel()
        queue = Queue(box.name)(lease.default_channel)
        assert queue.get().payload == "x"
    assert box.bodies() == ["x"]
    with pool.acquire(timeout=PATIENCE) as lease:
        # Connection and default channel.
        assert len(lease.connection.channels) == 1
        assert lease.default_channel.connection is lease.connection


def test_no_descriptor_is_left(pool: pools.ConnectionPool, proxy: Proxy) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    for _ in range(5):
        proxy.cut()
        with pytest.raises((OSError, RecoverableConnectionError)):
            lease.default_channel.queue_declare("nobody", passive=True)
        lease.ensure_connection(**QUICK)
        # Without the garbage collector, and without a second connection at the broker.
        assert len(sockets_to(proxy.port)) == 1
        eventually(lambda: len(proxy.alive) == 1)
        assert (pool.stats().size, pool.stats().lent) == (1, 1)
    lease.release()
    assert (pool.stats().size, pool.stats().idle) == (1, 1)


def test_what_breaks_one_makes_the_others_suspect(
    make: Callable[..., pools.ConnectionPool], proxy: Proxy
) -> None:
    pool = make(limit=2)
    lease, other = pool.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE)
    other.release()
    proxy.cut()
    lease.collect()
    lease.ensure_connection(**QUICK)
    (idle,) = pool.engine.state.idle
    assert idle.needs_check
    with pool.acquire(timeout=PATIENCE) as another:
        another.default_channel.basic_qos(0, 0, False)
    lease.release()


def test_what_was_declared_on_the_old_connection_is_declared_again(
    pool: pools.ConnectionPool, proxy: Proxy, queue: str
) -> None:
    entity = Exchange(queue, durable=False)
    lease = pool.acquire(timeout=PATIENCE)
    assert maybe_declare(entity, lease.default_channel)
    assert not maybe_declare(entity, lease.default_channel)
    proxy.cut()
    lease.collect()
    lease.ensure_connection(**QUICK)
    assert maybe_declare(entity, lease.default_channel)
    entity(lease.default_channel).delete()
    lease.release()


def test_localhost_stays_the_name_that_a_certificate_must_have(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    asked: list[Any] = []
    named = tls.for_host
    monkeypatch.setattr(
        tls, "for_host", lambda given, host: (asked.append(host), named(given, host))[1]
    )
    url = node.tls_url.replace("127.0.0.1", "localhost")
    pool = pools.ConnectionPool(Connection(url), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        lease.collect()
        lease.ensure_connection(**QUICK)
    assert asked == ["localhost"] * 2
    assert pool.stats().closed == {}
    pool.force_close_all()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_repair_takes_no_longer_than_the_connect_timeout(
    make: Callable[..., pools.ConnectionPool], proxy: Proxy
) -> None:
    lease = broken(make(connect_timeout=0.3), proxy)
    lease.collect()
    proxy.silence()
    with pytest.raises(TimeoutError, match=r"within 0.3 s"):
        within(PATIENCE, lambda: lease.connection)
    proxy.heal()
    lease.ensure_connection(**QUICK)
    assert lease.connected
    lease.release()


def test_nothing_is_dialled_past_a_deadline(pool: pools.ConnectionPool, proxy: Proxy) -> None:
    lease = broken(pool, proxy)
    lease.collect()
    with lease.item.within(time.monotonic() - 1), pytest.raises(ConnectTimeout):
        within(PATIENCE, lambda: lease.ensure_connection(interval_start=0))
    assert proxy.accepted == 1
    lease.release()


def test_a_deadline_ends_the_tries(pool: pools.ConnectionPool, proxy: Proxy) -> None:
    lease = broken(pool, proxy)
    lease.collect()
    proxy.refuse()
    with (
        lease.item.within(time.monotonic() + 0.5),
        pytest.raises((ConnectTimeout, kombu.exceptions.OperationalError)),
    ):
        # kombu's would go on for ever, with two seconds and more between the tries.
        within(PATIENCE, lease.ensure_connection)
    lease.release()


def test_a_deadline_holds_on_the_new_connection_too(
    pool: pools.ConnectionPool, proxy: Proxy
) -> None:
    lease = broken(pool, proxy)
    lease.collect()
    deadline = time.monotonic() + 1.0
    with lease.item.within(deadline):
        lease.ensure_connection(**QUICK)
        assert lease.item.pooled_session.deadline == deadline
        channel = lease.default_channel
        proxy.silence()
        with pytest.raises(TimeoutError):
            within(PATIENCE, lambda: channel.queue_declare("nobody", passive=True))
    assert lease.item.pooled_session.deadline is None
    lease.release()


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_nothing_is_repaired_after_the_release(pool: pools.ConnectionPool, proxy: Proxy) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    client = lease.default_channel.connection.client
    lease.release()
    for use in (
        lease.ensure_connection,
        lease.collect,
        lease.maybe_switch_next,
        lambda: lease.default_channel,
        lambda: lease.switch("amqp://elsewhere"),
        lambda: lease.revive(None),
        lambda: client.switch("amqp://elsewhere"),
        lambda: client._connection_factory(),
    ):
        with pytest.raises(LeaseError):
            use()
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connected
    assert proxy.accepted == 1


@pytest.mark.forks
def test_a_child_repairs_nothing_of_its_parents(
    pool: pools.ConnectionPool, proxy: Proxy, queue: str
) -> None:
    lease = repaired(pool, proxy)
    client = lease.default_channel.connection.client

    def repair() -> list[str]:
        told = []
        for use in (
            lease.ensure_connection,
            lambda: lease.switch("amqp://elsewhere"),
            lambda: lease.default_channel,
            lambda: client.ensure_connection(),
        ):
            try:
                use()
            except LeaseError as error:
                told.append(type(error).__name__)
        return told

    assert in_child(repair) == ["LeaseError"] * 4
    lease.default_channel.queue_declare(queue, auto_delete=True)
    assert len(proxy.alive) == 1
    lease.release()


def test_a_release_in_the_middle_leaves_nothing_open(
    pool: pools.ConnectionPool, proxy: Proxy
) -> None:
    lease = broken(pool, proxy)
    lease.collect()
    proxy.hold(TO_CLIENT)
    ended: list[BaseException] = []

    def repair() -> None:
        try:
            lease.ensure_connection(**QUICK)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=repair)
    thread.start()
    eventually(lambda: proxy.alive)
    lease.release()
    proxy.heal()
    thread.join(PATIENCE)
    assert [type(error) for error in ended] == [LeaseError]
    eventually(lambda: not sockets_to(proxy.port))
    with pool.acquire(timeout=PATIENCE) as another:
        assert another.connected
    assert (pool.stats().size, pool.stats().idle) == (1, 1)


def test_a_repair_that_ends_after_the_release_leaves_the_next_borrower_alone(
    pool: pools.ConnectionPool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    lease = broken(pool, proxy)
    settle_in = pool._driver.settle_in
    taken: list[Any] = []

    def settle_and_lend_on(item: Any) -> None:
        settle_in(item)
        if not taken:
            lease.release()
            taken.append(pool.acquire(timeout=PATIENCE))

    monkeypatch.setattr(pool._driver, "settle_in", settle_and_lend_on)
    lease.collect()
    with pytest.raises(LeaseError):
        lease.ensure_connection(**QUICK)
    with taken[0] as another:
        another.default_channel.queue_declare(queue, auto_delete=True)
    assert (pool.stats().size, pool.stats().idle) == (1, 1)


# -- where it goes -----------------------------------------------------------------------------------------------------


def test_a_list_is_gone_through_and_the_next_borrower_gets_the_broker_that_answers(
    make: Callable[..., pools.ConnectionPool], proxy: Proxy, second: Proxy
) -> None:
    pool = make(proxy, second)
    lease = pool.acquire(timeout=PATIENCE)
    proxy.refuse()
    proxy.cut()
    lease.collect()
    lease.ensure_connection(**QUICK)
    assert lease.port == second.port
    lease.release()
    assert pool.stats().closed == {}
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.port == second.port
        assert f":{second.port}" in lease.as_uri()
        assert lease.connected
    assert second.accepted == 1


def test_the_list_goes_on_where_the_pool_has_come_to(
    make: Callable[..., pools.ConnectionPool], proxy: Proxy, second: Proxy, amqp_url: str
) -> None:
    with Proxy("127.0.0.1", port_of(amqp_url)) as third:
        pool = make(proxy, second, third)
        proxy.refuse()
        lease = pool.acquire(timeout=PATIENCE)
        assert lease.port == second.port
        seen = []
        for _ in range(3):
            lease.maybe_switch_next()
            seen.append(lease.port)
        assert seen == [third.port, proxy.port, second.port]
        lease.release()


@pytest.mark.broker
@pytest.mark.parametrize("asked_before", [True, False])
def test_all_of_a_list_is_tried_where_its_connection_was_switched_meanwhile(
    proxy: Proxy, second: Proxy, amqp_url: str, asked_before: bool
) -> None:
    origin = Connection(";".join(through(one, amqp_url) for one in (proxy, second)))
    if asked_before:
        with pools.connections[origin].acquire(timeout=PATIENCE) as lease:
            assert lease.port == proxy.port
    # As `origin.ensure` does when the first has hung up.
    origin.maybe_switch_next()
    with pools.connections[origin].acquire(timeout=PATIENCE) as lease:
        assert lease.port == second.port
    second.refuse()
    pools.connections[origin].force_close_all(close_pool=False)
    with pools.connections[origin].acquire(timeout=PATIENCE) as lease:
        assert lease.port == proxy.port
        lease.maybe_switch_next()
        assert lease.port == second.port


def test_another_broker_is_never_lent_to_the_next_borrower(
    pool: pools.ConnectionPool, proxy: Proxy, second: Proxy, amqp_url: str
) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    lease.switch(through(second, amqp_url))
    lease.connect()
    assert lease.port == second.port
    lease.release()
    eventually(lambda: pool.stats().closed == {"switched": 1})
    eventually(lambda: not second.alive)
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.port == proxy.port
        assert lease.connected
    assert not sockets_to(second.port)


def test_credentials_are_not_sent_to_a_broker_that_is_none_of_the_pools(
    amqp_url: str, proxied: Callable[[str], Proxy]
) -> None:
    asked: list[str] = []

    def ask() -> tuple[str, str]:
        asked.append("asked")
        return "guest", "guest"

    origin = kombu.Connection(through(proxied(amqp_url), amqp_url))
    pool = pools.ConnectionPool(origin, limit=1, credentials=Credentials(ask, names_user=True))
    with pool.acquire(timeout=PATIENCE) as lease:
        assert asked == ["asked"]
        elsewhere = through(proxied(amqp_url), amqp_url)
        lease.switch(elsewhere)
        assert lease.default_channel
        assert asked == ["asked"]
        assert lease.as_uri(include_password=True) == kombu.Connection(elsewhere).as_uri(True)
        lease.switch(origin.as_uri(include_password=True))
        assert lease.default_channel
        assert asked == ["asked"] * 2
    pool.force_close_all()


def test_there_and_back_is_the_pools_again(
    pool: pools.ConnectionPool, proxy: Proxy, second: Proxy, amqp_url: str
) -> None:
    key = key_of(pool.connection)
    with pool.acquire(timeout=PATIENCE) as lease:
        for one in (second, proxy):
            lease.switch(through(one, amqp_url))
            lease.connect()
        lease.connect_timeout = 77
    assert pool.stats().closed == {}
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connect_timeout == pool.connection.connect_timeout
        assert lease.port == proxy.port
        assert key_of(lease.clone(heartbeat=lease.heartbeat)) == key


def test_a_switch_that_was_not_followed_by_a_connect(
    pool: pools.ConnectionPool, second: Proxy, amqp_url: str, proxy: Proxy
) -> None:
    with pool.acquire(timeout=PATIENCE) as lease:
        lease.switch(through(second, amqp_url))
    assert pool.stats().closed == {"broken": 1}
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.port == proxy.port


def test_a_switch_to_a_silent_broker_and_from_one_does_not_hang(
    pool: pools.ConnectionPool, proxy: Proxy, second: Proxy, amqp_url: str
) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    assert lease.default_channel
    proxy.silence()
    within(PATIENCE, lambda: lease.switch(through(second, amqp_url)))
    lease.connect()
    lease.default_channel.basic_qos(0, 0, False)
    lease.release()


def test_another_kind_of_broker(
    pool: pools.ConnectionPool, redis_url: str, proxy: Proxy, queue: str
) -> None:
    with pool.acquire(timeout=PATIENCE) as lease:
        lease.switch(redis_url)
        lease.connect()
        assert isinstance(lease.item.pooled_session, RedisSession)
        entity = Queue(queue, routing_key=queue, durable=False)(lease.default_channel)
        lease.Producer().publish("x", routing_key=queue, declare=[entity])
        assert entity.get(no_ack=True).payload == "x"
        entity.delete()
        lease.maybe_switch_next()
    eventually(lambda: pool.stats().closed == {"switched": 1})
    with pool.acquire(timeout=PATIENCE) as lease:
        assert isinstance(lease.item.pooled_session, AmqpSession)
        assert lease.port == proxy.port


def test_a_second_failure_and_a_third_try(
    pool: pools.ConnectionPool, proxy: Proxy, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    lease = broken(pool, proxy)
    proxy.refuse()
    producer = lease.Producer()
    with pytest.raises(kombu.exceptions.OperationalError):
        producer.publish(0, routing_key=box.name, retry=True, retry_policy=QUICK)
    assert not sockets_to(proxy.port)
    proxy.heal()
    producer.publish(1, routing_key=box.name, retry=True, retry_policy=QUICK)
    proxy.cut()
    producer.publish(2, routing_key=box.name, retry=True, retry_policy=QUICK)
    lease.release()
    assert box.bodies() == [1, 2]
    assert pool.stats().closed == {}


def test_the_default_channel_that_a_borrower_has_put_away_is_no_producers(
    pool: pools.ConnectionPool, queue: str
) -> None:
    producers = pools.ProducerPool(pool)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
    with pool.acquire(timeout=PATIENCE) as lease:
        lease.revive(lease.channel())
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
    assert pool.stats().closed == {}


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_redis_is_lent_again_when_it_is_the_same(private_redis: PrivateRedis, queue: str) -> None:
    pool = pools.ConnectionPool(Connection(private_redis.url), limit=1)
    producers = pools.ProducerPool(pool)
    lease = pool.acquire(timeout=PATIENCE)
    bounds = lease.item.pooled_session.bounds
    private_redis.kill()
    private_redis.start()
    lease.Producer().publish("x", routing_key=queue, retry=True, retry_policy=QUICK)
    lease.collect()
    with lease.item.within(time.monotonic() - 1), pytest.raises(ConnectTimeout):
        lease.ensure_connection(**QUICK)
    lease.ensure_connection(**QUICK)
    assert lease.item.pooled_session.bounds is bounds
    lease.release()
    assert pool.stats().closed == {}
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
    assert len(sockets_to(private_redis.port)) == 1
    pool.force_close_all()


def test_a_message_that_was_taken_from_redis_goes_back_when_the_connection_is_repaired(
    redis_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(redis_url)
    put(box)
    pool = pools.ConnectionPool(Connection(redis_url), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        assert Queue(box.name)(lease.default_channel).get().payload == "x"
        lease.collect()
        lease.ensure_connection(**QUICK)
        assert Queue(box.name)(lease.default_channel).get(no_ack=True).payload == "x"
    assert pool.stats().closed == {}
    pool.force_close_all()


# -- producers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def producers(pool: pools.ConnectionPool) -> pools.ProducerPool:
    return pools.ProducerPool(pool)


def test_a_leased_producer_goes_on_on_its_own_repaired_connection(
    producers: pools.ProducerPool,
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
) -> None:
    box, pool = inbox(amqp_url), producers.connections
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(0, routing_key=box.name)
        proxy.cut()
        connection = producer.connection
        connection.ensure(producer, producer.publish, **QUICK)(1, routing_key=box.name)
        assert not producer.broken
        assert producer.channel is connection.default_channel
        assert connection.item.pooled_session.confirms.sent == 1
        producer.publish(2, routing_key=box.name)
        with producer.batch() as batch:
            producer.publish(3, routing_key=box.name)
        assert len(batch.results) == 1
    assert pool.stats().closed == {}
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(4, routing_key=box.name)
    assert box.bodies() == [0, 1, 2, 3, 4]
    assert proxy.accepted == 2


@pytest.mark.parametrize("confirm", [False, True])
def test_a_leased_producer_goes_on_on_the_channel_of_another_connection(
    producers: pools.ProducerPool,
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    confirm: bool,
) -> None:
    box, pool = inbox(amqp_url), producers.connections
    origin = confirming(amqp_url) if confirm else Connection(amqp_url)
    returned: list[Any] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.on_return = lambda *args: returned.append(args)
        proxy.cut()
        origin.ensure(producer, producer.publish, **QUICK)(1, routing_key=box.name)
        channel = origin.default_channel
        assert producer.channel is channel
        # The promise is the pool's: it returns when the broker has the message.
        assert channel._confirm_selected
        producer.publish(2, routing_key=box.name, timeout=PATIENCE)
        with producer.batch():
            producer.publish(3, routing_key=box.name)
        assert len(channel.events["basic_return"]) == 1
    assert box.bodies() == [1, 2, 3]
    assert not channel.events["basic_return"]
    assert "basic_publish" not in channel.__dict__ or confirm
    with pytest.raises(LeaseError):
        producer.publish(4, routing_key=box.name)
    assert pool.stats().closed == {"broken": 1}
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.channel is not channel
        assert producer.channel.connection is producer.connection.connection
    origin.release()


def test_a_leased_producer_may_be_revived_back_and_forth(
    producers: pools.ProducerPool, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box, pool = inbox(amqp_url), producers.connections
    other = Connection(amqp_url)
    with producers.acquire(timeout=PATIENCE) as producer:
        kind = type(producer)
        for number, where in enumerate(
            (other, producer.connection, other.channel(), producer.connection.default_channel)
        ):
            producer.revive(where)
            producer.publish(number, routing_key=box.name)
        assert type(producer) is kind
        assert not producer.broken
    assert box.bodies() == [0, 1, 2, 3]
    assert pool.stats().closed == {}
    other.release()


def test_a_producer_does_not_go_on_on_a_lease_that_has_ended(
    pool: pools.ConnectionPool, amqp_url: str, queue: str
) -> None:
    others = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        with others.acquire(timeout=PATIENCE) as lease:
            producer.revive(lease.default_channel)
            producer.publish("x", routing_key=queue)
        with others.acquire(timeout=PATIENCE), pytest.raises(LeaseError, match="which has ended"):
            producer.publish("y", routing_key=queue)
    others.force_close_all()
    pool.acquire(timeout=PATIENCE).release()


def test_a_silent_peer_does_not_hang_a_producer_on_another_connection(
    producers: pools.ProducerPool, second: Proxy, amqp_url: str, queue: str
) -> None:
    other = confirming(through(second, amqp_url))
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.revive(other)
        producer.publish("x", routing_key=queue)
        second.silence()
        with pytest.raises((OSError, kombu.exceptions.OperationalError)):
            within(PATIENCE, lambda: producer.publish("x", routing_key=queue, timeout=0.3))
    other.collect()
    assert producers.connections.stats().closed == {}


def test_a_retry_takes_a_producer_back_to_its_pool(
    producers: pools.ProducerPool, second: Proxy, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    other = confirming(through(second, amqp_url))
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.revive(other)
        producer.publish(1, routing_key=box.name)
        second.refuse()
        second.cut()
        producer.publish(2, routing_key=box.name, retry=True, retry_policy=QUICK)
        assert producer.publishes_on is producer.connection.item
    assert box.bodies() == [1, 2]
    other.collect()


@pytest.mark.parametrize("confirm", [False, True])
def test_a_batch_does_not_go_on_over_a_repair(
    make: Callable[..., pools.ConnectionPool],
    amqp_url: str,
    proxy: Proxy,
    queue: str,
    confirm: bool,
) -> None:
    options = {"confirm_publish": confirm}
    pool = pools.ConnectionPool(
        Connection(through(proxy, amqp_url), transport_options=options), limit=1
    )
    producers = pools.ProducerPool(pool)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(0, routing_key=queue)
        with pytest.raises((BatchFailed, RecoverableConnectionError)):
            with producer.batch():
                proxy.hold(TO_CLIENT)
                for number in range(50):
                    producer.publish(number, routing_key=queue)
                proxy.heal()
                connection = producer.connection
                connection.collect()
                connection.ensure_connection(**QUICK)
                producer.revive(connection.default_channel)
    pool.force_close_all()


def test_a_repair_of_a_broker_that_is_gone_is_no_pools_error(
    pool: pools.ConnectionPool, proxy: Proxy
) -> None:
    lease = broken(pool, proxy)
    proxy.refuse()
    lease.collect()
    with pytest.raises(kombu.exceptions.OperationalError) as caught:
        lease.ensure_connection(**QUICK)
    assert not isinstance(caught.value, BrokerUnreachable)
    lease.release()
    assert pool.stats().closed == {"broken": 1}
    assert not sockets_to(proxy.port)
