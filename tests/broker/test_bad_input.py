"""What a broker, or what stands where one should, may send and refuse: each a clear error in time, and a sound pool."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import amqp
import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import PoolSettings, pools
from kombu_pools_ext.errors import BrokerUnreachable, PublishNacked, PublishUnknown
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import Node, sockets_to, through
from tests.brokers import PrivateRabbitMQ
from tests.engine.fakes import assert_sound
from tests.proxy import TO_CLIENT, TO_SERVER, Frame, Peer, Proxy

LIMIT = 3
#: Seconds for what must fail against a peer that is silent; what must succeed has `PATIENCE`.
SHORT = 0.2
#: Far more than any of it takes, far less than a caller who is stuck.
IN_TIME = 10.0
SECRET = uuid.uuid4().hex
MIB = 1 << 20


def settings(url: str, **given: Any) -> PoolSettings:
    return PoolSettings.of(
        **{"url": url, "limit": LIMIT, "connect_timeout": 1.0, "retry": None, **given}
    )


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """As many descriptors are open after the test, its pools closed, as before it."""
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    yield
    pools.reset()
    gc.collect()
    eventually(lambda: len(os.listdir("/dev/fd")) <= before)


@pytest.fixture
def proxy(amqp_url: str, nothing_leaks: None, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def box(inbox: Callable[[str], Inbox], amqp_url: str) -> Inbox:
    return inbox(amqp_url)


def assert_recovers(pool: Any, box: Inbox) -> None:
    """Nothing is lent or lost, and the pool has room for all that it may open; the next publish works."""
    assert_sound(pool.engine)
    stats = pool.stats()
    assert (stats.lent, stats.waiting) == (0, 0)
    assert stats.size <= LIMIT
    body = uuid.uuid4().hex
    # An outage that does not look as if it would pass is told to whoever asks until the next try, 2 s at most.
    leases = [eventually(lambda: acquired(pool))]
    leases += [pool.acquire(timeout=PATIENCE) for _ in range(LIMIT - 1)]
    leases[0].publish(body, routing_key=box.name, timeout=PATIENCE)
    for lease in leases:
        lease.release()
    assert body in box.bodies(1)
    assert_sound(pool.engine)
    assert (pool.stats().lent, pool.stats().waiting) == (0, 0)


def acquired(pool: Any) -> Any:
    """A producer; none if the broker cannot be reached."""
    try:
        return pool.acquire(timeout=PATIENCE)
    except BrokerUnreachable:
        return None


# -- frames that are cut or garbled ------------------------------------------------------------------------------------

#: Bytes of a frame: its kind, channel, size, class, method, what follows, and the octet that ends it.
PLACES = (0, 1, 3, 7, 9, 11, -1)


@pytest.mark.parametrize("action", ["cut", "reset", "half-close"])
def test_a_handshake_that_is_cut(proxy: Proxy, amqp_url: str, box: Inbox, action: str) -> None:
    # Each opening meets its own script, so none may be given up before it has come to its end.
    wanted = settings(through(proxy, amqp_url), connect_timeout=PATIENCE)
    pool = pools.producers[wanted]
    frames = [Frame("connection.start", at) for at in (0, 3, 9, -1)] + [
        Frame("connection.tune", 9),
        Frame("connection.open-ok", -1),
        Frame("channel.open-ok", 9),
        Frame("confirm.select-ok", 9),
    ]
    for frame in frames:
        proxy.play([(TO_CLIENT, frame, action)], coming=1)
        with pytest.raises((OperationalError, *amqp.Connection.connection_errors)) as caught:
            with pool.acquire() as producer:
                producer.publish("lost", routing_key=box.name)
        assert pool.name in str(caught.value) + str(getattr(caught.value, "__notes__", ""))
        del caught
        assert pool.stats().lent == 0
        # Whoever waits hears nothing of it.
        with pool.acquire(timeout=PATIENCE) as producer:
            producer.publish("found", routing_key=box.name)
        pools.reset()
        pool = pools.producers[wanted]
    assert box.bodies(len(frames)) == ["found"] * len(frames)
    proxy.heal()
    assert_recovers(pool, box)


def test_a_handshake_that_is_garbled(proxy: Proxy, amqp_url: str, box: Inbox) -> None:
    wanted = settings(through(proxy, amqp_url), connect_timeout=2 * SHORT)
    causes: list[BaseException | None] = []
    for at in (*PLACES, 20, 100, 300):
        proxy.play([(TO_CLIENT, Frame("connection.start", at), "garble", 0x81)], coming=1)
        began = time.monotonic()
        try:
            # Some of its bytes do not matter.
            with pools.producers[wanted].acquire() as producer:
                producer.publish("x", routing_key=box.name)
        except BrokerUnreachable as error:
            causes.append(error.__cause__)
        assert time.monotonic() - began < IN_TIME
        assert_sound(pools.producers[wanted].engine)
        pools.reset()
    assert len(causes) >= len(PLACES) - 2
    assert None not in causes
    proxy.heal()
    assert_recovers(pools.producers[wanted], box)


@dataclass
class Tries:
    """What publishers were told, and what arrived."""

    pool: Any
    proxy: Proxy
    box: Inbox

    def publish(
        self, script: list[Any], timeout: float = PATIENCE
    ) -> tuple[BaseException | None, int]:
        """The error of a publish that meets *script*, and how many copies are found."""
        message_id = uuid.uuid4().hex
        with self.pool.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=self.box.name, retry=False)
        for link in self.proxy.alive:
            link.play(script)
        error: BaseException | None = None
        began = time.monotonic()
        try:
            with self.pool.acquire(timeout=PATIENCE) as producer:
                producer.publish(
                    "x", routing_key=self.box.name, message_id=message_id, timeout=timeout
                )
        except Exception as caught:
            error = caught
        assert time.monotonic() - began < IN_TIME
        self.proxy.heal()
        assert_sound(self.pool.engine)
        assert self.pool.stats().lent == 0
        found = [one.properties.get("message_id") for one in self.box.messages(1)]
        return error, found.count(message_id)


@pytest.fixture
def tries(proxy: Proxy, amqp_url: str, box: Inbox) -> Callable[..., Tries]:
    return lambda **given: Tries(
        pools.producers[
            settings(through(proxy, amqp_url), **{"confirm_timeout": PATIENCE, **given})
        ],
        proxy,
        box,
    )


#: The frames of a publish.
SENT = ("basic.publish", "header", "body")


@pytest.mark.parametrize("action", ["cut", "reset", "half-close"])
@pytest.mark.parametrize("which", SENT)
def test_a_publish_that_is_cut(tries: Callable[..., Tries], action: str, which: str) -> None:
    one = tries()
    for at in (0, 7, -1):
        error, found = one.publish([(TO_SERVER, Frame(which, at), action)])
        assert isinstance(error, OperationalError | OSError | amqp.exceptions.ConnectionError)
        # The broker never saw its end.
        assert found == 0
    assert_recovers(one.pool, one.box)


@pytest.mark.parametrize("action", ["cut", "reset", "half-close"])
def test_a_confirm_that_is_cut(tries: Callable[..., Tries], action: str) -> None:
    one = tries()
    for at in (0, 5, 7, 12, -1):
        error, found = one.publish([(TO_CLIENT, Frame("basic.ack", at), action)])
        assert isinstance(error, PublishUnknown)
        assert error.message_id in str(error)
        assert found == 1
    assert_recovers(one.pool, one.box)


def test_a_publish_that_is_cut_is_tried_again(tries: Callable[..., Tries]) -> None:
    one = tries(retry={"max_retries": 3})
    for which in SENT:
        assert one.publish([(TO_SERVER, Frame(which, 5), "reset")]) == (None, 1)
    # Twice there, and told by one message_id.
    assert one.publish([(TO_CLIENT, Frame("basic.ack", 5), "cut")]) == (None, 2)
    assert_recovers(one.pool, one.box)


@pytest.mark.parametrize("which", [*SENT, "basic.ack"])
def test_a_publish_that_is_garbled(tries: Callable[..., Tries], which: str) -> None:
    """A byte of what frames it, that is: of another message's body nobody could tell."""
    one = tries()
    direction = TO_CLIENT if which == "basic.ack" else TO_SERVER
    for at in (0, 2, 4, -1) if which == "body" else (0, 2, 4, 7, 9, -1):
        error, found = one.publish([(direction, Frame(which, at), "garble", 0x81)], SHORT)
        if error is None:
            # RabbitMQ does not mind every octet of a content header.
            assert found == 1
            continue
        assert isinstance(
            error,
            (
                OperationalError,
                OSError,
                *amqp.Connection.connection_errors,
                *amqp.Connection.channel_errors,
            ),
        ), repr(error)
        if found:
            assert isinstance(error, PublishUnknown)
    assert_recovers(one.pool, one.box)


