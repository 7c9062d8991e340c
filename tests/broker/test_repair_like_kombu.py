"""The same steps on a connection of kombu's pool and of ours, whose broker goes away meanwhile: the same outcomes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any, ClassVar

import kombu
import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu.common import maybe_declare
from kombu.mixins import ConsumerProducerMixin

from tests.brokers import PrivateRedis
from tests.conftest import _private
from tests.proxy import Proxy

from .common import KOMBU, OURS, PATIENCE, eventually, within
from .rig import port_of, sockets_to, through

pytestmark = [
    pytest.mark.threads,
    # kombu leaves sockets of connections that it has replaced to the garbage collector. What ours leave is counted.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored (in.|while finalizing socket) <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]

#: What a retry waits for at most: nothing, where a broker is up.
QUICK = {"max_retries": 3, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What kombu has left is collected here, and not in another test."""
    yield
    gc.collect()


class Broken:
    """What a case has: a lease whose connection has broken, names, and what brings the brokers back or takes them."""

    def __init__(self, lease: Any, queue: str, second: str, away: Callable[[], None]) -> None:
        self.lease = lease
        self.queue = queue
        #: Another broker, which is up.
        self.second = second
        #: Makes every broker go away.
        self.away = away

    def entity(self) -> Queue:
        return Queue(self.queue, routing_key=self.queue, durable=False, auto_delete=True)


class Declarer:
    """Something that is revived."""

    def __init__(self, broken: Broken) -> None:
        self.broken = broken
        self.revived = 0
        self.channel = broken.lease.default_channel

    def revive(self, channel: Any) -> None:
        self.revived += 1
        self.channel = channel

    def declare(self, *args: Any, **kwargs: Any) -> str:
        declared: str = self.broken.entity()(self.channel).queue_declare().queue
        return declared


Case = Callable[[Broken], Iterator[None]]
CASES: dict[str, Callable[..., Any]] = {}


def case(steps: Callable[[Broken], Any]) -> Callable[[Broken], Any]:
    """A generator function: what is before its ``yield`` comes before the end of the broker; it returns its outcome."""
    CASES[steps.__name__] = steps
    return steps


@case
def ensure(broken: Broken) -> Any:
    one = Declarer(broken)
    yield
    declared = broken.lease.ensure(one, one.declare, **QUICK)()
    return declared == broken.queue, one.revived


@case
def ensure_with_all_its_words(broken: Broken) -> Any:
    one, told = Declarer(broken), []
    yield
    declared = broken.lease.ensure(
        one,
        one.declare,
        errback=lambda error, seconds: told.append(("error", isinstance(error, OSError))),
        on_revive=lambda channel: told.append(("revived", channel is one.channel)),
        retry_errors=(ZeroDivisionError,),
        **QUICK,
    )()
    return declared == broken.queue, told[-1]


@case
def ensure_of_other_errors(broken: Broken) -> Any:
    one, tries = Declarer(broken), []

    def declare() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ZeroDivisionError
        return one.declare()

    yield
    return (
        broken.lease.ensure(one, declare, retry_errors=(ZeroDivisionError,), **QUICK)()
        == broken.queue,
        len(tries),
    )


@case
def ensure_once_too_few(broken: Broken) -> Any:
    one = Declarer(broken)
    yield
    broken.lease.ensure(one, one.declare, **{**QUICK, "max_retries": 0})()


@case
def autoretry(broken: Broken) -> Any:
    channel = broken.lease.default_channel
    yield

    def declare(channel: Any) -> str:
        declared: str = broken.entity()(channel).queue_declare().queue
        return declared

    declared, used = broken.lease.autoretry(declare, channel, **QUICK)()
    return declared == broken.queue, used is broken.lease.default_channel


@case
def ensure_connection(broken: Broken) -> Any:
    yield
    try:
        broken.lease.drain_events(timeout=0.1)
    except OSError:
        pass
    broken.lease.collect()
    same = broken.lease.ensure_connection(**QUICK) is broken.lease
    return same, broken.lease.connected, broken.lease.default_channel.connection is not None


@case
def ensure_connection_without_a_collect(broken: Broken) -> Any:
    yield
    try:
        Declarer(broken).declare()
    except Exception:
        pass
    broken.lease.ensure_connection(**QUICK)
    return broken.lease.connected, Declarer(broken).declare() == broken.queue


@case
def connect(broken: Broken) -> Any:
    yield
    broken.lease.collect()
    broken.lease.connect()
    return broken.lease.connected


@case
def a_channel_of_ones_own(broken: Broken) -> Any:
    broken.lease.channel()
    yield
    broken.lease.collect()
    channel = broken.lease.channel()
    return broken.entity()(channel).queue_declare().queue == broken.queue


@case
def switch(broken: Broken) -> Any:
    yield
    broken.lease.switch(broken.second)
    before = broken.lease.connected
    broken.lease.connect()
    return before, broken.lease.connected, Declarer(broken).declare() == broken.queue


@case
def switch_while_all_is_well(broken: Broken) -> Any:
    broken.lease.switch(broken.second)
    broken.lease.connect()
    yield
    return broken.lease.connected, Declarer(broken).declare() == broken.queue


