"""A connection that died while it was idle never reaches a borrower, and one that lives is not thrown away."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from amqp.exceptions import RecoverableConnectionError
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import session as amqp_session
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import BrokerUnreachable, PoolTimeout, PublishUnknown
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import Node, confirming, through
from tests.engine.fakes import min_of
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

#: An AMQP heartbeat frame.
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
#: Every connection is checked before it is lent, however fresh.
ALWAYS = PoolOptions(check_after=0.0)


def pool_of(url: str, options: PoolOptions = ALWAYS, **kwargs: Any) -> pools.ConnectionPool:
    return pools.ConnectionPool(confirming(url, **kwargs), limit=10, options=options)


def idle(pool: pools.ConnectionPool, count: int) -> list[Any]:
    """Have so many idle connections, each used once; the innermost objects of kombu's."""
    leases = [pool.acquire(timeout=PATIENCE) for _ in range(count)]
    inner = [lease.connection for lease in leases]
    for lease in leases:
        lease.release()
    return inner


def has_word(established: Any) -> bool:
    """Whether there is something to read on a connection of py-amqp, or its end to be seen."""
    transport = established._transport
    return bool(transport._read_buffer or select.select([transport.sock], [], [], 0)[0])


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def url(amqp_url: str, proxy: Proxy) -> str:
    return through(proxy, amqp_url)


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_what_the_network_cut_never_reaches_a_borrower(
    url: str, proxy: Proxy, amqp_url: str, inbox: Callable[[str], Inbox], rst: bool
) -> None:
    box = inbox(amqp_url)
    pool = pool_of(url)
    producers = pools.ProducerPool(pool)
    inner = idle(pool, 5)
    proxy.cut(rst=rst)
    for established in inner:
        eventually(lambda e=established: has_word(e))
    # Five are dead, and the first borrower pays for all: with one connect.
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("alive", routing_key=box.name)
    assert pool.stats().closed == {"dead": 5}
    assert pool.stats().opened == 6
    assert proxy.accepted == 6
    assert box.bodies() == ["alive"]
    pool.force_close_all()


def test_what_the_broker_closed_never_reaches_a_borrower(
    node: Node, inbox: Callable[[str], Inbox]
) -> None:
    pool = pool_of(node.url)
    box = inbox(node.url)
    inner = idle(pool, 3)
    node.close_connections("maintenance")
    for established in inner:
        eventually(lambda e=established: has_word(e))
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        producer.publish("alive", routing_key=box.name)
    assert pool.stats().closed == {"dead": 3}
    assert box.bodies() == ["alive"]
    pool.force_close_all()


@pytest.mark.timing
def test_many_dead_ones_cost_one_connect(url: str, proxy: Proxy) -> None:
    def took() -> float:
        pool = pool_of(url)
        inner = idle(pool, 10)
        proxy.cut()
        for established in inner:
            eventually(lambda e=established: has_word(e))
        began = time.monotonic()
        pool.acquire(timeout=PATIENCE).release()
        seconds = time.monotonic() - began
        pool.force_close_all()
        return seconds

    assert min_of(took, enough=1.0) < 1.0


def test_one_dead_makes_the_others_suspect(url: str, proxy: Proxy) -> None:
    # Nothing is checked for its age alone, here.
    pool = pool_of(url, PoolOptions(check_after=3600.0))
    lease = pool.acquire(timeout=PATIENCE)
    inner = idle(pool, 3)
    proxy.cut()
    for established in inner:
        eventually(lambda e=established: has_word(e))
    with pool.engine.lock:
        entry = pool.engine.state.idle[-1]
        entry.needs_check, entry.fresh_until = True, 0.0
    with pool.acquire(timeout=PATIENCE) as found:
        found.channel().close()
    assert pool.stats().closed == {"dead": 3}
    lease.release()
    pool.force_close_all()


