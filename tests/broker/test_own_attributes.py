"""What a borrower sets on a lease, whatever and however, is gone with the lease, and its pool is whole."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.errors import LeaseError
from tests.broker.common import PATIENCE, eventually

_MISSING = object()


@pytest.fixture
def connections(url: str) -> Iterator[pools.ConnectionPool]:
    pool = pools.ConnectionPool(kombu.Connection(url), limit=1)
    yield pool
    pool.force_close_all()


@pytest.fixture
def producers(connections: pools.ConnectionPool) -> pools.ProducerPool:
    return pools.ProducerPool(connections)


@pytest.fixture(params=["connections", "producers", "producers on kombu's connections"])
def pool(
    request: pytest.FixtureRequest, url: str, connections: Any, producers: Any
) -> Iterator[Any]:
    if request.param == "producers on kombu's connections":
        kombus = kombu.Connection(url).Pool(limit=1)
        yield pools.ProducerPool(kombus)
        kombus.force_close_all()
    else:
        yield connections if request.param == "connections" else producers


def use(pool: Any, queue: str) -> None:
    """What must go on working: three leases, each of which publishes."""
    for _ in range(3):
        with pool.acquire(timeout=PATIENCE) as lease:
            producer = lease if isinstance(lease, kombu.Producer) else kombu.Producer(lease)
            producer.publish("x", routing_key=queue)


def is_whole(pool: Any, queue: str) -> None:
    """Nothing is lent, and all that the limit allows can be."""
    use(pool, queue)
    eventually(lambda: pool.lent == 0)
    held = [pool.acquire(timeout=PATIENCE)]
    for lease in held:
        lease.release()


# -- a release of the borrower's own ---------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[Any, Any], Callable[[], None]]] = {
    "calls the original": lambda pool, original: lambda: original(),
    "never calls it": lambda pool, original: lambda: None,
    "raises": lambda pool, original: lambda: 1 / 0,  # type: ignore[return-value]
    "in another thread": lambda pool, original: lambda: threading.Thread(target=original).start(),
    "calls it twice": lambda pool, original: lambda: (original(), original()),  # type: ignore[return-value]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("block", [True, False], ids=["block", "no block"])
def test_a_wrapped_release_is_called_once_and_is_of_one_lease(
    pool: Any, queue: str, wrapper: str, block: bool
) -> None:
    calls = []
    for number in range(1, 4):
        lease = pool.acquire(timeout=PATIENCE)
        assert "wrapped" not in repr(lease.release)
        inner = WRAPPERS[wrapper](pool, lease.release)

        def wrapped(inner: Any = inner) -> None:
            calls.append(inner)
            inner()

        lease.release = wrapped
        with suppress(ZeroDivisionError):
            if block:
                with lease:
                    pass
            else:
                lease.release()
        assert len(calls) == number
        del lease, inner, wrapped
        calls[:] = [None] * number
        gc.collect()
        eventually(lambda: pool.lent == 0)
    is_whole(pool, queue)
    assert len(calls) == 3


def test_a_release_that_gives_itself_back_to_the_pool_ends_the_lease(pool: Any, queue: str) -> None:
    for _ in range(3):
        with pool.acquire(timeout=PATIENCE) as lease:
            lease.release = lambda lease=lease: pool.release(lease)
        assert pool.lent == 0
    is_whole(pool, queue)


def test_what_ended_the_block_decides_however_release_is_wrapped(
    connections: pools.ConnectionPool, producers: pools.ProducerPool
) -> None:
    for pool in (connections, producers):
        opened = connections.stats().opened
        with pytest.raises(KeyboardInterrupt), pool.acquire(timeout=PATIENCE) as lease:
            lease.release = lambda release=lease.release: release()
            raise KeyboardInterrupt
        with pool.acquire(timeout=PATIENCE):
            assert connections.stats().opened == opened + 1 + (pool is connections)


def test_a_lease_that_is_replaced_or_given_back_takes_its_wrapper_along(
    pool: Any, queue: str
) -> None:
    for give_back in (pool.replace, pool.release):
        lease = pool.acquire(timeout=PATIENCE)
        lease.release = lambda: None
        give_back(lease)
        assert pool.lent == 0
    is_whole(pool, queue)


def test_a_lease_that_is_dropped_takes_its_wrapper_along(pool: Any, queue: str) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    lease.release = lambda lease=lease: None
    del lease
    gc.collect()
    eventually(lambda: pool.lent == 0)
    is_whole(pool, queue)


def test_what_is_set_on_a_lease_that_has_ended_is_on_no_other(pool: Any, queue: str) -> None:
    ended = []
    for _ in range(3):
        ended.append(pool.acquire(timeout=PATIENCE))
        ended[-1].release()
    ended[1].release = ended[1].tenant = "mine"
    for lease in (ended[0], ended[2]):
        lease.release()
        assert not hasattr(lease, "tenant")
    is_whole(pool, queue)


# -- instrumentation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["released inside", "released after"])
def test_methods_of_a_lease_can_be_patched(pool: Any, queue: str, inside: bool) -> None:
    for _ in range(2):
        lease = pool.acquire(timeout=PATIENCE)
        with mock.patch.object(lease, "release", wraps=lease.release) as release:
            if inside:
                lease.release()
        assert release.called is inside
        assert lease.release is not release
        lease.release()
    is_whole(pool, queue)


def test_a_publish_can_be_patched_around_the_block(producers: Any, queue: str) -> None:
    producer = producers.acquire(timeout=PATIENCE)
    with mock.patch.object(producer, "publish") as publish, producer:
        producer.publish("x", routing_key=queue)
    publish.assert_called_once_with("x", routing_key=queue)
    with pytest.raises(LeaseError):
        producer.publish("x", routing_key=queue)
    is_whole(producers, queue)


def test_spans_around_the_methods_of_a_lease_end_with_it(pool: Any, queue: str) -> None:
    spans: list[str] = []

    def instrument(one: Any, name: str) -> None:
        original = getattr(one, name)

        def traced(*args: Any, **kwargs: Any) -> Any:
            spans.append(name)
            return original(*args, **kwargs)

        setattr(one, name, traced)

    for _ in range(2):
        with pool.acquire(timeout=PATIENCE) as lease:
            instrument(lease, "release")
            if isinstance(lease, kombu.Producer):
                instrument(lease, "publish")
                lease.publish("x", routing_key=queue)
            else:
                instrument(lease, "channel")
                lease.channel().close()
    assert spans == [spans[0], "release"] * 2
    is_whole(pool, queue)
    assert len(spans) == 4


# -- any attribute, on what the pool keeps ---------------------------------------------------------------

#: Of a connection, with what kombu's own code may ask it for afterwards.
ATTRIBUTES: dict[str, Any] = {
    **{name: lambda *args, **kwargs: "mine" for name in ("ensure", "close", "clone", "channel")},
    "tenant": "mine",
    "declared_entities": {"mine"},
    "_initial_params": {},
    "connection_errors": (KeyError,),
    "recoverable_channel_errors": (KeyError,),
    "_logger": True,
    "heartbeat": 99,
    "alt": ["amqp://elsewhere//"],
    # Names that the pool has a use for itself.
    **dict.fromkeys(("bounds", "size", "untidy", "publisher", "confirms"), "mine"),
    **dict.fromkeys(("altered", "pool_name", "own_names", "pooled_producers"), "mine"),
}


def look(connection: Any) -> dict[str, Any]:
    found = {}
    for name in ATTRIBUTES:
        value = getattr(connection, name, _MISSING)
        # A method is another one of each lease.
        found[name] = getattr(value, "__func__", value)
    return found


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("taken_off", [False, True], ids=["left", "deleted"])
def test_any_attribute_of_a_connection_is_of_one_lease(
    connections: pools.ConnectionPool,
    producers: pools.ProducerPool,
    queue: str,
    name: str,
    taken_off: bool,
) -> None:
    use(producers, queue)
    use(connections, queue)
    with connections.acquire(timeout=PATIENCE) as lease:
        before = look(lease)
    for pool in (connections, producers) * 2:
        with pool.acquire(timeout=PATIENCE) as lease:
            connection = lease if pool is connections else lease.connection
            assert look(connection) == before
            setattr(connection, name, ATTRIBUTES[name])
            assert getattr(connection, name) == ATTRIBUTES[name]
            if taken_off:
                delattr(connection, name)
    is_whole(producers, queue)
    assert connections.stats().opened == 1


def test_one_attribute_more_and_one_less_are_noticed(
    connections: pools.ConnectionPool, queue: str
) -> None:
    use(connections, queue)
    with connections.acquire(timeout=PATIENCE) as lease:
        before = look(lease)
    for gone in ("alt", "hostname", "declared_entities"):
        with connections.acquire(timeout=PATIENCE) as lease:
            delattr(lease, gone)
            lease.tenant = "mine"
        with connections.acquire(timeout=PATIENCE) as lease:
            assert look(lease) == before
    is_whole(connections, queue)


@pytest.mark.parametrize("channel", ["a mock", "another", "none"])
def test_a_default_channel_of_the_borrowers_own_is_of_one_lease(
    connections: pools.ConnectionPool, producers: pools.ProducerPool, queue: str, channel: str
) -> None:
    use(producers, queue)
    for _ in range(2):
        with connections.acquire(timeout=PATIENCE) as lease:
            lease._default_channel = {
                "a mock": mock.Mock,
                "another": lease.channel,
                "none": lambda: None,
            }[channel]()
            if channel == "none":
                lease.channel()
        with connections.acquire(timeout=PATIENCE) as lease:
            assert not isinstance(lease.default_channel, mock.Mock)
    is_whole(producers, queue)


@pytest.mark.parametrize("name", ["tenant", "basic_publish", "prepare_message", "no_ack_consumers"])
@pytest.mark.parametrize("taken_off", [False, True], ids=["left", "deleted"])
def test_any_attribute_of_a_channel_is_of_one_lease(
    producers: pools.ProducerPool, queue: str, name: str, taken_off: bool
) -> None:
    use(producers, queue)
    for _ in range(2):
        with producers.acquire(timeout=PATIENCE) as lease:
            assert vars(lease.channel).get(name) != "mine"
            setattr(lease.channel, name, "mine")
            if taken_off:
                delattr(lease.channel, name)
    is_whole(producers, queue)
