"""What a broker refuses, and what cannot be sent: the right class, the pool's name, no secret, no storm, no leak."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import traceback
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import amqp
import kombu
import pytest
from kombu.exceptions import EncodeError, OperationalError

from kombu_pools_ext import PoolSettings, pools
from kombu_pools_ext.errors import BrokerUnreachable, PoolError
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import confirming, sockets_to
from tests.brokers import PrivateRedis
from tests.proxy import Proxy

SECRET = f"secret-{uuid.uuid4().hex}"


def _unreachable(broker: Any) -> str:
    return f"amqp://guest:{SECRET}@127.0.0.1:{broker.free}//"


def _wrong_password(broker: Any) -> str:
    return f"amqp://guest:{SECRET}@{broker.proxy('amqp_url').address}//"


def _missing_vhost(broker: Any) -> str:
    user, password = broker.credentials
    return f"amqp://{user}:{password}@{broker.proxy('amqp_url').address}/missing-{SECRET[7:]}"


def _tls_to_a_plain_port(broker: Any) -> str:
    return f"amqps://guest:{SECRET}@{broker.proxy('amqp_url').address}//"


def _reset_by_peer(broker: Any) -> str:
    proxy = broker.proxy("amqp_url")
    proxy.refuse()
    return f"amqp://guest:{SECRET}@{proxy.address}//"


def _redis_wrong_db(broker: Any) -> str:
    return f"redis://{broker.proxy('redis_url').address}/4711"


def _redis_unreachable(broker: Any) -> str:
    return f"redis://:{SECRET}@127.0.0.1:{broker.free}/0"


class Brokers:
    """Proxies before brokers, made when asked for."""

    def __init__(
        self, request: pytest.FixtureRequest, proxied: Callable[[str], Proxy], nowhere: int
    ) -> None:
        self._request, self._proxied = request, proxied
        self.last: Proxy | None = None
        #: A port that nobody listens on.
        self.free = nowhere

    def proxy(self, fixture: str) -> Proxy:
        self.last = self._proxied(self._request.getfixturevalue(fixture))
        return self.last

    @property
    def credentials(self) -> tuple[str, str]:
        parts = urlsplit(self._request.getfixturevalue("amqp_url"))
        return parts.username or "guest", parts.password or "guest"


@pytest.fixture
def brokers(
    request: pytest.FixtureRequest, proxied: Callable[[str], Proxy], nowhere: int
) -> Brokers:
    return Brokers(request, proxied, nowhere)


#: What is wrong, and what the borrower gets: the error, and what stands in it.
REFUSALS = [
    pytest.param(_unreachable, BrokerUnreachable, "(?i)refused", id="unreachable"),
    pytest.param(
        _wrong_password, amqp.exceptions.AccessRefused, "ACCESS_REFUSED", id="wrong password"
    ),
    pytest.param(
        _missing_vhost, amqp.exceptions.NotAllowed, "not found", id="missing virtual host"
    ),
    pytest.param(_tls_to_a_plain_port, BrokerUnreachable, None, id="TLS to a plain port"),
    pytest.param(_reset_by_peer, BrokerUnreachable, None, id="reset by peer"),
    pytest.param(_redis_unreachable, OperationalError, "(?i)refused", id="redis unreachable"),
    pytest.param(_redis_wrong_db, Exception, "(?i)db index", id="redis wrong database"),
]


def everything_said(error: BaseException) -> str:
    """Whatever a log, a page or a debugger shows of an error, its causes and its notes."""
    said = ["".join(traceback.format_exception(error))]
    seen: BaseException | None = error
    while seen is not None:
        said += [str(seen), repr(seen), repr(seen.args), repr(getattr(seen, "__notes__", ()))]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


@pytest.fixture
def nothing_leaks() -> Callable[[], None]:
    """Says whether as many threads and descriptors are there as at the beginning."""
    threads = set(threading.enumerate())
    descriptors = len(os.listdir("/dev/fd"))

    def check() -> None:
        eventually(
            lambda: (
                not [
                    thread
                    for thread in set(threading.enumerate()) - threads
                    # The one of the process, and the proxy's.
                    if thread.name not in ("kombu-pools-maintenance", "proxy")
                ]
            )
        )
        assert len(os.listdir("/dev/fd")) <= descriptors + 20

    return check


@pytest.mark.parametrize("make_url, error_class, words", REFUSALS)
@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_broker_that_refuses(
    brokers: Brokers,
    make_url: Callable[[Brokers], str],
    error_class: type[Exception],
    words: str | None,
    group: str,
    caplog: pytest.LogCaptureFixture,
    nothing_leaks: Callable[[], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    url = make_url(brokers)
    pool = getattr(pools, group)[url]
    connects = brokers.last.accepted if brokers.last else 0
    port = brokers.last.port if brokers.last else brokers.free
    for attempt in range(1, 11):
        with pytest.raises(error_class, match=words) as caught:
            with pool.acquire() as lease:
                pytest.fail(f"lent {lease!r}")
        said = everything_said(caught.value)
        assert SECRET not in said
        assert pool.name in said
        if brokers.last:
            # One connect for one borrower: the proxy counts after the fact, so it may be one behind.
            assert brokers.last.accepted - connects <= attempt
        del caught
    if error_class is BrokerUnreachable:
        with pytest.raises(OperationalError) as caught:
            pool.acquire()
        assert isinstance(caught.value.__cause__, OSError)
        del caught
    assert (pool.stats().lent, pool.stats().waiting) == (0, 0)
    # Who does not wait is told what the one before was, and leaves a probe under way that takes its time.
    eventually(lambda: pool.stats().size == 0)
    # The broker is asked by one, and after a pause: the others hear what it was told.
    assert 1 <= pool.stats().open_failures <= 11
    assert pool.stats().outage is not None
    assert SECRET not in caplog.text
    assert SECRET not in repr(pool) + pool.name + repr(pools.connections) + repr(pools.producers)
    assert SECRET not in repr(list(pools.connections)) + str(pool.stats())
    eventually(lambda: not sockets_to(port))
    nothing_leaks()


def test_settings_with_a_secret_keep_it(brokers: Brokers) -> None:
    settings = PoolSettings(url=_wrong_password(brokers))
    pool = pools.producers[settings]
    with pytest.raises(amqp.exceptions.AccessRefused) as caught:
        pool.acquire(timeout=PATIENCE)
    assert SECRET not in everything_said(caught.value) + repr(settings) + repr(pool)
    assert pool.name in everything_said(caught.value)


def test_a_redis_that_asks_for_a_password(private_redis: PrivateRedis) -> None:
    import redis

    with redis.Redis(port=private_redis.port) as client:
        client.config_set("requirepass", SECRET)
    right = f"redis://:{SECRET}@127.0.0.1:{private_redis.port}/0"
    try:
        wrong = f"redis://:{SECRET[::-1]}@127.0.0.1:{private_redis.port}/0"
        for url in (wrong, f"redis://127.0.0.1:{private_redis.port}/0"):
            pool = pools.producers[url]
            with pytest.raises(Exception, match=r"(?i)auth|password") as caught:
                with pool.acquire(timeout=PATIENCE) as producer:
                    producer.publish("x", routing_key="nobody")
            said = everything_said(caught.value)
            assert SECRET not in said
            assert SECRET[::-1] not in said
            assert pool.stats().lent == 0
        with pools.producers[right].acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key="nobody")
        pools.reset()
    finally:
        with redis.Redis(port=private_redis.port, password=SECRET) as client:
            client.config_set("requirepass", "")


def test_many_borrowers_of_a_broker_that_refuses_start_no_storm(brokers: Brokers) -> None:
    pool = pools.ConnectionPool(kombu.Connection(_wrong_password(brokers)), limit=10)
    errors: list[BaseException] = []

    def borrow() -> None:
        try:
            pool.acquire(timeout=PATIENCE)
        except Exception as error:
            errors.append(error)

    borrowers = [threading.Thread(target=borrow) for _ in range(12)]
    for borrower in borrowers:
        borrower.start()
    for borrower in borrowers:
        borrower.join(PATIENCE)
    assert len(errors) == 12
    assert all(isinstance(error, amqp.exceptions.AccessRefused) for error in errors)
    assert brokers.last is not None
    # Each has a try of its own, and no more than that.
    assert brokers.last.accepted <= 12
    # A second opening may have been under way when the first one's end was told to all.
    eventually(lambda: pool.stats().size == 0)


# -- a body that cannot be serialised ----------------------------------------------------


@pytest.mark.parametrize("confirm", [False, True], ids=["plain", "confirmed"])
def test_a_body_that_cannot_be_serialised(amqp_url: str, queue: str, confirm: bool) -> None:
    origin = confirming(amqp_url) if confirm else kombu.Connection(amqp_url)
    pool = pools.ConnectionPool(origin, limit=1)
    producers = pools.ProducerPool(pool)
    with producers.acquire(timeout=PATIENCE) as producer:
        channel = producer.channel
        for _ in range(3):
            with pytest.raises(EncodeError):
                producer.publish({"thread": threading.current_thread()}, routing_key=queue)
            with pytest.raises((EncodeError, pickle.PicklingError, TypeError)):
                producer.publish((x for x in ()), routing_key=queue, serializer="pickle")
        # Still usable, in this lease and in the next.
        producer.publish("x", routing_key=queue)
    with pytest.raises(EncodeError), producers.acquire() as producer:
        producer.publish({1, 2, threading.current_thread()}, routing_key=queue)
    with producers.acquire() as producer:
        assert producer.channel is channel
        producer.publish("x", routing_key=queue)
    assert (pool.stats().opened, pool.stats().closed, pool.stats().idle) == (1, {}, 1)
    pool.force_close_all()


# -- arguments ----------------------------------------------------


@pytest.mark.parametrize(
    "timeout, error",
    [(-1, ValueError), (float("nan"), ValueError), ("5", TypeError), (True, TypeError)],
    ids=str,
)
def test_a_timeout_that_is_none(amqp_url: str, timeout: Any, error: type[Exception]) -> None:
    for group in (pools.connections, pools.producers):
        with pytest.raises(error, match="timeout must be"):
            group[amqp_url].acquire(timeout=timeout)
        assert group[amqp_url].stats().size == 0


@pytest.mark.parametrize(
    "limit, error", [(-1, ValueError), ("5", TypeError), (1.5, TypeError), (True, TypeError)]
)
def test_a_limit_that_is_none(amqp_url: str, limit: Any, error: type[Exception]) -> None:
    pool = pools.connections[amqp_url]
    for give in (
        lambda: pools.ConnectionPool(kombu.Connection(amqp_url), limit=limit),
        lambda: pools.ProducerPool(pool, limit=limit),
        lambda: pool.resize(limit),
        lambda: setattr(pool, "limit", limit),
        lambda: pools.set_limit(limit),
    ):
        with pytest.raises(error, match="limit must be"):
            give()
    assert pool.limit == 10


def test_every_refusal_is_one_of_kombus(amqp_url: str) -> None:
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    with pool.acquire(timeout=PATIENCE):
        with pytest.raises(kombu.exceptions.ConnectionLimitExceeded) as caught:
            pool.acquire()
        assert isinstance(caught.value, PoolError)
    pool.force_close_all()
