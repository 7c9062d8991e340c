"""Peers that propose, announce or say too much: each is bounded before anything is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from struct import pack, unpack
from typing import Any

import kombu
import pytest
from amqp.exceptions import UnexpectedFrame
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.inbound import MOST_FRAME, MOST_MESSAGE, MOST_UNASKED, Inbound
from kombu_pools_ext.broker.redis_sockets import MOST_IN_HANDSHAKE
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import BrokerUnreachable
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import confirming
from tests.proxy import FakeBroker, Peer
from tests.proxy.broker import frame, method

MakePool = Callable[..., pools.ConnectionPool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    made: list[pools.ConnectionPool] = []

    def make(origin: Any, **options: Any) -> pools.ConnectionPool:
        made.append(pools.ConnectionPool(origin, limit=1, options=PoolOptions(**options)))
        return made[-1]

    yield make
    for one in made:
        one.force_close_all()


def agreed(broker: FakeBroker) -> tuple[int, int, int]:
    """Channels, bytes of a frame, and seconds between heartbeats: what the client has answered."""
    channels, frames, heartbeat = unpack(">HIH", broker.arguments["connection.tune-ok"])
    return channels, frames, heartbeat


# -- what is proposed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proposed, own, expected",
    [
        (2**32 - 1, None, MOST_FRAME),
        (MOST_FRAME + 1, None, MOST_FRAME),
        (MOST_FRAME, None, MOST_FRAME),
        (131072, None, 131072),
        (4096, None, 4096),
        # No bound of the broker's: the client's own, which is py-amqp's default.
        (0, None, 131072),
        # Who sets it knows what it costs.
        (2**32 - 1, 4 * MOST_FRAME, 4 * MOST_FRAME),
        (131072, 4 * MOST_FRAME, 131072),
    ],
)
def test_a_frame_max_is_agreed_on_that_fits_into_memory(
    make: MakePool, proposed: int, own: int | None, expected: int
) -> None:
    options = {} if own is None else {"frame_max": own}
    with FakeBroker(tune=(2047, proposed, 60)) as broker:
        connections = make(kombu.Connection(broker.url, transport_options=options))
        with connections.acquire(timeout=PATIENCE) as connection:
            assert connection.connection.frame_max == expected
            assert agreed(broker)[1] == expected


@pytest.mark.parametrize("proposed", [1, 8, 4095])
def test_a_frame_max_that_holds_no_frame_is_none(make: MakePool, proposed: int) -> None:
    with FakeBroker(tune=(2047, proposed, 60)) as broker:
        with pytest.raises(BrokerUnreachable, match=f"frames of at most {proposed} bytes"):
            make(kombu.Connection(broker.url)).acquire()


@pytest.mark.parametrize(
    "proposed, own, expected",
    [(65535, 60, 60), (0, 60, 60), (10, 60, 10), (65535, 0, 0), (1, 0, 0)],
)
def test_a_heartbeat_is_never_later_than_ours(
    make: MakePool, proposed: int, own: int, expected: int
) -> None:
    with FakeBroker(tune=(2047, 131072, proposed)) as broker:
        connections = make(kombu.Connection(broker.url, heartbeat=own))
        with connections.acquire(timeout=PATIENCE):
            assert agreed(broker)[2] == expected


@pytest.mark.parametrize("proposed", [0, 1, 65535])
def test_any_number_of_channels_leaves_one(make: MakePool, proposed: int) -> None:
    with FakeBroker(tune=(proposed, 131072, 60)) as broker:
        connections = make(kombu.Connection(broker.url))
        with connections.acquire(timeout=PATIENCE) as connection:
            assert connection.channel().channel_id == 1


@pytest.mark.parametrize(
    "again",
    [
        method("connection.tune", 0, "BlB", 2047, 2**32 - 1, 60),
        method("connection.start", 0, "ooFSS", 0, 9, {}, "PLAIN", "en_US"),
        method("connection.open-ok", 0, "s", ""),
    ],
    ids=["tune", "start", "open-ok"],
)
def test_hands_are_shaken_once(make: MakePool, again: bytes) -> None:
    with FakeBroker() as broker:
        connections = make(kombu.Connection(broker.url), check_after=0)
        with connections.acquire(timeout=PATIENCE) as connection:
            first = connection.connection
            broker.say(again)
            with pytest.raises(UnexpectedFrame, match="begins the handshake again"):
                connection.drain_events(timeout=PATIENCE)
            assert first.frame_max == 131072
        assert connections.stats().closed == {"broken": 1}
        assert broker.heard.count("connection.start-ok") == 1
    with FakeBroker(
        {"connection.start-ok": 2 * method("connection.tune", 0, "BlB", 1, 8192, 9)}
    ) as (broker):
        with pytest.raises(BrokerUnreachable, match="begins the handshake again"):
            make(kombu.Connection(broker.url)).acquire()


# -- what is announced ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2 << 17, 2**31, 2**32 - 1])
@pytest.mark.parametrize("when", ["in the handshake", "later"])
def test_a_frame_that_is_larger_than_agreed_on_is_not_waited_for(
    make: MakePool, size: int, when: str
) -> None:
    begun = pack(">BHI", 1, 0, size) + b"x" * 100
    answers = {"connection.start-ok": begun} if when == "in the handshake" else {}
    with FakeBroker(answers) as broker:
        connections = make(kombu.Connection(broker.url))
        if answers:
            with pytest.raises(BrokerUnreachable, match="a frame of more than 131072 bytes"):
                connections.acquire()
            return
        with connections.acquire(timeout=PATIENCE) as connection:
            broker.say(begun)
            with pytest.raises(OSError, match="where 131072 were agreed on"):
                connection.drain_events(timeout=PATIENCE)
        assert connections.stats().closed == {"broken": 1}


RETURN = method("basic.return", 1, "Bsss", 312, "NO_ROUTE", "", "q")
DELIVER = method("basic.deliver", 1, "sLbss", "somebody", 1, False, "", "q")


def header(size: int, channel: int = 1) -> bytes:
    """The header of a message with so long a body, and no properties."""
    return frame("header", channel, pack(">HHQH", 60, 0, size, 0))


@pytest.mark.parametrize("begin", [RETURN, DELIVER], ids=["return", "delivery"])
@pytest.mark.parametrize("size", [MOST_MESSAGE + 1, 2**63, 2**64 - 1])
def test_a_message_that_no_broker_can_have_is_not_waited_for(
    make: MakePool, begin: bytes, size: int
) -> None:
    with FakeBroker() as broker:
        connections = make(kombu.Connection(broker.url))
        with connections.acquire(timeout=PATIENCE) as connection:
            connection.channel()
            broker.say(begin + header(size))
            with pytest.raises(UnexpectedFrame, match=f"a message of {size} bytes"):
                connection.drain_events(timeout=PATIENCE)
        assert connections.stats().closed == {"broken": 1}


def test_a_message_for_a_channel_that_nobody_has_opened(make: MakePool) -> None:
    with FakeBroker() as broker:
        connections = make(kombu.Connection(broker.url))
        with connections.acquire(timeout=PATIENCE) as connection:
            broker.say(method("basic.return", 7, "Bsss", 312, "NO_ROUTE", "", "q"))
            with pytest.raises(UnexpectedFrame, match="channel 7, which is not open"):
                connection.drain_events(timeout=PATIENCE)


# -- what is said --------------------------------------------------------------------------------------


def returns_without_end(part: bytes) -> Iterator[bytes]:
    yield RETURN + header(MOST_MESSAGE)
    while True:
        yield part


@pytest.mark.parametrize(
    "said",
    [
        lambda: returns_without_end(16 * frame("body", 1, bytes(65536))),
        lambda: iter(lambda: 1000 * (RETURN + header(0)), None),
        lambda: iter(lambda: RETURN + header(131064) + frame("body", 1, bytes(131064)), None),
    ],
    ids=["one without an end", "many without a body", "many"],
)
def test_who_speaks_without_end_on_an_idle_connection_is_not_listened_to(
    make: MakePool, caplog: pytest.LogCaptureFixture, said: Callable[[], Iterator[bytes]]
) -> None:
    caplog.set_level("ERROR")
    with FakeBroker() as broker:
        connections = make(confirming(broker.url, heartbeat=60), check_after=0)
        connections.lends_producers = True
        connections.acquire(timeout=PATIENCE).release()
        words, sent = said(), 0
        sock = broker.newest
        assert sock is not None
        sock.settimeout(PATIENCE)
        try:
            # What nobody reads stays in the buffers of the two sockets; each look reads what has come.
            while connections.stats().idle and sent < 8 * MOST_UNASKED:
                part = next(words)
                sock.sendall(part)
                sent += len(part)
                connections.acquire(timeout=PATIENCE).release()
                if connections.stats().opened > 1:
                    break
        except OSError:
            pass  # closed, in the middle of it
        assert sent < 3 * MOST_UNASKED
        assert connections.stats().closed == {"dead": 1}
        # Whoever asks has another one.
        connections.acquire(timeout=PATIENCE).release()
        assert connections.stats().opened == 2


def test_a_connection_that_only_hears_heartbeats_stays(make: MakePool) -> None:
    with FakeBroker() as broker:
        connections = make(kombu.Connection(broker.url, heartbeat=60), check_after=0)
        for _ in range(100):
            connections.acquire(timeout=PATIENCE).release()
            broker.say(frame("heartbeat", 0, b""))
        assert connections.stats().opened == 1


class Said:
    """Stands for a connection of py-amqp's, with the channels 0 to 2."""

    idle = False
    channels = dict.fromkeys(range(3))