@case
def the_next_of_the_list(broken: Broken) -> Any:
    yield
    broken.lease.maybe_switch_next()
    broken.lease.collect()
    broken.lease.ensure_connection(**QUICK)
    return broken.lease.connected


@case
def a_producer_that_tries_again(broken: Broken) -> Any:
    producer = Producer(broken.lease)
    Declarer(broken).declare()
    yield
    producer.publish("x", routing_key=broken.queue, retry=True, retry_policy=QUICK)
    return Declarer(broken).declare() == broken.queue


@case
def a_producer_that_declares(broken: Broken) -> Any:
    producer = Producer(broken.lease)
    yield
    producer.publish(
        "x",
        routing_key=broken.queue,
        retry=True,
        retry_policy=QUICK,
        declare=[broken.entity()],
    )
    return "published"


@case
def a_producer_without_retry(broken: Broken) -> Any:
    producer = Producer(broken.lease)
    producer.maybe_declare(broken.entity())
    yield
    broken.entity()(producer.channel).queue_declare()


@case
def maybe_declare_again(broken: Broken) -> Any:
    channel = broken.lease.default_channel
    first = maybe_declare(broken.entity(), channel)
    again = maybe_declare(broken.entity(), channel)
    yield
    other = Queue(f"{broken.queue}-2", durable=False, auto_delete=True)
    declared = maybe_declare(other, channel, retry=True, **QUICK)
    # What was declared on the old connection is forgotten.
    return first, again, declared, maybe_declare(broken.entity(), broken.lease.default_channel)


@case
def a_simple_queue(broken: Broken) -> Any:
    simple = broken.lease.SimpleQueue(broken.entity(), no_ack=True)
    yield
    simple.put("x")
    return simple.get(timeout=0.2).payload


@case
def a_simple_queue_afterwards(broken: Broken) -> Any:
    yield
    broken.lease.collect()
    broken.lease.ensure_connection(**QUICK)
    simple = broken.lease.SimpleQueue(broken.entity(), no_ack=True)
    simple.put("x")
    got = simple.get(timeout=PATIENCE).payload
    simple.close()
    return got


@case
def a_consumer(broken: Broken) -> Any:
    got: list[Any] = []
    consumer = Consumer(
        broken.lease.default_channel,
        [broken.entity()],
        no_ack=True,
        callbacks=[lambda body, message: got.append(body)],
    )
    yield
    broken.lease.ensure(consumer, consumer.consume, **QUICK)()
    broken.lease.Producer().publish("x", routing_key=broken.queue)
    eventually(lambda: drained(broken.lease) or got)
    consumer.cancel()
    return got


@case
def drain_events_and_heartbeats(broken: Broken) -> Any:
    yield
    broken.lease.collect()
    broken.lease.ensure_connection(**QUICK)
    broken.lease.heartbeat_check()
    try:
        broken.lease.drain_events(timeout=0.05)
    except TimeoutError:
        return "nothing came", broken.lease.connected
    return "something came"


@case
def revive(broken: Broken) -> Any:
    before = broken.lease.default_channel
    yield
    broken.lease.collect()
    broken.lease.ensure_connection(**QUICK)
    channel = broken.lease.channel()
    broken.lease.revive(channel)
    return broken.lease.default_channel is not before, Declarer(broken).declare() == broken.queue


@case
def the_default_channel_by_itself(broken: Broken) -> Any:
    broken.lease.transport_options.update(QUICK)
    yield
    try:
        Declarer(broken).declare()
    except Exception:
        pass
    return broken.entity()(broken.lease.default_channel).queue_declare().queue == broken.queue


@case
def nobody_answers(broken: Broken) -> Any:
    told: list[float] = []
    yield
    broken.away()
    broken.lease.collect()
    broken.lease.ensure_connection(errback=lambda error, seconds: told.append(seconds), **QUICK)


@case
def nobody_answers_as_it_is(broken: Broken) -> Any:
    yield
    broken.away()
    broken.lease.collect()
    try:
        broken.lease._ensure_connection(reraise_as_library_errors=False, **QUICK)
    except OSError:
        return "the transport's own"
    except broken.lease.connection_errors:
        return "the transport's own"


@case
def nobody_answers_for_a_while(broken: Broken) -> Any:
    told: list[bool] = []
    yield
    broken.away()
    broken.lease.collect()
    try:
        broken.lease.ensure_connection(
            errback=lambda error, seconds: told.append(isinstance(error, Exception)), **QUICK
        )
    except kombu.exceptions.OperationalError:
        return told