@pytest.mark.parametrize(
    "fault", [("silence",), ("drop",), ("drip", 0.05)], ids=lambda fault: fault[0]
)
@pytest.mark.parametrize("direction, which", [(TO_SERVER, "header"), (TO_CLIENT, "basic.ack")])
def test_a_publish_that_gets_lost(
    tries: Callable[..., Tries], direction: str, which: str, fault: tuple[Any, ...]
) -> None:
    one = tries()
    error, found = one.publish([(direction, Frame(which, 3), *fault)], SHORT)
    if fault[0] == "drip" and error is None:
        # An ack is over within the second.
        assert found == 1
    else:
        assert isinstance(error, PublishUnknown)
    assert_recovers(one.pool, one.box)


def test_a_network_that_swallows_everything(tries: Callable[..., Tries]) -> None:
    one = tries(connect_timeout=SHORT)
    with one.pool.acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=one.box.name)
        one.proxy.blackhole()
        began = time.monotonic()
        with pytest.raises(PublishUnknown):
            producer.publish("x", routing_key=one.box.name, timeout=SHORT)
        for timeout in (None, SHORT):
            with pytest.raises(BrokerUnreachable):
                one.pool.acquire(timeout=timeout)
        assert time.monotonic() - began < IN_TIME
    one.proxy.heal()
    assert_recovers(one.pool, one.box)


