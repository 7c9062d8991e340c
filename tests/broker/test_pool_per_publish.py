"""Pools that live shortly: what was made for one of them goes with it, and what it lent comes back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import kombu
import kombu.connection
import kombu.pools
import pytest
from kombu.exceptions import LimitExceeded

from kombu_pools_ext import pools
from kombu_pools_ext.broker import leased_producer, standalone
from kombu_pools_ext.engine import maintenance

from .common import PATIENCE, eventually
from .conftest import Inbox

MakePool = Callable[[str], Any]

#: Pools in one test, and how many objects more than before may be there, whatever the number of pools.
POOLS = 2_000
FEW = 150


@pytest.fixture(params=["ours", "kombu's"])
def make_pool(request: pytest.FixtureRequest) -> Any:
    """Makes a connection pool of ours, or of kombu's own, for our producers."""
    made = []

    def make(url: str, limit: int = 4, confirm: bool = False) -> Any:
        connection = kombu.Connection(
            url, transport_options={"confirm_publish": True} if confirm else {}
        )
        if request.param == "ours":
            made.append(pools.ConnectionPool(connection, limit=limit))
        else:
            made.append(kombu.connection.ConnectionPool(connection, limit=limit))
        return made[-1]

    yield make
    for pool in made:
        pool.force_close_all()


def objects() -> Counter[type[Any]]:
    """How many objects there are, by type, besides garbage, what coverage keeps for each thread, and eventlet's timers.

    eventlet's hub keeps a timer that was cancelled, in a tuple with its moment, until it would have been due.
    """
    gc.collect()
    everything = gc.get_objects()
    methods = [one for one in everything if type(one) is MethodType]
    found = Counter(map(type, everything))
    found[MethodType] -= sum(
        type(one.__self__).__module__.startswith("coverage.") for one in methods
    )
    timers = [kind for kind in found if kind.__module__ == "eventlet.hubs.timer"]
    found[tuple] -= sum(found.pop(kind) for kind in timers)
    return found


def assert_no_growth(before: Counter[type[Any]]) -> None:
    # What messages the memory transport keeps are dicts and lists of no pool.
    grown = objects() - before
    told = {kind: count for kind, count in grown.items() if kind not in (dict, list, tuple)}
    assert sum(told.values()) < FEW, grown
    assert max(grown.values(), default=0) < FEW, grown


