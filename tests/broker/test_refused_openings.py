"""Brokers that accept whoever comes, and then open nothing: they are asked by one, as those are that do not accept."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest

from kombu_pools_ext import PoolStats, pools
from kombu_pools_ext.errors import BrokerUnreachable, ConnectTimeout
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import Node, confirming
from tests.proxy import FakeBroker, Peer
from tests.proxy.broker import method

#: What RabbitMQ says to a user who has as many channels as there may be.
FULL = method(
    "connection.close",
    0,
    "BsBB",
    530,
    "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (2)",
    0,
    0,
)
#: A refusal that nobody's going away ends.
NEVER = method("connection.close", 0, "BsBB", 530, "NOT_ALLOWED - no channels for guests", 20, 10)
#: Callers of whom each would have made a connection.
CALLERS = 300

MakePool = Callable[..., Any]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes a pool of connections, or of producers on them."""
    made: list[pools.ConnectionPool] = []

    def make(url: str, *, producers: bool = False, limit: int = 10) -> Any:
        made.append(pools.ConnectionPool(confirming(url), limit=limit))
        return pools.ProducerPool(made[-1]) if producers else made[-1]

    yield make
    for one in made:
        one.force_close_all()


def storm(pool: Any) -> list[Exception]:
    """What those hear who come one after the other, and do not wait."""
    errors = []
    for _ in range(CALLERS):
        with pytest.raises(Exception) as caught:
            pool.acquire()
        errors.append(caught.value)
    return errors


@pytest.mark.parametrize("producers", [True, False], ids=["producers", "connections"])
@pytest.mark.parametrize("product", ["RabbitMQ", "SabbitMQ"])
@pytest.mark.parametrize(
    "answer, kind, said",
    [
        (None, BrokerUnreachable, "closed the connection when it was asked for a channel"),
        (FULL, amqp.NotAllowed, "maximum allowed user limit"),
        (NEVER, amqp.NotAllowed, "no channels for guests"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", BrokerUnreachable, "sends what is no AMQP"),
    ],
    ids=["hangs up", "is full", "refuses", "speaks something else"],
)
def test_a_broker_that_opens_no_channel_is_asked_by_one(
    make: MakePool,
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
    kind: type[Exception],
    said: str,
    product: str,
    producers: bool,
) -> None:
    with FakeBroker({"channel.open": answer}, product=product) as broker:
        pool = make(broker.url, producers=producers)
        for error in storm(pool):
            assert isinstance(error, kind)
            assert said in str(error)

        def settled() -> PoolStats | None:
            """The numbers at a moment when nobody is asking."""
            stats = pool.stats()
            return stats if (stats.opening, stats.open_failures) == (0, broker.accepted) else None

        stats = eventually(settled)
        assert (stats.opened, stats.size) == (0, 0)
        assert stats.open_failures < CALLERS / 10
        assert stats.outage is not None

    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]

    # The thread that opens logs after it has counted.
    eventually(warnings)
    [warning] = warnings()
    assert "cannot open a connection" in warning
    assert said in warning


@pytest.mark.parametrize("producers", [True, False], ids=["producers", "connections"])
def test_who_waits_has_one_when_the_broker_opens_channels_again(
    make: MakePool, producers: bool
) -> None:
    with FakeBroker({"channel.open": None}) as broker:
        pool = make(broker.url, producers=producers)

        def told() -> bool:
            with pytest.raises(ConnectTimeout) as caught:
                pool.acquire(timeout=0.1)
            return "when it was asked for a channel" in str(caught.value)

        # On a busy machine, the first opening may take longer.
        eventually(told)
        del broker.answers["channel.open"]
        pool.acquire(timeout=PATIENCE).release()
        assert pool.stats().outage is None


def test_a_broker_that_never_answers_for_its_channel_takes_no_longer_than_connecting_may() -> None:
    with FakeBroker({"channel.open": b"", "channel.close": b""}) as broker:
        origin = kombu.Connection(broker.url, connect_timeout=0.2)
        connections = pools.ConnectionPool(origin, limit=1)
        with pytest.raises(BrokerUnreachable, match=r"within 0\.2 s: it opened no channel"):
            connections.acquire()
        connections.force_close_all()


@pytest.mark.broker
def test_who_waits_has_the_channel_that_somebody_gives_back(make: MakePool, node: Node) -> None:
    """As with a limit of connections: what is told as a refusal is gone when one of them ends."""
    node.add_user("two-channels", "secret", configure=".*", write=".*", read=".*")
    node.ctl("set_user_limits", "two-channels", '{"max-channels": 2}')
    producers = make(node.url_of("two-channels", "secret"), producers=True)
    held = [producers.acquire(timeout=PATIENCE) for _ in range(2)]
    with pytest.raises(amqp.NotAllowed, match="maximum allowed user limit"):
        producers.acquire()
    giver = threading.Timer(0.2, held[0].release)
    giver.start()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key="nobody's")
    giver.join()
    held[1].release()
    # The connections that have a channel stay.
    assert (producers.stats().opened, producers.stats().closed) == (2, {})


def answering(answer: bytes) -> Callable[[Any], None]:
    """A server that answers each command so, or hangs up at the first."""

    def serve(sock: Any) -> None:
        while sock.recv(65536) and answer:
            sock.sendall(answer)

    return serve


@pytest.mark.redis
@pytest.mark.parametrize(
    "answer, said",
    [
        (b"", "closed"),
        (b"-NOAUTH Authentication required.\r\n", "Authentication required"),
        (b"-WRONGPASS invalid username-password pair\r\n", "WRONGPASS|username-password pair"),
        (b"-ERR DB index is out of range\r\n", "DB index is out of range"),
        (b"-ERR max number of clients reached\r\n", "max number of clients"),
        (b"-NOPERM this user has no permissions to run the 'ping' command\r\n", "no permissions"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "MISCONF"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading the dataset"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol Error|Protocol error|InvalidResponse"),
    ],
)
def test_a_redis_that_refuses_the_first_commands_is_asked_by_one(
    make: MakePool, answer: bytes, said: str
) -> None:
    pytest.importorskip("redis")
    with Peer(answering(answer)) as peer:
        for producers in (True, False):
            before = peer.accepted
            pool = make(f"redis://:secret@{peer.address}/1", producers=producers)
            errors = storm(pool)
            assert [one for one in errors if not re.search(said, str(one))] == []
            # The last opening may go on for a moment after everybody has given up.
            eventually(lambda: not pool.stats().opening)  # noqa: B023
            stats = pool.stats()
            assert (stats.opened, stats.size) == (0, 0)
            assert stats.open_failures < CALLERS / 10
            # redis-py asks a few times by itself.
            assert peer.accepted - before < CALLERS / 2