# -- what is no broker -------------------------------------------------------------------------------------------------

HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>no</html>"


def ends(sock: socket.socket) -> None:
    sock.recv(8)


def without_end(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"\x01" * 65536)


def drips(sock: socket.socket) -> None:
    """The beginning of a frame, byte by byte, and never its end."""
    start = b"\x01\x00\x00\x00\x01\x00\x00" + b"\x00" * 1000
    for byte in start:
        sock.sendall(bytes([byte]))
        time.sleep(0.05)


def huge(sock: socket.socket) -> None:
    """A frame of 4 GiB."""
    sock.sendall(struct.pack(">BHI", 1, 0, 0xFFFFFFFF))
    while sock.recv(100):
        pass


def answers(data: bytes) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        sock.recv(8)
        sock.sendall(data)
        while sock.recv(100):
            pass

    return serve


#: What stands on the broker's port, and what the error says of it.
NO_BROKERS = [
    pytest.param(answers(HTTP), "HTTP", id="HTTP"),
    pytest.param(answers(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH", id="SSH"),
    pytest.param(answers(b"-ERR unknown command 'AMQP'\r\n"), "Redis", id="Redis"),
    pytest.param(answers(b"220 mail.example ESMTP\r\n"), "mail", id="SMTP"),
    pytest.param(answers(b"AMQP\x01\x01\x00\x0a"), "another version", id="AMQP 0-10"),
    pytest.param(answers(b"AMQP\x00\x01\x00\x00"), "another version", id="AMQP 1.0"),
    pytest.param(answers(b"\x15\x03\x01\x00\x02\x02\x46"), "TLS", id="TLS"),
    pytest.param(answers(os.urandom(1 << 16)), None, id="rubbish"),
    pytest.param(
        answers(b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x63\xce"), None, id="no such method"
    ),
    pytest.param(without_end, None, id="without end"),
    pytest.param(ends, "closed", id="ends"),
    pytest.param(huge, None, id="a frame of 4 GiB"),
    pytest.param(drips, None, id="drips"),
    pytest.param(lambda sock: sock.recv(8) and sock.recv(8), "said nothing|reachable", id="silent"),
]


@pytest.mark.parametrize("serve, words", NO_BROKERS)
def test_what_is_no_broker(
    nothing_leaks: None, serve: Callable[[socket.socket], None], words: str | None
) -> None:
    with Peer(serve) as peer:
        url = f"amqp://guest:{SECRET}@{peer.address}//"
        # Who says what he is, is told; who does not, is not waited for.
        says_it = words is not None and "nothing" not in words
        pool = pools.producers[settings(url, connect_timeout=PATIENCE if says_it else SHORT)]
        for patience in (None, SHORT / 2):
            began = time.monotonic()
            with pytest.raises(
                BrokerUnreachable, match=words if patience is None else None
            ) as caught:
                pool.acquire(timeout=patience)
            assert time.monotonic() - began < IN_TIME
            said = f"{caught.value} {caught.value.__cause__!r}"
            assert pool.name in said
            assert SECRET not in said
            del caught
        assert_sound(pool.engine)
        stats = pool.stats()
        assert (stats.lent, stats.waiting) == (0, 0)
        pools.reset()
        eventually(lambda: not sockets_to(peer.port))


def test_a_broker_after_what_is_none(nothing_leaks: None, amqp_url: str, box: Inbox) -> None:
    """One that is wrongly configured does not stand in the way of the next."""
    with Peer(answers(HTTP)) as peer:
        pool = pools.producers[settings(f"amqp://{peer.address}//;{amqp_url}")]
        assert_recovers(pool, box)


# -- what a broker refuses ---------------------------------------------------------------------------------------------


def refused(pool: Any, error: type[BaseException], match: str, **given: Any) -> Any:
    """The error of a publish that must fail, in time."""
    began = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        with pool.acquire(timeout=PATIENCE) as producer:
            producer.publish(given.pop("body", "x"), **given)
    assert time.monotonic() - began < IN_TIME
    assert SECRET not in str(caught.value)
    assert_sound(pool.engine)
    assert pool.stats().lent == 0
    return caught.value


def test_an_exchange_that_does_not_exist(nothing_leaks: None, amqp_url: str, box: Inbox) -> None:
    pool = pools.producers[settings(amqp_url, retry={"max_retries": 3})]
    for _ in range(3):
        error = refused(
            pool,
            amqp.exceptions.NotFound,
            "no exchange",
            exchange=f"no-{SECRET[:8]}",
            routing_key="x",
        )
        assert error.reply_code == 404
    assert_recovers(pool, box)


def test_an_exchange_that_does_not_exist_unconfirmed(
    nothing_leaks: None, amqp_url: str, box: Inbox
) -> None:
    """Nobody can know in time; the pool gets over it."""
    pool = pools.producers[settings(amqp_url, confirm=False, check_after=0)]
    for _ in range(3):
        # The broker's word on the one before may come between the check and the publish.
        with (
            contextlib.suppress(amqp.exceptions.NotFound),
            pool.acquire(timeout=PATIENCE) as producer,
        ):
            producer.publish("x", exchange=f"no-{SECRET[:8]}", routing_key="x")
    assert_sound(pool.engine)

    def published() -> bool:
        """Whether a message arrives: one on a connection that the broker has given up in this moment does not."""
        body = uuid.uuid4().hex
        try:
            with pool.acquire(timeout=PATIENCE) as producer:
                producer.publish(body, routing_key=box.name)
        except amqp.exceptions.NotFound:
            # The broker's word on the one before came between the check and the publish.
            return False
        return body in box.bodies()

    eventually(published)
    assert_recovers(pool, box)


def test_a_body_that_is_refused_by_the_queue(
    nothing_leaks: None, amqp_url: str, box: Inbox
) -> None:
    full = f"full-{uuid.uuid4().hex}"
    with kombu.Connection(amqp_url) as connection:
        channel = connection.default_channel
        channel.queue_declare(
            full, durable=False, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        try:
            pool = pools.producers[settings(amqp_url, retry={"max_retries": 3})]
            with pool.acquire(timeout=PATIENCE) as producer:
                producer.publish("fits", routing_key=full)
            opened = pool.stats().opened
            for _ in range(3):
                error = refused(
                    pool, PublishNacked, "was refused: at least one of its queues", routing_key=full
                )
                assert error.message_id in str(error)
            # Its connection is as good as before.
            assert pool.stats().opened == opened
            assert channel.queue_declare(full, passive=True)[1] == 1
        finally:
            channel.queue_delete(full)
    assert_recovers(pool, box)


def test_what_a_user_may_not(
    nothing_leaks: None, node: Node, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(node.url)
    user = f"limited-{uuid.uuid4().hex[:8]}"
    node.add_user(user, SECRET, write="^amq[.]default$")
    pool = pools.producers[settings(node.url_of(user, SECRET), retry={"max_retries": 3})]
    for _ in range(3):
        error = refused(
            pool,
            amqp.exceptions.AccessRefused,
            "ACCESS_REFUSED",
            exchange="amq.fanout",
            routing_key="x",
        )
        assert error.reply_code == 403
    assert_recovers(pool, box)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            lambda url: url.replace("guest:guest@", f"guest:{SECRET}@"),
            amqp.exceptions.AccessRefused,
            "ACCESS_REFUSED",
        ),
        (lambda url: f"{url.rstrip('/')}/missing", amqp.exceptions.NotAllowed, "not found"),
    ],
    ids=["wrong password", "missing virtual host"],
)
def test_who_may_not_come_in(
    nothing_leaks: None,
    node: Node,
    change: Callable[[str], str],
    error: type[Exception],
    words: str,
) -> None:
    pool = pools.producers[settings(change(node.url))]
    for timeout in (None, PATIENCE):
        began = time.monotonic()
        # It would be the same tomorrow, so nobody waits.
        with pytest.raises(error, match=words) as caught:
            pool.acquire(timeout=timeout)
        assert time.monotonic() - began < IN_TIME
        assert SECRET not in str(caught.value) + str(caught.value.__notes__)
        assert pool.name in str(caught.value.__notes__)
        del caught
    assert_sound(pool.engine)
    # A probe may be under way that nobody waits for.
    eventually(lambda: pool.stats().size == 0)


# -- what is too large -------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that this process has and uses."""
    # What is free is given back first: on a busy machine glibc keeps a hundred MiB where something small lies above it.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


#: As much as RabbitMQ 3 takes unless it is told otherwise; 4 takes 16 MiB.
MOST = 128 * MIB


@pytest.fixture
def takes_128_mib() -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ({"max_message_size": str(MOST)}) as broker:
        yield broker


@pytest.mark.slow
def test_a_body_of_128_mib_and_one_byte_more(
    takes_128_mib: PrivateRabbitMQ, nothing_leaks: None, inbox: Callable[[str], Inbox]
) -> None:
    url = takes_128_mib.url
    box = inbox(url)
    pool = pools.producers[
        settings(url, confirm_timeout=PATIENCE, retry={"max_retries": 3}, limit=LIMIT)
    ]
    assert_recovers(pool, box)
    gc.collect()
    before = resident()
    with pool.acquire(timeout=PATIENCE) as producer:
        producer.publish(b"x" * MOST, routing_key=box.name)
    assert [len(body) for body in box.bodies(1)] == [MOST]
    for _ in range(2):
        refused(
            pool,
            amqp.exceptions.PreconditionFailed,
            "larger than",
            body=b"x" * (MOST + 1),
            routing_key=box.name,
        )
    assert_recovers(pool, box)
    pools.reset()
    gc.collect()
    eventually(lambda: resident() - before < 64 * MIB)


@pytest.mark.slow
def test_a_body_over_the_brokers_limit() -> None:
    with PrivateRabbitMQ({"max_message_size": "65536"}) as broker:
        box = Inbox(broker.url, "small")
        pool = pools.producers[settings(broker.url)]
        with pool.acquire(timeout=PATIENCE) as producer:
            producer.publish(b"x" * 65536, routing_key=box.name)
        for _ in range(3):
            error = refused(
                pool,
                amqp.exceptions.PreconditionFailed,
                "larger than",
                body=b"x" * 65537,
                routing_key=box.name,
            )
            assert error.reply_code == 406
        assert_recovers(pool, box)
        # In a batch it spoils the rest, and everybody's end is known.
        with pytest.raises(OperationalError, match="batch"):
            with pool.acquire(timeout=PATIENCE) as producer, producer.batch():
                for size in (1, 65537, 1):
                    producer.publish(b"x" * size, routing_key=box.name)
        assert_recovers(pool, box)
        pools.reset()