# -- a pool for each publish -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confirm", [False, True], ids=["unconfirmed", "confirmed"])
@pytest.mark.parametrize("leases", [1, 3])
def test_a_pool_made_for_each_publish_leaves_nothing(
    url: str, inbox: Callable[[str], Inbox], make_pool: Any, confirm: bool, leases: int
) -> None:
    box, connections = inbox(url), make_pool(url, confirm=confirm)

    def publish() -> None:
        producers = pools.ProducerPool(connections)
        lent = [producers.acquire(timeout=PATIENCE) for _ in range(leases)]
        # The pool is gone while it still lends.
        del producers
        for producer in lent:
            producer.publish([], routing_key=box.name)
        for producer in lent:
            producer.release()

    for _ in range(20):
        publish()
    box.messages(20 * leases)
    before = objects()
    for _ in range(POOLS // 10):
        publish()
    box.messages(POOLS // 10 * leases)
    assert_no_growth(before)


def test_thousands_of_pools_leave_nothing_on_their_connection(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=2)
    with connections.acquire() as lease:
        item = lease.item

    def borrow() -> weakref.ref[Any]:
        producers = pools.ProducerPool(connections, limit=1)
        producers.acquire().release()
        return weakref.ref(producers)

    borrow()
    gc.collect()
    before = objects()
    for _ in range(POOLS):
        assert borrow()() is None
    assert_no_growth(before)
    assert not item.pooled_producers
    assert [entry.share for entry in connections.engine.state.idle] == [None]


def test_a_pool_that_stays_keeps_its_producers(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=2)
    made: list[Any] = []

    class Made(kombu.Producer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            super().__init__(*args, **kwargs)

    producers = pools.ProducerPool(connections, Producer=Made)
    for _ in range(3):
        producers.acquire().release()
        gc.collect()
    assert len(made) == 1


def test_a_producer_class_for_each_publish_leaves_nothing(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=2)

    def borrow() -> None:
        class Own(kombu.Producer):
            pass

        producers = pools.ProducerPool(connections, Producer=Own)
        producers.acquire().release()
        producers.create_producer().release()

    for _ in range(leased_producer.MOST_CLASSES + 1):
        borrow()
    assert len(leased_producer.view_types) <= leased_producer.MOST_CLASSES
    assert len(standalone._types) <= leased_producer.MOST_CLASSES


def test_a_pool_dropped_while_it_lends_gets_its_producer_back(
    url: str, inbox: Callable[[str], Inbox], make_pool: Any
) -> None:
    box, connections = inbox(url), make_pool(url, limit=1)
    producer = pools.ProducerPool(connections, limit=1).acquire(timeout=PATIENCE)
    gc.collect()
    producer.publish("still here", routing_key=box.name)
    with pytest.raises(LimitExceeded):
        connections.acquire()
    producer.release()
    connections.acquire().release()
    assert box.bodies(1) == ["still here"]


def test_a_producer_dropped_with_its_pool_comes_back(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
    lent = [pools.ProducerPool(connections).acquire()]
    lent.clear()
    gc.collect()
    connections.acquire(timeout=PATIENCE).release()


# -- a connection pool that nobody refers to any more ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_pool_goes_with_its_last_reference(url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(url), limit=4)
    producers = pools.ProducerPool(connections)
    with producers.acquire(timeout=PATIENCE), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish([], routing_key="nowhere")
    with connections.acquire() as lease:
        gone = [weakref.ref(one) for one in (connections, producers, connections.engine)]
        gone.append(weakref.ref(lease.item))
    del connections, producers, producer, lease

    def all_gone() -> bool:
        # More than once: the maintenance thread holds a pool while it is at work on it.
        gc.collect()
        return [one() for one in gone] == [None] * 4

    eventually(all_gone)


def test_the_maintenance_thread_ends_with_the_last_pool(memory_url: str) -> None:
    def running() -> bool:
        # More than once: the thread itself holds a pool while it is at work on it.
        gc.collect()
        return any(thread.name == maintenance.THREAD for thread in threading.enumerate())

    eventually(lambda: not running())
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=2)
    connections.acquire().release()
    eventually(running)
    del connections
    eventually(lambda: not running())


# -- producers made outside acquire() ----------------------------------------------------------------------------------


class Fails(kombu.Producer):
    """Whose constructor, or later its `revive`, raises *error*."""

    error: BaseException = ZeroDivisionError()
    at = "__init__"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.at == "__init__":
            raise self.error

    def revive(self, channel: Any) -> None:
        if self.at == "revive":
            raise self.error
        super().revive(channel)


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", ["__init__", "revive"])
@pytest.mark.parametrize(
    "how", ["create_producer", "new", "prepare a new one", "prepare", "acquire"]
)
def test_a_failure_gives_the_connection_back(
    memory_url: str, make_pool: Any, how: str, at: str, error: BaseException
) -> None:
    class Broken(Fails):
        pass

    Broken.error, Broken.at = error, at
    connections = make_pool(memory_url, limit=1)
    pool = pools.ProducerPool(connections, Producer=Broken)
    ways: dict[str, Callable[[], Any]] = {
        "create_producer": pool.create_producer,
        "new": lambda: pool.new()(),
        "prepare a new one": lambda: pool.prepare(pool.new()),
        "prepare": lambda: pool.prepare(Broken(None)),
        "acquire": pool.acquire,
    }
    for _ in range(3):
        with pytest.raises(type(error)):
            ways[how]()
        connections.acquire().release()
    Broken.at = "nowhere"
    with pool.acquire() as producer:
        assert isinstance(producer, Broken)


@pytest.mark.parametrize("how", ["create_producer", "new", "prepare"])
@pytest.mark.parametrize(
    "end", ["release", "close", "with", "raise", "pool.release", "pool.replace"]
)
def test_a_producer_made_outside_acquire_gives_its_connection_back(
    url: str, inbox: Callable[[str], Inbox], make_pool: Any, how: str, end: str
) -> None:
    box, connections = inbox(url), make_pool(url, limit=1)
    pool = pools.ProducerPool(connections, limit=1, Producer=Own)
    ways: dict[str, Callable[[], Any]] = {
        "create_producer": pool.create_producer,
        "new": lambda: pool.new()(),
        "prepare": lambda: pool.prepare(Own(None)),
    }
    for number in range(2):
        producer = ways[how]()
        assert isinstance(producer, Own)
        producer.publish(number, routing_key=box.name)
        with pytest.raises(LimitExceeded):
            connections.acquire()
        match end:
            case "release" | "close":
                getattr(producer, end)()
            case "with":
                with producer:
                    pass
            case "raise":
                with pytest.raises(ZeroDivisionError), producer:
                    1 / 0
            case "pool.release":
                pool.release(producer)
            case _:
                pool.replace(producer)
        with connections.acquire():
            # The second time it takes nothing from another borrower.
            producer.release()
            with pytest.raises(LimitExceeded):
                connections.acquire()
        # The pool can give it another connection, as in kombu.
        assert pool.prepare(producer) is producer
        producer.publish(number + 10, routing_key=box.name)
        producer.release()
    assert sorted(box.bodies(4)) == [0, 1, 10, 11]


class Own(kombu.Producer):
    """A class of the application's."""


def test_a_producer_made_outside_acquire_does_not_count_against_the_limit(
    memory_url: str, make_pool: Any
) -> None:
    pool = pools.ProducerPool(make_pool(memory_url, limit=2), limit=1)
    with pool.acquire():
        pool.create_producer().release()


def test_a_function_may_make_the_producers(memory_url: str, make_pool: Any) -> None:
    connections = make_pool(memory_url, limit=1)
    pool = pools.ProducerPool(
        connections, Producer=lambda connection: kombu.Producer(connection, serializer="yaml")
    )
    with pool.create_producer() as producer:
        assert isinstance(producer, kombu.Producer)
        assert producer.serializer == "yaml"
    connections.acquire().release()


def test_what_a_subclass_makes_outside_acquire_is_taken_back(
    memory_url: str, make_pool: Any
) -> None:
    class Pool(pools.ProducerPool):
        def create_producer(self) -> Any:
            return Own(self._acquire_connection())

    connections = make_pool(memory_url, limit=1)
    pool = Pool(connections)
    producer = pool.create_producer()
    with pytest.raises(LimitExceeded):
        connections.acquire()
    pool.release(producer)
    connections.acquire().release()


def test_the_second_time_a_producer_made_outside_acquire_is_given_back_nothing_happens(
    memory_url: str, make_pool: Any
) -> None:
    connections = make_pool(memory_url, limit=1)
    pool = pools.ProducerPool(connections)
    producer = pool.create_producer()
    for give_back in (pool.release, pool.release, pool.replace):
        give_back(producer)
    connections.acquire().release()


def test_a_collected_producer_made_outside_acquire_gives_its_connection_back(
    memory_url: str,
) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
    pool = pools.ProducerPool(connections)
    for make in (pool.create_producer, pool.new(), lambda: pool.prepare(kombu.Producer(None))):
        made = [make()]
        with pytest.raises(LimitExceeded):
            connections.acquire()
        made.clear()
        del make
        gc.collect()
        connections.acquire(timeout=PATIENCE).release()


# -- channels ----------------------------------------------------------------------------------------------------------


def test_a_channel_that_cannot_be_opened_leaves_the_channel_pool_its_place(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise ZeroDivisionError

    with pools.connections[url].acquire(timeout=PATIENCE) as connection:
        channels = connection.ChannelPool(limit=1)
        with monkeypatch.context() as patched:
            patched.setattr(connection, "channel", fail)
            broken = connection.ChannelPool(limit=1)
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    broken.acquire()
        for _ in range(3):
            channel = channels.acquire()
            with pytest.raises(LimitExceeded):
                channels.acquire()
            channel.release()


def test_a_channel_pool_ends_with_its_lease(url: str) -> None:
    pool = pools.connections[url]

    def borrow() -> weakref.ref[Any]:
        with pool.acquire(timeout=PATIENCE) as connection:
            channels = connection.ChannelPool(limit=2)
            first, second = channels.acquire(), channels.acquire()
            first.release()
            assert second is not None
            return weakref.ref(channels)

    gone = [borrow() for _ in range(5)]
    gc.collect()
    assert [one() for one in gone] == [None] * 5