def test_a_heartbeat_that_came_is_no_reason_to_discard(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    for count in (1, 3):
        proxy.alive[0].say(HEARTBEAT * count)
        eventually(lambda: has_word(established))
        with pool.acquire() as lease:
            assert lease.connection is established
            # Read, so that the next one finds nothing.
            assert not has_word(established)
            lease.channel().close()
    assert pool.stats().closed == {}
    pool.force_close_all()


def test_the_brokers_own_heartbeats_are_no_reason_to_discard(url: str, proxy: Proxy) -> None:
    pool = pool_of(url, heartbeat=1)
    (established,) = idle(pool, 1)
    eventually(lambda: proxy.alive[0].sent(TO_CLIENT).endswith(HEARTBEAT))
    eventually(lambda: has_word(established))
    with pool.acquire() as lease:
        assert lease.connection is established
        lease.channel().close()
    pool.force_close_all()


def test_half_a_frame_is_no_reason_to_discard(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    proxy.alive[0].say(HEARTBEAT[:3])
    eventually(lambda: has_word(established))
    for _ in range(2):
        # Read once, it lies in py-amqp's buffer, and the socket is quiet.
        with pool.acquire() as lease:
            assert lease.connection is established
    assert established._transport._read_buffer
    proxy.alive[0].say(HEARTBEAT[3:])
    eventually(lambda: select.select([established._transport.sock], [], [], 0)[0])
    with pool.acquire() as lease:
        assert lease.connection is established
        lease.channel().close()
    pool.force_close_all()


def test_rubbish_is_a_reason_to_discard(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    proxy.alive[0].say(HEARTBEAT[:-1] + b"!")
    eventually(lambda: has_word(established))
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is not established
        lease.channel().close()
    assert pool.stats().closed == {"dead": 1}
    pool.force_close_all()


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_a_check_never_dials(url: str, proxy: Proxy, rst: bool) -> None:
    pool = pool_of(url)
    inner = idle(pool, 2)
    entries = list(pool.engine.state.idle)
    assert all(entry.item.pooled_session.check() for entry in entries)
    proxy.cut(rst=rst)
    for established in inner:
        eventually(lambda e=established: has_word(e))
    assert not any(entry.item.pooled_session.check() for entry in entries)
    # Nor does it with one that was collected, or never connected.
    entries[0].item.collect()
    assert not entries[0].item.pooled_session.check()
    assert not pool.new().pooled_session.check()
    assert proxy.accepted == 2
    pool.force_close_all()


@pytest.mark.parametrize(
    "use",
    [
        lambda established: established.drain_events(timeout=0),
        lambda established: established.transport,
        lambda established: established.sock,
        lambda established: established.connect(),
        lambda established: established.channel(),
        lambda established: established.__enter__(),
    ],
    ids=["drain_events", "transport", "sock", "connect", "channel", "with"],
)
def test_whatever_is_asked_of_a_closed_connection_it_does_not_dial(
    url: str, proxy: Proxy, use: Callable[[Any], Any]
) -> None:
    """py-amqp dials where its transport is asked for, with a warning, and the pool knows nothing of it."""
    pool = pool_of(url)
    with pool.acquire(timeout=PATIENCE) as lease:
        established = lease.connection
        # As long as it is open, there is nothing to do.
        established.connect()
        established.collect()
        with pytest.raises(RecoverableConnectionError, match="closed"):
            use(established)
    assert proxy.accepted == 1
    assert pool.stats().closed == {"broken": 1}
    pool.force_close_all()


def test_a_goodbye_that_nobody_asked_for_does_not_make_a_publish_dial(
    url: str, proxy: Proxy, queue: str
) -> None:
    producers = pools.ProducerPool(pools.ConnectionPool(confirming(url), limit=1))
    with pytest.raises(PublishUnknown), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue)
        proxy.hold(TO_CLIENT)
        proxy.alive[0].say(CLOSE_OK)
        producer.publish("x", routing_key=queue)
    assert proxy.accepted == 1
    producers.connections.force_close_all()


def test_redis_that_was_cut_never_reaches_a_borrower(
    redis_url: str, proxied: Callable[[str], Proxy], inbox: Callable[[str], Inbox]
) -> None:
    box, proxy = inbox(redis_url), proxied(redis_url)
    pool = pools.ConnectionPool(
        kombu.Connection(through(proxy, redis_url)), limit=3, options=ALWAYS
    )
    producers = pools.ProducerPool(pool)
    for body in ("first", "second", "third"):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish(body, routing_key=box.name)
        proxy.cut()
    assert box.bodies() == ["first", "second", "third"]
    pool.force_close_all()


# -- a broker that is not there ----------------------------------------------------


@pytest.mark.parametrize("transport", ["amqp", "redis"])
def test_a_peer_that_says_nothing(mute: Proxy, transport: str) -> None:
    pool = pool_of(f"{transport}://{mute.address}", connect_timeout=PATIENCE)
    began = time.monotonic()
    with pytest.raises(PoolTimeout, match="1 opening") as caught:
        with pool.acquire(timeout=0.2) as lease:
            lease.default_channel.client.ping()
    assert time.monotonic() - began < PATIENCE / 2
    assert isinstance(caught.value, pool.LimitExceeded)
    pool.force_close_all()


def test_a_name_look_up_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        answer.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    pool = pool_of("amqp://far.invalid//")
    began = time.monotonic()
    with pytest.raises(PoolTimeout, match="1 opening"):
        pool.acquire(timeout=0.2)
    assert time.monotonic() - began < PATIENCE / 2
    assert asked.wait(PATIENCE)
    answer.set()
    eventually(lambda: pool.stats().size == 0)
    # Its end told nobody, and the next one has the cause.
    with pytest.raises(BrokerUnreachable, match=r"far\.invalid") as caught:
        pool.acquire()
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_a_name_look_up_that_hangs_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        answer.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    pool = pool_of("amqp://far.invalid//", PoolOptions(outage_patience=0.1, connect_timeout=0.1))
    # Who would wait without end is told as well.
    with pytest.raises(BrokerUnreachable, match="does the name look-up hang") as caught:
        pool.acquire(block=True)
    assert isinstance(caught.value.__cause__, TimeoutError)
    answer.set()
    eventually(lambda: pool.stats().opening == 0)
    pool.force_close_all()


def test_connect_timeout_bounds_a_caller_without_a_timeout(mute: Proxy) -> None:
    pool = pool_of(
        f"amqp://{mute.address}//", PoolOptions(connect_timeout=0.2), connect_timeout=PATIENCE
    )
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=r"CONNECT_TIMEOUT=0\.2 s|timed out") as caught:
        pool.acquire()
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert time.monotonic() - began < PATIENCE / 2
    pool.force_close_all()


def test_a_port_that_nobody_listens_on(nowhere: int) -> None:
    pool = pool_of(f"amqp://127.0.0.1:{nowhere}//")
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(OperationalError, match=r"(?i)refused") as caught:
            pool.acquire()
        assert isinstance(caught.value, BrokerUnreachable)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert f"127.0.0.1:{nowhere}" in str(caught.value)
    # At once: nobody sleeps between attempts, as kombu does for two seconds and four.
    assert time.monotonic() - began < 5.0
    # A probe may be under way that nobody waits for.
    eventually(lambda: pool.stats().size == 0)


def test_a_broker_that_is_down_is_waited_for_as_long_as_patience_says(nowhere: int) -> None:
    # Long enough for more than one opening.
    pool = pool_of(f"amqp://127.0.0.1:{nowhere}//", PoolOptions(outage_patience=2.0))
    with pytest.raises(BrokerUnreachable, match=r"tried \d+ times.*(?i:refused)"):
        pool.acquire(block=True)
    assert pool.stats().open_failures > 1
    eventually(lambda: pool.stats().opening == 0)
    before = pool.stats().open_failures
    with pytest.raises(BrokerUnreachable, match=r"(?i)refused"):
        pool.acquire(timeout=PATIENCE)
    # The later one is at most the next probe.
    assert pool.stats().open_failures <= before + 1
    pool.force_close_all()


def test_the_next_of_several_brokers_is_taken(url: str, nowhere: int) -> None:
    pool = pools.ConnectionPool(kombu.Connection([f"amqp://127.0.0.1:{nowhere}//", url]), limit=2)
    with pool.acquire(timeout=PATIENCE) as lease:
        lease.channel().close()
    assert pool.stats().opened == 1
    pool.force_close_all()


def test_a_silent_peer_does_not_hold_up_the_closing(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    idle(pool, 1)
    proxy.hold(TO_CLIENT)
    began = time.monotonic()
    assert pool.force_close_all().closed == 1
    # One second for the answer to the goodbye, which was said.
    assert time.monotonic() - began < PATIENCE / 2
    assert b"\x00\x0a\x00\x32" in proxy.links[0].sent(TO_SERVER)


# -- what came unasked ---------------------------------------------------------------------

#: Frames of a server, as they are sent: the header, the method, its arguments, the end.
CLOSE_OK = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x33\xce"
CHANNEL_CLOSE = (
    b"\x01\x00\x01\x00\x00\x00\x13\x00\x14\x00\x28\x01\x94\x08NO QUEUE\x00\x00\x00\x00\xce"
)


def told(proxy: Proxy, established: Any, *frames: bytes) -> None:
    for frame in frames:
        proxy.alive[0].say(frame)
    eventually(lambda: has_word(established))


@pytest.mark.parametrize("size", [0x00FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_frame_of_absurd_size_is_a_reason_to_discard(url: str, proxy: Proxy, size: int) -> None:
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    told(proxy, established, b"\x01\x00\x01" + size.to_bytes(4, "big"))
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is not established
    assert pool.stats().closed == {"dead": 1}
    pool.force_close_all()


def test_a_channel_error_is_the_earlier_leases(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1, options=ALWAYS, name="shop")
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        established = producer.connection.connection
        producer.publish("nowhere", exchange="no-such-exchange", routing_key="x")
    eventually(lambda: has_word(established))
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is not established
        lease.channel().close()
    assert pool.stats().closed == {"dead": 1}
    (warning,) = [
        record
        for record in caplog.records
        if record.levelname == "WARNING" and "pool 'shop'" in record.getMessage()
    ]
    assert "pool 'shop': an earlier lease's channel was closed" in warning.getMessage()
    assert "no exchange 'no-such-exchange'" in warning.getMessage()
    pool.force_close_all()


def test_those_that_ended_together_are_found_together(proxy: Proxy, url: str) -> None:
    pool = pool_of(url)
    inner = idle(pool, 10)
    for link in proxy.links[1:]:
        link.cut()
    for established in inner[1:]:
        eventually(lambda established=established: has_word(established))
    checks = []
    check = pool._driver.check
    pool._driver.check = lambda item, *, thorough: (
        checks.append(item) or check(item, thorough=thorough)
    )  # type: ignore[method-assign,func-returns-value]
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is inner[0]
    assert len(checks) == 2
    assert pool.stats().closed == {"dead": 9}
    assert len(proxy.links) == 10
    pool.force_close_all()


def test_a_channel_that_cannot_be_reopened_holds_nobody_up(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    with pool.acquire(timeout=PATIENCE) as lease:
        established = lease.connection
        assert lease.default_channel.channel_id == 1
    proxy.alive[0].hold(TO_CLIENT)
    told(proxy, established, CHANNEL_CLOSE)
    assert not within(PATIENCE, lambda: pool.engine.state.idle[0].item.pooled_session.check())
    proxy.heal()
    pool.force_close_all()


def test_what_the_broker_said_last_is_logged(
    url: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kombu_pools_ext")
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    told(
        proxy,
        established,
        b"\x01\x00\x00\x00\x00\x00\x1c\x00\x0a\x00\x32\x01\x40\x11CONNECTION_FORCED\x00\x00\x00\x00\xce",
    )
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is not established
    assert "the broker closed an idle connection: (0, 0): (320) CONNECTION_FORCED" in caplog.text
    pool.force_close_all()


def test_an_answer_to_nothing_does_not_make_a_check_dial(url: str, proxy: Proxy) -> None:
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    told(proxy, established, CLOSE_OK + HEARTBEAT)
    assert not pool.engine.state.idle[0].item.pooled_session.check()
    assert proxy.accepted == 1
    pool.force_close_all()


def test_the_heartbeats_of_a_long_lease_are_read_at_once(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may want longer for so many.
    monkeypatch.setattr(amqp_session, "LONGEST_CHECK", PATIENCE)
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    told(proxy, established, HEARTBEAT * 300)
    eventually(lambda: not proxy.alive[0].halves[TO_CLIENT].waiting)
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connection is established
        assert not has_word(established)
    pool.force_close_all()


def test_a_peer_without_end_is_not_lent(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_session, "MOST_FRAMES", 50)
    pool = pool_of(url)
    (established,) = idle(pool, 1)
    told(proxy, established, HEARTBEAT * 60)
    assert not pool.engine.state.idle[0].item.pooled_session.check()
    # So it is with one that is slower than our time is short.
    monkeypatch.undo()
    monkeypatch.setattr(amqp_session, "LONGEST_CHECK", 0.0)
    (other,) = idle(pool, 1)
    told(proxy, other, HEARTBEAT)
    assert not pool.engine.state.idle[0].item.pooled_session.check()
    pool.force_close_all()


def test_session_tickets_are_no_reason_to_discard(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    pool = pool_of(node.tls_url)
    (established,) = idle(pool, 1)
    for _ in range(3):
        with pool.acquire(timeout=PATIENCE) as lease:
            assert lease.connection is established
            assert not has_word(established)
    assert pool.stats().closed == {}
    pool.force_close_all()
