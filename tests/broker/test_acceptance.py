"""Acceptance checks with exact bounds, on every kind of broker that has sockets; see docs/explanation/acceptance.md.

A bound in seconds holds for the best of a few measurements: the others are a busy machine's.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import RecoverableConnectionError
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.engine import fork as fork_module
from kombu_pools_ext.engine import lease as lease_module
from kombu_pools_ext.engine import pool as pool_module
from kombu_pools_ext.engine.breaker import AT_ONCE
from kombu_pools_ext.errors import BatchFailed, Outcome, PoolTimeout, PublishNacked
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, BROKERS, confirming, in_child, sockets_to, through
from tests.broker.test_confirms import full  # noqa: F401  # a fixture
from tests.broker.test_fork import SOUND, Parent, _skipping_the_hook
from tests.engine.fakes import min_of
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

MakeInbox = Callable[[str], Inbox]

#: Connection.OpenOk, which only a server says: RabbitMQ answers with Connection.Close, and reads no further.
UNEXPECTED = b"\x01\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x29\x00\xce"
#: Every connection is checked before it is lent, however fresh.
ALWAYS = PoolOptions(check_after=0.0)


def with_each(brokers: list[Any], value: object) -> list[Any]:
    """Parameters: each of *brokers*, and *value*."""
    return [pytest.param(*one.values, value, marks=one.marks) for one in brokers]


@pytest.fixture
def proxy(broker_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(broker_url)


@pytest.fixture
def make(broker_url: str, proxy: Proxy) -> Iterator[Callable[..., pools.ProducerPool]]:
    """Makes a pool behind the proxy."""
    made: list[pools.ConnectionPool] = []

    def make(*, confirm: bool = True, **options: Any) -> pools.ProducerPool:
        url = through(proxy, broker_url)
        connection = confirming(url) if confirm else kombu.Connection(url)
        made.append(pools.ConnectionPool(connection, **{"limit": 10, "options": ALWAYS, **options}))
        return pools.ProducerPool(made[-1])

    yield make
    for one in made:
        one.force_close_all()


def warm(producers: pools.ProducerPool, count: int, name: str) -> None:
    """Have so many idle connections, each used once."""
    leases = [producers.acquire(timeout=PATIENCE) for _ in range(count)]
    for producer in leases:
        producer.publish("warm", routing_key=name)
    for producer in leases:
        producer.release()


def wait_for_words(sockets: Collection[int]) -> None:
    """Until every one of these descriptors has something to read, or its end."""
    assert sockets
    # One by one, for eventlet tells of one at a time.
    eventually(lambda: all(select.select([one], [], [], 0)[0] for one in sockets))


# -- 8: the caller's time ------------------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.threads
@pytest.mark.parametrize("where", ["the look-up", "the connect", "the handshake"])
def test_a_timeout_of_200_ms_ends_within_300_ms(
    monkeypatch: pytest.MonkeyPatch, mute: Proxy, where: str
) -> None:
    answered = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        answered.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    url = f"amqp://{mute.address}//"
    if where == "the look-up":
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        url = "amqp://far.invalid//"
    elif where == "the connect":
        mute.blackhole()
    connection = kombu.Connection(url, connect_timeout=1)

    def waited() -> float:
        pool = pools.ConnectionPool(connection, limit=1)
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)
        return time.monotonic() - began

    assert 0.2 <= min_of(waited, enough=0.3) < 0.3
    answered.set()


# -- 10, 11: what died while it was idle ---------------------------------------------------------------------------


@pytest.mark.timing
def test_ten_stale_connections_cost_at_most_100_ms_over_one_connect(
    make: Callable[..., pools.ProducerPool], proxy: Proxy, queue: str
) -> None:
    """With a round trip of 20 ms: one for each of the ten would show."""

    def excess() -> float:
        stale, fresh = make(), make(limit=1)
        warm(stale, 10, queue)
        sockets = sockets_to(proxy.port).values()
        proxy.cut()
        wait_for_words(sockets)
        proxy.round_trip(0.02)
        seconds = []
        for producers in (fresh, stale):
            began = time.monotonic()
            with producers.acquire(timeout=PATIENCE):
                seconds.append(time.monotonic() - began)
        proxy.heal()
        assert stale.connections.stats().closed == {"dead": 10}
        assert stale.connections.stats().opened == 11
        for producers in (fresh, stale):
            producers.connections.force_close_all()
        return seconds[1] - seconds[0]

    assert min_of(excess, enough=0.1) <= 0.1


@pytest.mark.parametrize(
    "broker_url, end",
    [
        *with_each(BROKERS, "FIN"),
        *with_each(BROKERS, "RST"),
        # AMQP alone has words for it.
        *with_each(AMQP, "Connection.Close"),
    ],
    indirect=["broker_url"],
)
def test_no_end_of_an_idle_connection_reaches_who_borrows_it(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    broker_url: str,
    inbox: MakeInbox,
    end: str,
) -> None:
    box, producers = inbox(broker_url), make()
    leases = [producers.acquire(timeout=PATIENCE) for _ in range(3)]
    established = [one.connection.connection for one in leases]
    for producer in leases:
        producer.publish("before", routing_key=box.name)
        producer.release()
    sockets = sockets_to(proxy.port).values()
    if end == "Connection.Close":
        for one in established:
            one._transport.write(UNEXPECTED)
    else:
        proxy.cut(rst=end == "RST")
    wait_for_words(sockets)
    for _ in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("after", routing_key=box.name)
    assert producers.connections.stats().closed == {"dead": 3}
    assert sorted(box.bodies(6)) == ["after"] * 3 + ["before"] * 3


# -- 12: a peer that fell silent -----------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.parametrize(
    "broker_url, confirm",
    # Redis answers each command.
    [*with_each(BROKERS, True), *with_each(AMQP, False)],
    indirect=["broker_url"],
)
def test_a_publish_to_a_silent_peer_ends_within_its_timeout_exit_included(
    make: Callable[..., pools.ProducerPool],
    proxy: Proxy,
    broker_url: str,
    queue: str,
    confirm: bool,
) -> None:
    # Unconfirmed it ends when the system has taken all of it, so let that be more than it takes.
    body = b"x" if confirm else b"x" * 32_000_000

    def took() -> float:
        producers = make(confirm=confirm)
        warm(producers, 1, queue)
        proxy.silence()
        began = time.monotonic()
        # In the words of kombu or of the drivers.
        with pytest.raises(
            (
                OperationalError,
                OSError,
                *producers.connections.connection.recoverable_connection_errors,
            )
        ):
            with producers.acquire(timeout=PATIENCE) as producer:
                began = time.monotonic()
                producer.publish(body, routing_key=queue, timeout=0.3)
        seconds = time.monotonic() - began
        assert producers.connections.stats().closed == {"broken": 1}
        proxy.heal()
        return seconds

    assert 0.3 <= min_of(took, enough=0.4) < 0.4


# -- 13: an outage ---------------------------------------------------------------------------------------------------


def test_fifty_who_wait_for_a_broker_connect_one_at_a_time(
    amqp_url: str, proxied: Callable[[str], Proxy]
) -> None:
    proxy = proxied(amqp_url)
    proxy.silence()
    origin = confirming(through(proxy, amqp_url), connect_timeout=0.1)
    pool = pools.ConnectionPool(origin, limit=50, options=PoolOptions(outage_patience=PATIENCE))
    opens: list[tuple[float, float, bool]] = []
    really_open = pool._driver.open

    def open_and_note() -> Any:
        began, well = time.monotonic(), False
        try:
            item = really_open()
            well = True
            return item
        finally:
            opens.append((began, time.monotonic(), well))

    pool._driver.open = open_and_note  # type: ignore[method-assign]
    together, served = threading.Event(), []

    def borrow() -> None:
        with pool.acquire(timeout=PATIENCE):
            served.append(1)
            together.wait(PATIENCE)

    threads = [threading.Thread(target=borrow) for _ in range(50)]
    for thread in threads:
        thread.start()
    # Of those that began before the outage was known there are no more than that.
    eventually(lambda: pool.stats().open_failures >= AT_ONCE + 3)
    eventually(lambda: pool.stats().waiting == 50)
    # They are short of time no longer: fifty handshakes keep a busy machine busy.
    origin.connect_timeout = PATIENCE
    proxy.heal()
    eventually(lambda: len(served) == 50)
    together.set()
    for thread in threads:
        thread.join(PATIENCE)
    opens.sort()
    known = min(ended for _, ended, well in opens if not well)
    back = min(ended for _, ended, well in opens if well)
    probes = [one for one in opens if known <= one[0] < back]
    assert len(probes) >= 3
    assert most_at_once(probes) == 1
    recovery = [one for one in opens if one[0] >= back]
    # The first one by itself, then no more than there ever are.
    assert all(later[0] >= recovery[0][1] for later in recovery[1:])
    assert most_at_once(recovery) <= AT_ONCE
    assert pool.stats().opened == 50
    pool.force_close_all()


def most_at_once(spans: list[tuple[float, float, bool]]) -> int:
    return max(sum(began <= moment < ended for began, ended, _ in spans) for moment, _, _ in spans)


# -- 22: a fork that skips the hooks, where no page can be wiped ---------------------------------------------------


@pytest.mark.forks
@pytest.mark.threads
def test_the_process_id_alone_saves_a_child_that_skipped_the_hooks(
    monkeypatch: pytest.MonkeyPatch,
    amqp_url: str,
    proxied: Callable[[str], Proxy],
    inbox: MakeInbox,
) -> None:
    mark = fork_module._PidMark()
    for module, name in ((fork_module, "mark"), (lease_module, "mark"), (pool_module, "_mark")):
        monkeypatch.setattr(module, name, mark)
    parent = Parent(amqp_url, proxied(amqp_url), inbox(amqp_url))
    parent.open(2)
    inherited = set(sockets_to(parent.proxy.port))
    with parent.unharmed():
        answer = in_child(lambda: parent.work_of_child(inherited, "child"), _skipping_the_hook)
        assert answer == SOUND
    parent.assert_all_arrived("child")


# -- 24, 25: confirms ------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """What gevent.Timeout is: no Exception."""


@pytest.mark.threads
def test_after_an_interrupted_confirm_the_late_ack_is_nobodys(
    amqp_url: str,
    proxied: Callable[[str], Proxy],
    full: str,  # noqa: F811
    queue: str,
) -> None:
    proxy = proxied(amqp_url)
    producers = pools.ProducerPool(
        pools.ConnectionPool(confirming(through(proxy, amqp_url)), limit=1)
    )

    def handler(signum: int, frame: Any) -> None:
        raise Interrupted

    def interrupt() -> None:
        said = proxy.links[0]
        eventually(lambda: b"of the interrupted" in said.sent(TO_SERVER))
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue)
            channel = producer.channel
            proxy.hold(TO_CLIENT)
            sender = threading.Thread(target=interrupt)
            sender.start()
            with pytest.raises(Interrupted):
                producer.publish("of the interrupted", routing_key=queue)
            sender.join(PATIENCE)
            # It comes now, for a message of which nobody knows any more.
            proxy.heal()
            with pytest.raises(RecoverableConnectionError, match="not used any more"):
                producer.publish("x", routing_key=full)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert producers.connections.stats().closed == {"broken": 1}
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.channel is not channel
        with pytest.raises(PublishNacked):
            producer.publish("x", routing_key=full)
    producers.connections.force_close_all()


def test_connection_close_in_the_middle_of_a_batch(
    amqp_url: str,
    full: str,  # noqa: F811
    inbox: MakeInbox,
) -> None:
    box = inbox(amqp_url)
    producers = pools.ProducerPool(pools.ConnectionPool(confirming(amqp_url), limit=1))
    sent: list[str] = []
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch() as batch:

            def publish(name: str, count: int, **options: Any) -> None:
                for _ in range(count):
                    sent.append(str(len(sent)))
                    producer.publish(sent[-1], routing_key=name, message_id=sent[-1], **options)

            publish(box.name, 5)
            publish(full, 1)
            publish(f"{box.name}-nobody", 1, mandatory=True)
            with pytest.raises(BatchFailed):
                batch.flush()
            publish(box.name, 5)
            producer.connection.connection._transport.write(UNEXPECTED)
            publish(box.name, 1)
    results = caught.value.results
    # Each once; those of which the broker had told stay what they were.
    assert results.keys() == set(sent)
    told = [Outcome.ACKED] * 5 + [Outcome.NACKED, Outcome.RETURNED]
    assert [results[one] for one in sent[:7]] == told
    # Of the others it had read five before it closed, and the last one never.
    assert {results[one] for one in sent[7:12]} <= {Outcome.ACKED, Outcome.UNKNOWN}
    assert results[sent[12]] is Outcome.UNKNOWN
    there = set(box.bodies())
    assert sent[12] not in there
    assert {one for one in sent if results[one] is Outcome.ACKED} <= there
    assert there <= {one for one in sent if results[one] in (Outcome.ACKED, Outcome.UNKNOWN)}
    assert producers.connections.stats().closed == {"broken": 1}
    producers.connections.force_close_all()
