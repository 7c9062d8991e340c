"""A lease is the right to use a connection, once: what it is, how it ends, and what becomes of the connection."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import amqp
import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.errors import LeaseError
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy


class Interrupted(BaseException):
    """What gevent.Timeout is: no Exception."""


@pytest.fixture
def pool(amqp_url: str) -> Iterator[pools.ConnectionPool]:
    pool = pools.ConnectionPool(confirming(amqp_url), limit=4)
    yield pool
    pool.force_close_all()


@pytest.fixture
def producers(pool: pools.ConnectionPool) -> pools.ProducerPool:
    return pools.ProducerPool(pool)


@pytest.fixture
def cut(
    amqp_url: str, proxied: Callable[[str], Proxy]
) -> Iterator[tuple[pools.ConnectionPool, Proxy]]:
    """A pool behind a proxy that will cut it off."""
    proxy = proxied(amqp_url)
    pool = pools.ConnectionPool(confirming(through(proxy, amqp_url)), limit=4)
    yield pool, proxy
    pool.force_close_all()


def inner(lease: Any) -> Any:
    """What stays the same while the connection stays the same."""
    return lease.connection


@contextmanager
def raising(error: BaseException) -> Iterator[None]:
    with pytest.raises(type(error)):
        yield


# -- what it is ----------------------------------------------------


def test_each_lease_is_an_object_of_its_own(pool: pools.ConnectionPool) -> None:
    first = pool.acquire(timeout=PATIENCE)
    connection = inner(first)
    assert isinstance(first, kombu.Connection)
    assert first.connected
    first.release()
    second = pool.acquire()
    assert second is not first
    assert inner(second) is connection
    assert first != second
    # The first one's end is no end of the second's.
    for end in (
        first.release,
        first.close,
        lambda: pool.release(first),
        lambda: pool.replace(first),
    ):
        end()
        assert pool.stats().lent == 1
    assert second.connected
    second.release()
    assert (pool.stats().idle, pool.stats().lent) == (1, 0)


def test_a_leased_producer_is_one(producers: pools.ProducerPool) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        assert isinstance(producer, kombu.Producer)
        assert type(producer).__name__ == "Producer"
        assert isinstance(producer.connection, kombu.Connection)


def test_use_after_release(
    pool: pools.ConnectionPool, producers: pools.ProducerPool, queue: str
) -> None:
    connection = pool.acquire(timeout=PATIENCE)
    producer = producers.acquire(timeout=PATIENCE)
    connection.release()
    producer.release()
    opened = pool.stats().opened
    for use in (
        lambda: connection.channel(),
        lambda: connection.default_channel,
        lambda: connection.connection.channel(),
        lambda: connection.connect(),
        lambda: connection.ensure_connection(),
        lambda: connection.ensure(connection, connection.channel)(),
        lambda: connection.drain_events(timeout=0.1),
        lambda: connection.heartbeat_check(),
        lambda: connection.SimpleQueue(queue),
        lambda: connection.Producer().publish("x", routing_key=queue),
        lambda: connection.Consumer([]),
        lambda: producer.publish("x", routing_key=queue),
        lambda: producer.publish("x", routing_key=queue, retry=True),
        lambda: producer.channel.basic_publish,
        lambda: producer.connection.default_channel,
        lambda: producer.maybe_declare(kombu.Queue(queue)),
        lambda: producer.revive(producer.channel),
    ):
        with pytest.raises(LeaseError, match="was released"):
            use()
    assert (pool.stats().idle, pool.stats().size, pool.stats().opened) == (2, 2, opened)
    assert "released" in repr(connection)
    assert "released" in repr(producer)
    # Another borrower's use is not disturbed.
    with producers.acquire() as again:
        again.publish("x", routing_key=queue)


# -- how it ends ----------------------------------------------------


def test_only_its_own_pool_takes_it_back(amqp_url: str, pool: pools.ConnectionPool) -> None:
    producers, others = pools.ProducerPool(pool), pools.ProducerPool(pool)
    other_pool = pools.ConnectionPool(confirming(amqp_url), limit=1)
    connection, producer = pool.acquire(timeout=PATIENCE), producers.acquire(timeout=PATIENCE)
    for take in (
        lambda: other_pool.release(connection),
        lambda: other_pool.replace(connection),
        lambda: producers.release(connection),
        lambda: others.release(producer),
        lambda: others.replace(producer),
        lambda: pool.release(producer),
        lambda: pool.release(kombu.Connection(amqp_url)),
        lambda: pool.release(None),
        lambda: other_pool.engine.release(connection),
    ):
        with pytest.raises(LeaseError, match=r"pool '.*guest:\*\*@"):
            take()
    assert (pool.stats().lent, other_pool.stats().size) == (2, 0)
    connection.channel().close()
    producer.release()
    connection.release()
    assert pool.stats().idle == 2


@pytest.mark.parametrize("times", [1, 2])
def test_release_after_the_pool_was_closed(
    pool: pools.ConnectionPool, producers: pools.ProducerPool, times: int
) -> None:
    connection, producer = pool.acquire(timeout=PATIENCE), producers.acquire(timeout=PATIENCE)
    pool.force_close_all()
    # Still the borrower's until given back.
    connection.channel().close()
    for _ in range(times):
        connection.release()
        producer.release()
    assert pool.stats().size == 0
    assert pool.stats().closed == {"closed": 2}


def test_a_producers_connection_ends_its_lease(producers: pools.ProducerPool) -> None:
    producer = producers.acquire(timeout=PATIENCE)
    producer.connection.release()
    assert producers.lent == 0
    with pytest.raises(LeaseError):
        producer.publish("x", routing_key="nobody-is-there")
    producer.release()
    assert producers.connections.stats().idle == 1


def test_replace_closes_it(pool: pools.ConnectionPool, producers: pools.ProducerPool) -> None:
    connection, producer = pool.acquire(timeout=PATIENCE), producers.acquire(timeout=PATIENCE)
    pool.replace(connection)
    producers.replace(producer)
    assert pool.stats().closed == {"replaced": 2}
    with pytest.raises(LeaseError):
        connection.channel()
    with pytest.raises(LeaseError):
        producer.publish("x", routing_key="nobody-is-there")


def test_a_dropped_lease_comes_back_as_capacity(
    pool: pools.ConnectionPool, producers: pools.ProducerPool, caplog: pytest.LogCaptureFixture
) -> None:
    pool.resize(1)
    for borrow in (pool.acquire, producers.acquire):
        caplog.clear()
        line = sys._getframe().f_lineno + 1
        lease = borrow(timeout=PATIENCE)
        # In a cycle, so that the collector finds it, and not its last reference.
        lease.__dict__["itself"] = None
        cycle: list[Any] = [lease]
        cycle.append(cycle)
        del lease, cycle
        gc.collect()
        eventually(lambda: pool.stats().size == 0)
        pool.acquire(timeout=PATIENCE).release()
        (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert f"{__file__}:{line}" in record.getMessage()
        assert "dropped without a release" in record.getMessage()
        pool.force_close_all(close_pool=False)
    assert pool.stats().closed["dropped"] == 2


# -- what becomes of the connection ----------------------------------------------------


@pytest.mark.parametrize(
    "error, kept",
    [
        (ValueError("an application's"), True),
        (KeyError("an application's"), True),
        (GeneratorExit(), True),
        (OSError("the disk is full"), True),
        (TimeoutError("the application's own"), True),
        (ConnectionResetError("by the peer of another connection"), True),
        (ssl.SSLError("of another connection"), True),
        (OperationalError("of another pool"), True),
        (amqp.exceptions.NotFound("404"), False),
        (amqp.exceptions.ConnectionForced("320"), False),
        (KeyboardInterrupt(), False),
        (SystemExit(), False),
        (Interrupted(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_in_a_with_block(
    pool: pools.ConnectionPool, producers: pools.ProducerPool, error: BaseException, kept: bool
) -> None:
    for lender in (pool, producers):
        lease = lender.acquire(timeout=PATIENCE)
        connection = lease.connection if lender is pool else lease.connection.connection
        with raising(error), lease:
            raise error
        with pool.acquire(timeout=PATIENCE) as after:
            assert (after.connection is connection) is kept
    assert pool.stats().closed == ({} if kept else {"broken": 2})


def test_a_generator_that_is_closed_keeps_the_connection(pool: pools.ConnectionPool) -> None:
    def stream() -> Iterator[Any]:
        with pool.acquire(timeout=PATIENCE) as lease:
            yield inner(lease)

    going = stream()
    connection = next(going)
    going.close()
    with pool.acquire() as lease:
        assert inner(lease) is connection


def test_a_channel_error_discards_even_if_swallowed(
    pool: pools.ConnectionPool, producers: pools.ProducerPool, queue: str
) -> None:
    producer = producers.acquire(timeout=PATIENCE)
    with pytest.raises(amqp.exceptions.NotFound):
        producer.publish("x", exchange=f"missing-{queue}", routing_key=queue)
    producer.release()
    assert pool.stats().closed == {"broken": 1}
    with producers.acquire(timeout=PATIENCE) as again:
        again.publish("x", routing_key=queue)


def test_a_failed_passive_declare_discards(pool: pools.ConnectionPool, queue: str) -> None:
    with pytest.raises(amqp.exceptions.NotFound):
        with pool.acquire(timeout=PATIENCE) as connection:
            kombu.Queue(f"missing-{queue}", channel=connection.default_channel).queue_declare(
                passive=True
            )
    assert pool.stats().closed == {"broken": 1}


@pytest.mark.parametrize("confirms", [False, True])
def test_whose_default_channel_was_closed_is_not_lent_again(
    amqp_url: str, queue: str, confirms: bool
) -> None:
    options = {"confirm_publish": confirms}
    pool = pools.ConnectionPool(kombu.Connection(amqp_url, transport_options=options), limit=1)
    producers = pools.ProducerPool(pool)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
    with pool.acquire(timeout=PATIENCE) as connection:
        connection.default_channel.close()
    # It would be the next one's, who could do nothing with it.
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
        producer.channel.close()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
    assert pool.stats().closed == {"broken": 2}
    pool.force_close_all()


def test_a_connection_that_was_cut_in_use_discards_even_if_swallowed(
    cut: tuple[pools.ConnectionPool, Proxy], queue: str
) -> None:
    pool, proxy = cut
    producers = pools.ProducerPool(pool)
    producer = producers.acquire(timeout=PATIENCE)
    proxy.cut(rst=True)
    with pytest.raises((OSError, *producer.connection.connection_errors)):
        producer.publish("x", routing_key=queue)
    producer.release()
    assert pool.stats().closed == {"broken": 1}
    with producers.acquire(timeout=PATIENCE) as again:
        again.publish("x", routing_key=queue)


def test_what_was_repaired_in_place_is_lent_again(
    cut: tuple[pools.ConnectionPool, Proxy], amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    pool, proxy = cut
    box = inbox(amqp_url)
    with pool.acquire(timeout=PATIENCE) as connection:
        producer = connection.Producer()
        proxy.cut(rst=True)
        # Not a pooled producer, which would be given another connection.
        producer.publish("again", routing_key=box.name, retry=True, retry_policy={"max_retries": 3})
    assert box.bodies() == ["again"]
    assert proxy.accepted == 2
    # It is the same broker, with the pool's own settings.
    assert pool.stats().closed == {}
    with pool.acquire(timeout=PATIENCE) as connection:
        assert connection.default_channel
    assert proxy.accepted == 2
    assert len(proxy.alive) == 1


def test_an_interrupted_publish_discards(
    cut: tuple[pools.ConnectionPool, Proxy], queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = cut
    producers = pools.ProducerPool(pool)
    producer = producers.acquire(timeout=PATIENCE)
    # In the middle of the wait for the confirm.
    monkeypatch.setattr(
        producer.channel.connection, "drain_events", lambda timeout=None: interrupt()
    )

    def interrupt() -> None:
        raise Interrupted

    try:
        producer.publish("x", routing_key=queue)
    except Interrupted:
        pass
    producer.release()
    assert pool.stats().closed == {"broken": 1}


class SoftTimeLimit(Exception):
    """Like Celery's, which is an ordinary exception that a signal handler raises."""


