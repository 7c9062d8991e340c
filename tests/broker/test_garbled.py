"""Answers that cannot be read, at each of their bytes: the connection's own error, and nobody else's."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any

import kombu
import pytest
from amqp.exceptions import AMQPError, UnexpectedFrame
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.handshake import WrongProtocol
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import PublishUnknown
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, Frame, Peer, Proxy

pytestmark = pytest.mark.broker

#: Seconds for what waits for an answer that was made unknown.
SOON = 0.15
#: What may be heard of a connection that fails.
OWN = (AMQPError, OSError, OperationalError)

#: Bytes of each answer.
OPEN_OK, SELECT_OK, DECLARE_OK, CLOSE_OK = 16, 12, 22, 12


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def make(amqp_url: str, proxy: Proxy) -> Iterator[Callable[..., pools.ProducerPool]]:
    """Makes a pool of one producer by way of the proxy, which gives up soon."""
    made: list[pools.ConnectionPool] = []

    def make(
        *, confirms: bool = True, check_after: float = 0.5, connect_timeout: float = PATIENCE
    ) -> pools.ProducerPool:
        url = through(proxy, amqp_url)
        origin = (confirming if confirms else kombu.Connection)(
            url, connect_timeout=connect_timeout
        )
        options = PoolOptions(check_after=check_after)
        made.append(pools.ConnectionPool(origin, limit=1, options=options, confirm_timeout=SOON))
        return pools.ProducerPool(made[-1])

    yield make
    for one in made:
        one.force_close_all()


def sound(producers: pools.ProducerPool, box: Inbox) -> None:
    """The pool publishes, and nothing of it is lost."""
    with producers.acquire(timeout=PATIENCE) as producer:
        # Not within SOON, which a busy machine may need for nothing.
        patient = {"timeout": PATIENCE, "confirm_timeout": PATIENCE}
        producer.publish("sound", routing_key=box.name, **patient)
    stats = producers.connections.stats()
    assert (stats.lent, stats.idle) == (0, 1)


@pytest.mark.parametrize(
    "confirms, name, at",
    [
        *((True, "channel.open-ok", at) for at in range(OPEN_OK)),
        *((True, "confirm.select-ok", at) for at in range(SELECT_OK)),
        *((False, "channel.open-ok", at) for at in range(OPEN_OK)),
    ],
)
def test_the_answers_to_the_first_channel_of_a_connection(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    confirms: bool,
    name: str,
    at: int,
) -> None:
    box = inbox(amqp_url)
    for mask in (0x01, 0xFF):
        proxy.play([(TO_CLIENT, Frame(name, at), "garble", mask)], coming=1)
        # What has opened no channel is not open: the next one is.
        producers = make(confirms=confirms, connect_timeout=SOON)
        sound(producers, box)
        assert producers.connections.stats().closed == {}
        proxy.heal()
        assert box.bodies(1) == ["sound"]


@pytest.mark.parametrize(
    "name, at, work",
    [
        (name, at, work)
        for name, size, work in (
            ("channel.open-ok", OPEN_OK, lambda connection, box: connection.channel().close()),
            (
                "queue.declare-ok",
                DECLARE_OK,
                lambda connection, box: connection.default_channel.queue_declare(
                    box.name, passive=True
                ),
            ),
            ("channel.close-ok", CLOSE_OK, lambda connection, box: connection.channel().close()),
        )
        for at in range(size)
    ],
)
def test_the_answers_to_what_a_borrower_asks(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    name: str,
    at: int,
    work: Callable[[Any, Inbox], Any],
) -> None:
    box = inbox(amqp_url)
    producers = make(confirms=False)
    failed = False
    try:
        with producers.connections.acquire(timeout=PATIENCE) as lease:
            proxy.play([(TO_CLIENT, Frame(name, at), "garble", 0xFF)])
            with lease.item.within(time.monotonic() + SOON):
                work(lease, box)
    except OWN:
        failed = True
    # A number of messages that is another one, say, nobody can tell.
    assert producers.connections.stats().idle == (not failed)
    proxy.heal()
    sound(producers, box)


@pytest.mark.parametrize("at", range(CLOSE_OK))
def test_the_answer_to_a_goodbye(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, at: int
) -> None:
    proxy.play([(TO_CLIENT, Frame("connection.close-ok", at), "garble", 0xFF)], coming=1)
    producers = make()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key="nobody's", timeout=PATIENCE, confirm_timeout=PATIENCE)
    producers.connections.force_close_all(close_pool=False)
    assert producers.connections.stats().size == 0
    assert proxy.wait_for(lambda: not proxy.alive)


# -- tables without end ---------------------------------------------------------------------------------


def deep_table(levels: int = 1500) -> bytes:
    """A table in a table in a table."""
    table = b""
    for _ in range(levels):
        table = b"\x01aF" + pack(">I", len(table)) + table
    return pack(">I", len(table)) + table


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def returned(channel: int) -> bytes:
    """A message that comes back, with a table in its headers that nobody can read."""
    method = pack(">HHH", 60, 50, 312) + b"\x08NO_ROUTE\x00\x01k"
    header = pack(">HHQH", 60, 0, 0, 0x2000) + deep_table()
    return frame(1, channel, method) + frame(2, channel, header)


@pytest.mark.parametrize("confirms", [True, False], ids=["confirmed", "plain"])
def test_a_table_that_is_too_deep_ends_the_connection(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    confirms: bool,
) -> None:
    box = inbox(amqp_url)
    producers = make(confirms=confirms)
    lease = producers.acquire(timeout=PATIENCE)
    lease.publish("one", routing_key=box.name)
    proxy.links[-1].say(returned(1))
    with pytest.raises((UnexpectedFrame, PublishUnknown)) as caught:
        lease.publish("two", routing_key=box.name)
    cause = caught.value.__cause__ if confirms else caught.value
    assert isinstance(cause, UnexpectedFrame)
    assert "RecursionError" in str(cause)
    lease.release()
    assert producers.connections.stats().closed == {"broken": 1}
    sound(producers, box)


def test_an_idle_connection_that_hears_one_is_not_lent(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
) -> None:
    box = inbox(amqp_url)
    producers = make(check_after=0)
    sound(producers, box)
    proxy.links[-1].say(returned(1))
    sound(producers, box)
    assert producers.connections.stats().opened == 2


def test_a_greeting_with_one_is_no_amqp() -> None:
    start = (
        pack(">HHBB", 10, 10, 0, 9) + deep_table() + b"\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US"
    )
    with Peer.saying(b"") as peer:
        peer._serve = lambda sock: (sock.recv(8), sock.sendall(frame(1, 0, start)), sock.recv(1))
        connections = pools.ConnectionPool(kombu.Connection(f"amqp://{peer.address}//"), limit=1)
        with pytest.raises(OperationalError, match="sends what is no AMQP") as caught:
            connections.acquire(timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, WrongProtocol)
        connections.force_close_all()


# -- what is not garbled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("mine"), struct.error("mine"), ValueError("mine")])
def test_an_error_of_a_callback_stays_what_it_is(
    make: Callable[..., pools.ProducerPool],
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    error: Exception,
) -> None:
    box = inbox(amqp_url)
    producers = make()

    def fail(message: Any) -> None:
        raise error

    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=box.name)
        with pytest.raises(type(error), match="mine"):
            with kombu.Consumer(
                producer.channel, kombu.Queue(box.name), on_message=fail, auto_declare=False
            ):
                producer.connection.drain_events(timeout=PATIENCE)