@case
def a_worker_of_ones_own(broken: Broken) -> Any:
    class Worker(ConsumerProducerMixin):  # type: ignore[misc]  # kombu is untyped
        bodies: ClassVar[list[Any]] = []

        def __init__(self, connection: Any) -> None:
            self.connection = connection

        # kombu's pooled connections cannot be cloned.
        def establish_connection(self) -> Any:
            return nullcontext(self.connection)

        @property
        def producer_connection(self) -> Any:
            return self.connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([broken.entity()], no_ack=True, on_message=self.on_message)]

        def on_consume_ready(self, connection: Any, channel: Any, *args: Any, **more: Any) -> None:
            self.producer.publish("x", routing_key=broken.queue, retry=True, retry_policy=QUICK)

        def on_message(self, message: Any) -> None:
            self.bodies.append(message.payload)
            self.should_stop = True

    yield
    broken.lease.collect()
    broken.lease.ensure_connection(**QUICK)
    Worker.bodies.clear()
    Worker(broken.lease).run()
    return Worker.bodies, broken.lease.connected


def drained(connection: Any) -> None:
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass


def outcome(steps: Callable[[Broken], Any], broken: Broken, goes: Callable[[], None]) -> Any:
    """What comes of *steps*, in words that do not depend on whose pool it was."""
    play = steps(broken)
    next(play)
    goes()
    try:
        next(play)
    except StopIteration as end:
        return "returned", end.value
    except Exception as error:
        lease = broken.lease
        families = ("connection_errors", "channel_errors", "recoverable_connection_errors")
        return (
            "raised",
            isinstance(error, kombu.exceptions.OperationalError),
            [name for name in families if isinstance(error, getattr(lease, name))],
        )
    raise AssertionError(f"{steps.__name__} yields twice")


def lend(pools: ModuleType, urls: str, **options: Any) -> Any:
    """A leased connection, which is connected by now: kombu's are lent unconnected."""
    lease = pools.connections[Connection(urls, transport_options=options)].acquire(
        block=True, timeout=PATIENCE
    )
    assert lease.default_channel
    return lease


@contextmanager
def amqp_lease(
    pools: ModuleType, url: str, queue: str, *, several: bool, options: dict[str, Any]
) -> Iterator[tuple[Broken, Callable[[], None], list[int]]]:
    """A lease of a connection by way of one or two proxies; what is called to break it; their ports."""
    with Proxy("127.0.0.1", port_of(url)) as first, Proxy("127.0.0.1", port_of(url)) as second:
        urls = [through(proxy, url) for proxy in (first, second)][: 2 if several else 1]

        def goes() -> None:
            if several:
                first.refuse()
            first.cut()
            eventually(lambda: not first.alive)

        def away() -> None:
            for proxy in (first, second):
                proxy.refuse()
                proxy.cut()

        broken = Broken(lend(pools, ";".join(urls), **options), queue, through(second, url), away)
        try:
            yield broken, goes, [first.port, second.port]
        finally:
            broken.lease.release()
            pools.reset()


@pytest.mark.parametrize("confirm", [False, True], ids=["plain", "confirms"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_amqp(
    steps: Callable[[Broken], Any], several: bool, confirm: bool, amqp_url: str, queue: str
) -> None:
    found = {}
    for pools in (KOMBU, OURS):
        options = {"confirm_publish": True} if confirm else {}
        with amqp_lease(pools, amqp_url, queue, several=several, options=options) as (
            broken,
            goes,
            ports,
        ):
            found[pools] = (
                within(PATIENCE, lambda: outcome(steps, broken, goes)),
                ports.index(broken.lease.port),
            )
            if pools is OURS:
                pool = broken.lease._pool
                broken.lease.release()
                stats = pool.stats()
                assert (stats.lent, stats.size - stats.idle - len(pool.engine.state.closing)) == (
                    0,
                    0,
                )
                eventually(
                    lambda: sum(len(sockets_to(port)) for port in ports) == pool.stats().size  # noqa: B023
                )
    assert found[OURS] == found[KOMBU]


@pytest.fixture(scope="module")
def second() -> Iterator[PrivateRedis]:
    yield from _private(PrivateRedis, "Redis")


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_redis(
    steps: Callable[[Broken], Any],
    several: bool,
    private_redis: PrivateRedis,
    second: PrivateRedis,
    queue: str,
) -> None:
    found = {}
    for pools in (KOMBU, OURS):
        servers = (private_redis, second)
        for server in servers:
            server.start()

        def goes() -> None:
            private_redis.kill()
            if not several:
                private_redis.start()

        def away() -> None:
            for server in servers:  # noqa: B023
                server.kill()

        urls = ";".join(server.url for server in servers[: 2 if several else 1])
        broken = Broken(lend(pools, urls), queue, second.url, away)
        try:
            found[pools] = (
                within(PATIENCE, lambda: outcome(steps, broken, goes)),  # noqa: B023
                broken.lease.port == private_redis.port,
            )
        finally:
            broken.lease.release()
            pools.reset()
    assert found[OURS] == found[KOMBU]


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_memory(steps: Callable[[Broken], Any], memory_url: str, queue: str) -> None:
    found = {}
    for pools in (KOMBU, OURS):
        broken = Broken(lend(pools, memory_url), queue, f"{memory_url}-second", lambda: None)
        try:
            found[pools] = within(
                PATIENCE,
                lambda: outcome(steps, broken, broken.lease.collect),  # noqa: B023
            )
        finally:
            broken.lease.release()
            pools.reset()
    assert found[OURS] == found[KOMBU]