@pytest.mark.threads
@pytest.mark.broker
@pytest.mark.parametrize("broker_url", ["amqp", "amqps"], indirect=True)
def test_an_answer_that_was_not_waited_for_is_nobodys(
    broker_url: str, proxied: Callable[[str], Proxy]
) -> None:
    proxy = proxied(broker_url)
    pool = pools.ConnectionPool(kombu.Connection(through(proxy, broker_url)), limit=1)
    pool.acquire(timeout=PATIENCE).release()

    def interrupt(*_: Any) -> None:
        raise SoftTimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    proxy.hold(TO_CLIENT)
    (link,) = proxy.alive
    said = link.sent(TO_SERVER)

    def alarm() -> None:
        # Once the request is out, which is then not answered.
        eventually(lambda: link.sent(TO_SERVER) != said)
        os.kill(os.getpid(), signal.SIGALRM)

    clock = threading.Thread(target=alarm)
    try:
        with pytest.raises(SoftTimeLimit), pool.acquire(timeout=PATIENCE) as connection:
            clock.start()
            connection.channel()
    finally:
        clock.join(PATIENCE)
        signal.signal(signal.SIGALRM, before)
    proxy.heal()
    assert pool.stats().closed == {"broken": 1}
    pool.force_close_all()


def test_a_producers_channel_stays_open_between_leases(
    producers: pools.ProducerPool, queue: str
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        channel = producer.channel
        producer.publish("x", routing_key=queue)
    with producers.acquire() as producer:
        assert producer.channel is channel
        assert channel.is_open
        producer.publish("x", routing_key=queue)
    # An application's own exception does not cost it either.
    with pytest.raises(ValueError), producers.acquire() as producer:
        raise ValueError
    with producers.acquire() as producer:
        assert producer.channel is channel


# -- copies ----------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [
        lambda lease: pickle.loads(pickle.dumps(lease)),
        copy.copy,
        lambda lease: lease.clone(),
        lambda lease: lease.item.clone(),
        lambda lease: pickle.loads(pickle.dumps(lease.item)),
    ],
    ids=["pickle", "copy", "clone", "clone of the pooled", "pickle of the pooled"],
)
def test_a_copy_is_a_plain_connection(
    pool: pools.ConnectionPool, copied: Callable[[Any], kombu.Connection]
) -> None:
    with pool.acquire(timeout=PATIENCE) as lease:
        plain = copied(lease)
        assert type(plain) is kombu.Connection
        assert not plain.connected
        assert plain.as_uri(include_password=True) == lease.as_uri(include_password=True)
        assert plain.transport_options == lease.transport_options
        with plain:
            plain.connect()
            plain.channel().close()
        assert not plain.connected
        assert lease.connected
    assert (pool.stats().idle, pool.stats().opened) == (1, 1)


def test_a_clone_takes_other_settings(pool: pools.ConnectionPool) -> None:
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.clone(heartbeat=7).heartbeat == 7


# -- never two at once ----------------------------------------------------


@pytest.mark.threads
def test_threads_never_share_a_connection(
    pool: pools.ConnectionPool, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    producers = pools.ProducerPool(pool)
    users: dict[int, int] = {}
    crowded: list[int] = []
    failed: list[BaseException] = []
    start = threading.Barrier(16)

    def work(number: int) -> None:
        try:
            start.wait(PATIENCE)
            for turn in range(25):
                with producers.acquire(timeout=PATIENCE) as producer:
                    me = threading.get_ident()
                    one = id(producer.connection.connection)
                    if users.setdefault(one, me) != me:
                        crowded.append(one)
                    producer.publish([number, turn], routing_key=box.name)
                    if users.pop(one, None) != me:
                        crowded.append(one)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert (failed, crowded) == ([], [])
    assert pool.stats().opened <= 4
    assert sorted(box.bodies()) == [[n, turn] for n in range(16) for turn in range(25)]
