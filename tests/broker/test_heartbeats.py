"""A connection with a heartbeat stays alive, idle and lent; one whose peer fell silent is found out."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
from amqp import exceptions as amqp_errors
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import session as amqp_session
from kombu_pools_ext.broker.amqp.transport import HEARTBEAT
from kombu_pools_ext.broker.connection import OpenConnection
from kombu_pools_ext.broker.driver import ConnectionDriver
from kombu_pools_ext.broker.failed_openings import may_pass
from kombu_pools_ext.engine import PoolOptions
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.rig import Node, confirming, port_of, through
from tests.engine.fakes import min_of
from tests.proxy import TO_SERVER, Proxy


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def url(amqp_url: str, proxy: Proxy) -> str:
    return through(proxy, amqp_url)


def driver_of(url: str, **settings: Any) -> ConnectionDriver:
    return ConnectionDriver(lambda: kombu.Connection(url, **settings), lambda: "shop")


@pytest.fixture
def opened() -> Any:
    """Opens a connection of no pool, which nobody looks after."""
    made: list[tuple[ConnectionDriver, OpenConnection]] = []

    def open_one(url: str, **settings: Any) -> tuple[ConnectionDriver, OpenConnection]:
        driver = driver_of(url, **settings)
        made.append((driver, driver.open()))
        return made[-1]

    yield open_one
    for driver, item in made:
        driver.close(item, broken=True)


def beats(proxy: Proxy, link: int = 0) -> int:
    """Heartbeats that the client has sent."""
    return proxy.links[link].sent(TO_SERVER).count(HEARTBEAT)


def test_looks_are_as_frequent_as_the_heartbeat_asks_for(
    amqp_url: str, memory_url: str, opened: Any
) -> None:
    for heartbeat, every in [(3, 1.0), (0, None)]:
        driver, item = opened(amqp_url, heartbeat=heartbeat)
        assert driver.keep_alive_every(item) == every
        assert driver.keep_alive(item, lent=False)
    driver, item = opened(memory_url, heartbeat=3)
    assert driver.keep_alive_every(item) is None
    assert driver.keep_alive(item, lent=False)
    assert driver.keep_alive(item, lent=True)


def test_an_idle_connection_says_a_heartbeat_when_it_is_time_to(
    url: str, proxy: Proxy, opened: Any
) -> None:
    # A quarter of it must have passed, which a busy machine could do in a few seconds.
    driver, item = opened(url, heartbeat=60)
    assert driver.keep_alive(item, lent=False)
    assert driver.keep_alive(item, lent=False)
    item.pooled_session.transport.beaten -= 20.0
    assert driver.keep_alive(item, lent=False)
    assert driver.keep_alive(item, lent=False)
    eventually(lambda: beats(proxy))
    assert beats(proxy) == 1


def test_a_lent_connection_says_a_heartbeat_and_reads_nothing(
    url: str, proxy: Proxy, opened: Any
) -> None:
    driver, item = opened(url, heartbeat=4)
    found: list[Any] = []
    # The borrower is waiting for something, in a thread of its own.
    borrower = threading.Thread(
        target=lambda: found.append(item.established.blocking_read(timeout=PATIENCE)), daemon=True
    )
    borrower.start()
    for count in (1, 2):
        assert within(PATIENCE, lambda: driver.keep_alive(item, lent=True))
        eventually(lambda count=count: beats(proxy) == count)
    assert borrower.is_alive()
    proxy.alive[0].say(HEARTBEAT)
    borrower.join(PATIENCE)
    assert found == [False]


def test_a_dead_connection_is_told(url: str, proxy: Proxy, opened: Any) -> None:
    driver, item = opened(url, heartbeat=4)
    proxy.cut()
    eventually(lambda: item.pooled_session.transport.look() is not None)
    # Whoever holds it will notice himself.
    assert driver.keep_alive(item, lent=True)
    assert not driver.keep_alive(item, lent=False)


def test_silence_is_told_and_logged(
    url: str,
    proxy: Proxy,
    opened: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, item = opened(url, heartbeat=60)
    now = time.monotonic()
    # A machine that stands still meanwhile must not have the broker look silent.
    monkeypatch.setattr(amqp_session, "time", SimpleNamespace(monotonic=lambda: now))
    since, known = item.pooled_session.transport.heard
    # Something has come meanwhile: whatever was before, it lives.
    item.pooled_session.transport.heard = since - 3600, known
    proxy.alive[0].say(HEARTBEAT)
    eventually(lambda: item.pooled_session.transport.look() is not None)
    assert driver.keep_alive(item, lent=False)
    assert item.pooled_session.transport.heard[0] == now
    known = item.pooled_session.transport.heard[1]
    item.pooled_session.transport.heard = now - 79, known
    assert driver.keep_alive(item, lent=False)
    assert "pool 'shop'" not in caplog.text
    item.pooled_session.transport.heard = now - 81, known
    assert not driver.keep_alive(item, lent=False)
    assert "pool 'shop': nothing was heard from the broker for 81" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["plain", "tls"])
def test_idle_and_lent_connections_live_for_many_heartbeats(
    transport: str,
    node: Node,
    proxied: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    url = node.url if transport == "plain" else node.tls_url
    proxy = proxied(url)
    heartbeat = 2
    pool = pools.ConnectionPool(confirming(through(proxy, url), heartbeat=heartbeat), limit=2)
    lent, idle = pool.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE)
    both = [lent.connection, idle.connection]
    idle.release()
    # Without heartbeats, the broker closes a connection after two of them.
    until = time.monotonic() + 5 * heartbeat
    eventually(lambda: time.monotonic() > until)
    assert pool.stats().closed == {}
    for lease in (lent, pool.acquire(timeout=PATIENCE)):
        assert lease.connection in both
        lease.channel().close()
        lease.release()
    assert pool.stats().closed == {}
    assert pool.stats().opened == 2
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    pool.force_close_all()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["plain", "tls"])
def test_a_peer_that_fell_silent_is_replaced_within_two_heartbeats(
    transport: str,
    node: Node,
    proxied: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    heartbeat = 2
    url = node.url if transport == "plain" else node.tls_url

    def took() -> float:
        proxy = proxied(url)
        pool = pools.ConnectionPool(
            confirming(through(proxy, url), heartbeat=heartbeat),
            limit=2,
            options=PoolOptions(min_idle=1),
        )
        lease = pool.acquire(timeout=PATIENCE)
        established = lease.connection
        lease.release()
        proxy.links[0].hold()
        began = time.monotonic()
        eventually(lambda: pool.stats().closed.get("dead"))
        seconds = time.monotonic() - began
        with pool.acquire(timeout=PATIENCE) as lease:
            assert lease.connection is not established
            lease.channel().close()
        closed = pool.stats().closed
        pool.force_close_all()
        # On a machine that stands still for so long, the next one may fall silent as well.
        return seconds if closed == {"dead": 1} else float("inf")

    # And the second that machines which are busy may take.
    assert min_of(took, enough=2 * heartbeat + 1) < 2 * heartbeat + 1


# -- what may pass -------------------------------------------------------------------------


def told(error: Exception) -> OperationalError:
    """As an opening raises it."""
    outer = OperationalError(str(error))
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error, passes",
    [
        (ConnectionRefusedError(111, "refused"), True),
        (ConnectionResetError(104, "reset"), True),
        (TimeoutError("timed out"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (OSError("Server unexpectedly closed connection"), True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True),
        (ssl.SSLError("The handshake operation timed out"), True),
        (amqp_errors.ConnectionForced("broker shut down"), True),
        (amqp_errors.InternalError("vhost '/' is down"), True),
        (amqp_errors.NotAllowed("connection limit (5) is reached"), True),
        (OperationalError("not now"), True),
        (amqp_errors.AccessRefused("login was refused"), False),
        (amqp_errors.NotAllowed("vhost nowhere not found"), False),
        (amqp_errors.NotAllowed("vhost unlimited not found"), False),
        (amqp_errors.ConnectionError("Couldn't find appropriate auth mechanism"), False),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), False),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), False),
        (TypeError("a bug"), False),
        (ValueError("invalid literal"), False),
    ],
    ids=repr,
)
def test_what_may_pass(error: Exception, passes: bool, memory_url: str) -> None:
    assert may_pass(error) is passes
    assert driver_of(memory_url).may_pass(told(error)) is passes


def failure(url: str, **settings: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        driver_of(url, **settings).open()
    return caught.value


def test_what_a_broker_refuses_does_not_pass(amqp_url: str) -> None:
    server = f"localhost:{port_of(amqp_url)}"
    assert not may_pass(failure(f"amqp://guest:wrong@{server}//"))
    assert not may_pass(failure(f"amqp://guest:guest@{server}/nowhere"))


def test_nobody_there_may_pass(mute: Proxy, nowhere: int) -> None:
    assert may_pass(failure(f"amqp://127.0.0.1:{nowhere}//"))
    assert may_pass(failure(f"amqp://{mute.address}//", connect_timeout=0.1))


def test_a_certificate_that_nobody_vouches_for_does_not_pass(node: Node) -> None:
    assert not may_pass(failure(node.tls_url))


def test_what_redis_refuses_does_not_pass() -> None:
    redis_errors = pytest.importorskip("redis.exceptions")
    assert not may_pass(redis_errors.AuthenticationError("invalid username-password pair"))
    assert not may_pass(redis_errors.NoPermissionError("no permissions to run the 'brpop' command"))
    assert not may_pass(redis_errors.ResponseError("DB index is out of range"))
    assert not may_pass(redis_errors.AuthenticationWrongNumberOfArgsError("AUTH"))
    assert may_pass(
        redis_errors.ReadOnlyError("READONLY You can't write against a read only replica")
    )
    assert may_pass(redis_errors.BusyLoadingError("Redis is loading the dataset in memory"))
    assert may_pass(redis_errors.ConnectionError("Error 111 connecting"))