def hearing() -> tuple[list[Any], Inbound]:
    heard: list[Any] = []
    return heard, Inbound(lambda connection, callback: callback, Said(), heard.append)


def test_messages_under_way_are_bounded_together() -> None:
    heard, inbound = hearing()
    half = pack(">HHQH", 60, 0, MOST_MESSAGE // 2, 0)
    inbound((2, 1, half))
    inbound((2, 2, half))
    inbound((3, 1, bytes(MOST_MESSAGE // 2)))
    inbound((2, 1, half))
    with pytest.raises(UnexpectedFrame, match="incomplete ones may have"):
        inbound((2, 0, half))
    assert len(heard) == 4


def test_no_part_of_a_message_is_empty_or_longer_than_was_said() -> None:
    for size in (0, 11):
        heard, inbound = hearing()
        inbound((2, 1, pack(">HHQH", 60, 0, 10, 0)))
        with pytest.raises(UnexpectedFrame, match=f"{size} bytes of a message came"):
            inbound((3, 1, bytes(size)))
        assert len(heard) == 1


def test_the_parts_of_a_message_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu_pools_ext.broker.amqp.inbound._HEAVIEST", 1 << 16)
    heard, inbound = hearing()
    inbound((2, 1, pack(">HHQH", 60, 0, MOST_MESSAGE, 0)))
    with pytest.raises(UnexpectedFrame, match="too small"):
        while True:
            inbound((3, 1, b"x"))
    assert 900 < len(heard) < 1100


# -- Redis ---------------------------------------------------------------------------------------------


@pytest.mark.redis
@pytest.mark.parametrize("begin", [b"$2147483647\r\n", b"*2147483647\r\n", b"+"])
def test_a_redis_that_answers_without_end_is_not_listened_to(make: MakePool, begin: bytes) -> None:
    pytest.importorskip("redis")
    said = 0
    # Large elements of a list: redis-py takes a second for a megabyte of small ones, on a machine that is idle.
    more = b"$65526\r\n" + b"x" * 65526 + b"\r\n" if begin.startswith(b"*") else b"x" * 65536

    def serve(sock: Any) -> None:
        nonlocal said
        sock.recv(65536)
        sock.sendall(begin)
        while True:
            sock.sendall(more)
            said += 65536

    with Peer(serve) as peer:
        connections = make(kombu.Connection(f"redis://{peer.address}/0", connect_timeout=PATIENCE))
        began = time.monotonic()
        with pytest.raises(OperationalError, match="more than any answer can have"):
            connections.acquire()
        assert time.monotonic() - began < PATIENCE
        assert eventually(lambda: said < 50 * MOST_IN_HANDSHAKE)
