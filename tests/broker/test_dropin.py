"""Code written for `kombu.pools`, run on kombu's and on ours: the same public behaviour on both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import kombu
import kombu.connection
import kombu.pools
import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import ConnectionLimitExceeded, EncodeError, LimitExceeded

from .common import KOMBU, OURS, PATIENCE, within, xfail_on_kombu
from .conftest import Inbox

MakeInbox = Callable[[str], Inbox]
MakePool = Callable[..., Any]


@pytest.fixture(params=[KOMBU, OURS], ids=["kombu", "ours"])
def pools(request: pytest.FixtureRequest) -> ModuleType:
    """The module that an application imports."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def make_pool(pools: ModuleType) -> Iterator[MakePool]:
    """Makes connection pools outside all groups: kombu.pools has no name for their class, ours has."""
    pool_class = getattr(pools, "ConnectionPool", kombu.connection.ConnectionPool)
    made = []

    def make(url: str, **kwargs: Any) -> Any:
        made.append(pool_class(Connection(url), **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.force_close_all()


@pytest.fixture
def exchange(url: str, queue: str) -> Iterator[Exchange]:
    """An exchange that nobody else uses, for as long as the test."""
    made = Exchange(queue, type="direct", durable=False)
    yield made
    if not url.startswith("memory"):
        with Connection(url) as connection:
            made(connection.default_channel).delete()


# -- the examples of kombu's documentation -----------------------------------------------------------------------------


def test_a_group_gives_one_pool_for_equal_connections(pools: ModuleType, url: str) -> None:
    assert pools.connections[Connection(url)] is pools.connections[Connection(url)]
    assert pools.producers[Connection(url)] is pools.producers[Connection(url)]


def test_a_connection_is_lent_for_a_with_block(pools: ModuleType, url: str) -> None:
    connection = Connection(url)
    with pools.connections[connection].acquire(block=True) as lent:
        lent.ensure_connection(max_retries=1)
        assert lent.connected
        # A newer kombu shows a password that is not there, too.
        ours, kombus = (one.as_uri().replace("://:**@", "://") for one in (lent, Connection(url)))
        assert ours == kombus.replace("localhost", lent.hostname)


@pytest.mark.broker
@pytest.mark.redis
def test_two_brokers_at_once(
    pools: ModuleType, amqp_url: str, redis_url: str, inbox: MakeInbox
) -> None:
    boxes = inbox(amqp_url), inbox(redis_url)
    first, second = Connection(amqp_url), Connection(redis_url)
    with pools.connections[first].acquire(block=True) as one:
        with pools.connections[second].acquire(block=True) as two:
            for lent, box in zip((one, two), boxes, strict=True):
                lent.Producer().publish(lent.transport_cls, routing_key=box.name)
    assert [box.bodies(1) for box in boxes] == [["amqp"], ["redis"]]


def test_news_are_published(
    pools: ModuleType, url: str, inbox: MakeInbox, exchange: Exchange
) -> None:
    box = inbox(url)
    article = {"title": "No cellular coverage on the tube for 2012", "ingress": "yadda yadda yadda"}
    news = Queue(box.name, exchange, routing_key="domestic", durable=False)
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        producer.publish(
            article,
            exchange=exchange,
            routing_key="domestic",
            declare=[exchange, news],
            serializer="json",
            compression="zlib",
        )
    assert box.bodies(1) == [article]


def test_groups_of_ones_own(pools: ModuleType, url: str) -> None:
    connections = pools.register_group(pools.Connections(limit=100))
    producers = pools.Producers(limit=connections.limit)
    connection = Connection(url)
    with connections[connection].acquire(block=True) as lent:
        lent.ensure_connection(max_retries=1)
    assert connections[connection].limit == producers[connection].limit == 100
    assert connections[connection] is not pools.connections[connection]


def test_groups_that_follow_the_global_limit(pools: ModuleType, memory_url: str) -> None:
    pools.set_limit(7)
    connections = pools.Connections(limit=pools.use_global_limit)
    assert connections[Connection(memory_url)].limit == 7


def test_the_global_limit(pools: ModuleType, memory_url: str) -> None:
    assert pools.get_limit() == 10
    connection = Connection(memory_url)
    before = pools.connections[connection]
    assert pools.set_limit(20) == pools.get_limit() == 20
    assert before.limit == pools.producers[connection].limit == 20
    assert pools.set_limit(None) == pools.get_limit() == 0


def test_reset_gives_new_pools(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box, connection = inbox(url), Connection(url)
    for number in range(2):
        with pools.producers[connection].acquire(block=True) as producer:
            producer.publish(number, routing_key=box.name)
        pools.reset()
        assert not pools.connections
        assert not pools.producers
    assert sorted(box.bodies(2)) == [0, 1]


def test_reset_takes_any_arguments(pools: ModuleType) -> None:
    pools.reset("whatever", of=1)


# -- acquire and release -----------------------------------------------------------------------------------------------


def test_a_producer_kept_in_a_with_block(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        for number in range(50):
            producer.publish({"number": number}, routing_key=box.name)
    assert box.bodies(50) == [{"number": number} for number in range(50)]


def test_nested_with_blocks_hold_two_producers(
    pools: ModuleType, url: str, inbox: MakeInbox
) -> None:
    box, pool = inbox(url), pools.producers[Connection(url)]
    with pool.acquire(block=True) as outer:
        outer.publish(1, routing_key=box.name)
        with pool.acquire(block=True) as inner:
            assert inner is not outer
            assert inner.channel is not outer.channel
            inner.publish(2, routing_key=box.name)
        outer.publish(3, routing_key=box.name)
    assert sorted(box.bodies(3)) == [1, 2, 3]


@pytest.mark.parametrize("group", ["connections", "producers"])
@pytest.mark.parametrize("by", ["pool", "itself", "with"])
def test_what_is_given_back_can_be_lent_again(
    pools: ModuleType, memory_url: str, group: str, by: str
) -> None:
    pool = getattr(pools, group)[Connection(memory_url)]
    pool.limit = 1
    for _ in range(3):
        lent = pool.acquire()
        if by == "pool":
            pool.release(lent)
        elif by == "itself":
            lent.release()
        else:
            with lent:
                pass


@pytest.mark.parametrize("group", ["connections", "producers"])
def test_an_exception_in_the_with_block_gives_it_back(
    pools: ModuleType, memory_url: str, group: str
) -> None:
    pool = getattr(pools, group)[Connection(memory_url)]
    pool.limit = 1
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.acquire():
            1 / 0
    pool.acquire().release()


@pytest.mark.parametrize("waiting", [{}, {"block": True, "timeout": 0.01}])
def test_an_exhausted_pool_refuses(
    pools: ModuleType, memory_url: str, waiting: Any, make_pool: MakePool
) -> None:
    connections = make_pool(memory_url, limit=1)
    lent = connections.acquire()
    with pytest.raises(ConnectionLimitExceeded):
        connections.acquire(**waiting)
    with pytest.raises(connections.LimitExceeded):
        connections.acquire(**waiting)
    lent.release()

    producers = pools.ProducerPool(connections, limit=1)
    lent = producers.acquire()
    with pytest.raises(LimitExceeded):
        producers.acquire(**waiting)
    with pytest.raises(producers.LimitExceeded):
        producers.acquire(**waiting)
    lent.release()


def test_the_classes_of_the_refusals(pools: ModuleType, memory_url: str) -> None:
    connections = pools.connections[Connection(memory_url)]
    assert connections.LimitExceeded is ConnectionLimitExceeded
    assert pools.producers[Connection(memory_url)].LimitExceeded is LimitExceeded


def test_a_blocked_caller_gets_what_another_thread_gives_back(
    pools: ModuleType, memory_url: str, make_pool: MakePool
) -> None:
    pool = make_pool(memory_url, limit=1)
    lent = pool.acquire()
    asking = threading.Event()

    def wait() -> Any:
        asking.set()
        return pool.acquire(block=True)

    threading.Thread(target=lambda: (asking.wait(PATIENCE), lent.release()), daemon=True).start()
    within(PATIENCE, wait).release()
    assert asking.is_set()


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_everybody_is_served(
    pools: ModuleType, memory_url: str, limit: int | None, make_pool: MakePool
) -> None:
    connections = make_pool(memory_url, limit=limit)
    producers = pools.ProducerPool(connections, limit=limit)
    for pool in (connections, producers):
        lent = [pool.acquire() for _ in range(30)]
        assert len({id(one) for one in lent}) == 30
        for one in lent:
            one.release()


def test_preload_is_taken(pools: ModuleType, memory_url: str, make_pool: MakePool) -> None:
    pool = make_pool(memory_url, limit=2, preload=1)
    with pool.acquire(), pool.acquire():
        pass
    with pools.ProducerPool(pool, limit=2, preload=1).acquire():
        pass


def test_a_channel_with_its_connection(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box, pool = inbox(url), pools.connections[Connection(url)]
    pool.limit = 1
    for number in range(2):
        with pool.acquire_channel(block=True) as (connection, channel):
            assert channel is connection.default_channel
            Producer(channel).publish(number, routing_key=box.name)
    assert box.bodies(2) == [0, 1]


# -- replace, resize, close --------------------------------------------------------------------------------------------


def test_replace_closes_the_connection_and_keeps_its_place(
    pools: ModuleType, amqp_url: str, make_pool: MakePool
) -> None:
    pool = make_pool(amqp_url, limit=1)
    lent = pool.acquire()
    replaced = lent.connection
    pool.replace(lent)
    assert not replaced.connected
    with pool.acquire() as other:
        assert other.connection is not replaced
        assert other.connection.connected


def test_a_replaced_producer_is_not_lent_again(
    pools: ModuleType, url: str, inbox: MakeInbox
) -> None:
    box, pool = inbox(url), pools.producers[Connection(url)]
    pool.limit = 2
    first = pool.acquire()
    connection = first.connection
    pool.replace(first)
    # kombu leaves the connection to whoever replaced the producer; with ours it has gone already.
    connection.release()
    with pool.acquire() as second:
        assert second is not first
        second.publish("still here", routing_key=box.name)
    assert box.bodies(1) == ["still here"]


@pytest.mark.parametrize("how", ["resize", "property"])
@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_pool_grows_and_shrinks(
    pools: ModuleType, memory_url: str, group: str, how: str, request: pytest.FixtureRequest
) -> None:
    if (pools, group) == (KOMBU, "producers"):
        why = "each resize fills the queue once more"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    pool = getattr(pools, group)[Connection(memory_url)]

    def resize(limit: int) -> None:
        if how == "resize":
            pool.resize(limit)
        else:
            pool.limit = limit

    for limit in (1, 3, 2):
        resize(limit)
        assert pool.limit == limit
        lent = [pool.acquire() for _ in range(limit)]
        with pytest.raises(LimitExceeded):
            pool.acquire()
        for one in lent:
            one.release()


@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_pool_grows_in_use(pools: ModuleType, memory_url: str, group: str) -> None:
    pool = getattr(pools, group)[Connection(memory_url)]
    pool.limit = 1
    with pool.acquire():
        pool.resize(2)
        with pool.acquire():
            pass


@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_pool_in_use_does_not_shrink_below_what_is_lent(
    pools: ModuleType, memory_url: str, group: str
) -> None:
    pool = getattr(pools, group)[Connection(memory_url)]
    lent = [pool.acquire() for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"(?i)can't shrink.*pool when in use"):
        pool.resize(2)
    assert pool.limit == 10
    pool.resize(2, ignore_errors=True)
    assert pool.limit == 2
    for one in lent:
        one.release()


def test_a_closed_pool_refuses(pools: ModuleType, memory_url: str, make_pool: MakePool) -> None:
    connections = make_pool(memory_url, limit=1)
    producers = pools.ProducerPool(connections, limit=1)
    connections.acquire().release()
    for pool in (producers, connections):
        pool.force_close_all()
        with pytest.raises(RuntimeError, match=r"(?i)acquire on closed pool"):
            pool.acquire()
        pool.force_close_all()


def test_closing_everything_without_closing_the_pool(
    pools: ModuleType, amqp_url: str, make_pool: MakePool
) -> None:
    pool = make_pool(amqp_url, limit=2)
    lent = pool.acquire()
    closed = lent.connection
    lent.release()
    pool.force_close_all(close_pool=False)
    assert not closed.connected
    with pool.acquire() as other:
        other.ensure_connection(max_retries=1)
        assert other.connection.connected


# -- what a pool is made of --------------------------------------------------------------------------------------------


def test_pools_and_what_they_lend_are_of_kombus_classes(pools: ModuleType, memory_url: str) -> None:
    connections, producers = (
        group[Connection(memory_url)] for group in (pools.connections, pools.producers)
    )
    assert isinstance(connections, kombu.connection.ConnectionPool)
    assert isinstance(producers, kombu.pools.ProducerPool)
    assert isinstance(producers, pools.ProducerPool)
    assert issubclass(pools.PoolGroup, kombu.pools.PoolGroup)
    assert isinstance(pools.connections, pools.PoolGroup)
    with connections.acquire() as connection, producers.acquire() as producer:
        assert isinstance(connection, Connection)
        assert isinstance(producer, Producer)
        assert isinstance(producer.connection, Connection)


def test_what_a_pool_knows(pools: ModuleType, memory_url: str) -> None:
    connection = Connection(memory_url)
    assert pools.connections[connection].connection is connection
    assert pools.producers[connection].connections is pools.connections[connection]
    assert pools.producers[connection].limit == pools.connections[connection].limit == 10


def test_a_producer_pool_over_a_pool_that_kombu_made(
    pools: ModuleType, url: str, inbox: MakeInbox, request: pytest.FixtureRequest
) -> None:
    box = inbox(url)
    connections = Connection(url).Pool(limit=2)
    request.addfinalizer(connections.force_close_all)
    producers = pools.ProducerPool(connections, limit=2)
    for number in range(3):
        with producers.acquire(block=True) as producer:
            producer.publish(number, routing_key=box.name)
    with producers.acquire(block=True) as one, producers.acquire(block=True) as two:
        one.publish(3, routing_key=box.name)
        two.publish(4, routing_key=box.name)
        with pytest.raises(LimitExceeded):
            producers.acquire()
    # All connections are back in their own pool.
    with connections.acquire(), connections.acquire():
        pass
    assert sorted(box.bodies(5)) == [0, 1, 2, 3, 4]


def test_kombus_producer_pool_over_the_connections(
    pools: ModuleType, url: str, inbox: MakeInbox, make_pool: MakePool
) -> None:
    box, connections = inbox(url), make_pool(url, limit=1)
    producers = kombu.pools.ProducerPool(connections, limit=1)
    for number in range(3):
        with producers.acquire(block=True) as producer:
            producer.publish(number, routing_key=box.name)
    connections.acquire().release()
    assert box.bodies(3) == [0, 1, 2]


class Marking(Producer):
    """Marks what it publishes, and counts how often it is told of an unroutable message."""

    def __init__(self, *args: Any, mark: str = "marked", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mark = mark

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        return super().publish(body, *args, headers={"mark": self.mark}, **kwargs)


@pytest.mark.parametrize("how", ["argument", "attribute", "function"])
def test_a_producer_class_of_ones_own(
    pools: ModuleType, url: str, inbox: MakeInbox, how: str, make_pool: MakePool
) -> None:
    box, connections = inbox(url), make_pool(url, limit=1)
    if how == "argument":
        pool = pools.ProducerPool(connections, limit=1, Producer=Marking)
    elif how == "attribute":
        pool = type("Pool", (pools.ProducerPool,), {"Producer": Marking})(connections, limit=1)
    else:
        pool = pools.ProducerPool(
            connections, 1, Producer=lambda connection: Marking(connection, mark="by hand")
        )
    for _ in range(2):
        with pool.acquire(block=True) as producer:
            assert isinstance(producer, Marking)
            producer.publish("hello", routing_key=box.name)
    expected = "by hand" if how == "function" else "marked"
    assert [message.headers["mark"] for message in box.messages(2)] == [expected, expected]


def test_a_pool_that_overrides_create_producer(
    pools: ModuleType, url: str, inbox: MakeInbox, make_pool: MakePool
) -> None:
    class Pool(pools.ProducerPool):
        def create_producer(self) -> Any:
            connection = self.connections.acquire(block=True)
            return Marking(connection, mark="created", serializer="json")

    box, connections = inbox(url), make_pool(url, limit=1)
    pool = Pool(connections, limit=1)
    for _ in range(3):
        with pool.acquire() as producer:
            producer.publish([], routing_key=box.name)
    connections.acquire().release()
    assert [message.headers["mark"] for message in box.messages(3)] == ["created"] * 3


def test_a_pool_that_overrides_prepare(
    pools: ModuleType, url: str, inbox: MakeInbox, make_pool: MakePool
) -> None:
    class Pool(pools.ProducerPool):
        prepared = 0

        def prepare(self, p: Any) -> Any:
            producer = super().prepare(p)
            self.prepared += 1
            producer.compression = "zlib"
            return producer

    box, connections = inbox(url), make_pool(url, limit=1)
    pool = Pool(connections, limit=1)
    for number in range(2):
        with pool.acquire() as producer:
            producer.publish(number, routing_key=box.name)
            producer.compression = None
    assert pool.prepared == 2
    messages = box.messages(2)
    assert [message.headers["compression"] for message in messages] == ["application/x-gzip"] * 2


@xfail_on_kombu("the connection of a producer that cannot be prepared is lost", LimitExceeded)
def test_a_failure_to_prepare_gives_everything_back(
    pools: ModuleType, memory_url: str, make_pool: MakePool
) -> None:
    class Pool(pools.ProducerPool):
        broken = True

        def prepare(self, p: Any) -> Any:
            producer = super().prepare(p)
            if self.broken:
                raise ZeroDivisionError
            return producer

    connections = make_pool(memory_url, limit=1)
    pool = Pool(connections, limit=2)
    with pytest.raises(ZeroDivisionError):
        pool.acquire()
    connections.acquire().release()


def test_a_pool_that_overrides_close_resource(
    pools: ModuleType, memory_url: str, make_pool: MakePool
) -> None:
    class Pool(pools.ProducerPool):
        closed: list[Any]

        def close_resource(self, resource: Any) -> None:
            self.closed.append(resource)
            resource.close()

    pool = Pool(make_pool(memory_url, limit=2), limit=2)
    pool.closed = []
    pool.acquire().release()
    assert pool.closed == []
    producer = pool.acquire()
    pool.replace(producer)
    assert pool.closed == [producer]


def test_a_pool_that_overrides_release(
    pools: ModuleType, memory_url: str, make_pool: MakePool
) -> None:
    class Pool(pools.ProducerPool):
        released = 0

        def release(self, resource: Any) -> None:
            self.released += 1
            super().release(resource)

    pool = Pool(make_pool(memory_url, limit=1), limit=1)
    pool.acquire().release()
    with pool.acquire():
        pass
    pool.release(pool.acquire())
    with pytest.raises(ZeroDivisionError), pool.acquire():
        1 / 0
    assert pool.released == 4
    pool.acquire().release()


def test_new_promises_a_producer(pools: ModuleType, memory_url: str, make_pool: MakePool) -> None:
    connections = make_pool(memory_url, limit=1)
    producer = pools.ProducerPool(connections, limit=1).new()()
    assert isinstance(producer, Producer)
    producer.connection.release()
    connections.acquire().release()


def test_the_channel_pool_is_kombus(memory_url: str) -> None:
    assert OURS.ChannelPool is kombu.connection.ChannelPool
    with OURS.connections[Connection(memory_url)].acquire() as connection:
        pool = OURS.ChannelPool(connection, limit=1)
        channel = pool.acquire()
        with pytest.raises(LimitExceeded):
            pool.acquire()
        pool.release(channel)
        assert pool.acquire() is channel


def test_every_name_and_parameter_is_there() -> None:
    import inspect

    assert set(KOMBU.__all__) <= set(OURS.__all__)
    for name in KOMBU.__all__:
        theirs, ours = getattr(KOMBU, name), getattr(OURS, name)
        if not callable(theirs) or isinstance(theirs, dict):
            continue
        for what in [None, "acquire", "release", "resize", "replace", "force_close_all", "create"]:
            one = theirs if what is None else getattr(theirs, what, None)
            if one is None:
                continue
            other = ours if what is None else getattr(ours, what)
            wanted = [
                (parameter.name, parameter.default)
                for parameter in inspect.signature(one).parameters.values()
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ]
            given = [
                (parameter.name, parameter.default)
                for parameter in inspect.signature(other).parameters.values()
            ]
            assert given[: len(wanted)] == wanted, (name, what)


# -- groups ------------------------------------------------------------------------------------------------------------


class Thing:
    """Whatever a group holds, with a pool's interface."""

    def __init__(self, resource: Any, limit: int | None) -> None:
        self.resource, self.limit = resource, limit
        self.closed = 0

    def resize(self, limit: int, *args: Any, **kwargs: Any) -> None:
        self.limit = limit

    def force_close_all(self, *args: Any, **kwargs: Any) -> None:
        self.closed += 1


def test_a_group_must_define_create(pools: ModuleType) -> None:
    with pytest.raises(NotImplementedError):
        pools.PoolGroup().create("anything", 10)
    with pytest.raises(NotImplementedError):
        pools.PoolGroup()["anything"]


def test_a_group_subclass(pools: ModuleType) -> None:
    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Thing:
            return Thing(resource, limit)

    group = Group(limit=3)
    first = group["foo"]
    assert (first.resource, first.limit) == ("foo", 3)
    assert group["foo"] is first
    assert group["bar"] is not first
    assert len(group) == 2
    assert first in group.values()
    del group["foo"]
    assert len(group) == 1
    assert group["foo"] is not first
    other = group["foo"] = Thing("foo", 1)
    assert group["foo"] is other
    group.clear()
    assert not group

    assert Group()["foo"].limit is None
    assert Group(limit=pools.use_global_limit)["foo"].limit == pools.get_limit()
    assert Group(2, close_after_fork=False)["foo"].limit == 2


def test_a_group_that_overrides_what_happens_on_a_miss(pools: ModuleType) -> None:
    class Group(pools.PoolGroup):
        def __missing__(self, resource: Any) -> Thing:
            made = self[resource] = Thing(resource, 99)
            return made

    group = Group()
    assert group["foo"].limit == 99
    assert group["foo"] is group["foo"]


def test_a_group_of_tuples(pools: ModuleType) -> None:
    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Any:
            return resource, limit

    assert Group(limit=4)["foo"] == ("foo", 4)


def test_things_that_mean_the_same_share_a_pool(pools: ModuleType) -> None:
    class Broker:
        def __eqhash__(self) -> int:
            return 42

    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Thing:
            return Thing(resource, limit)

    group = Group()
    assert group[Broker()] is group[Broker()]


def test_a_registered_group_is_reset_and_limited(pools: ModuleType) -> None:
    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Thing:
            return Thing(resource, limit)

    group = Group(limit=pools.use_global_limit)
    assert pools.register_group(group) is group
    thing = group["foo"]
    pools.set_limit(33)
    assert thing.limit == 33
    assert thing.closed == 0
    pools.reset()
    assert thing.closed == 1
    assert not group


def test_register_group_as_a_decorator(pools: ModuleType) -> None:
    # kombu's accepts a class as well, and each reset() fails from then on: what is registered must have pools.
    @pools.register_group
    @lambda make: make()
    class group(pools.PoolGroup):  # noqa: N801
        def create(self, resource: Any, limit: int | None) -> Thing:
            return Thing(resource, limit)

    thing = group["foo"]
    pools.reset()
    assert thing.closed == 1


# -- what one does with a connection and a producer --------------------------------------------------------------------


def test_a_simple_queue(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    with pools.connections[Connection(url)].acquire(block=True) as connection:
        with connection.SimpleQueue(box.name, queue_opts={"durable": False}) as simple:
            simple.put({"hello": "world"})
            message = simple.get(timeout=PATIENCE)
            assert message.payload == {"hello": "world"}
            message.ack()
            with pytest.raises(simple.Empty):
                simple.get_nowait()


def test_a_consumer(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box, received = inbox(url), []

    def on_message(body: Any, message: kombu.Message) -> None:
        received.append(body)
        message.ack()

    with pools.producers[Connection(url)].acquire(block=True) as producer:
        for number in range(3):
            producer.publish(number, routing_key=box.name)
    bound = Queue(box.name, durable=False)
    with pools.connections[Connection(url)].acquire(block=True) as connection:
        with Consumer(connection, queues=[bound], callbacks=[on_message], accept=["json"]):
            while len(received) < 3:
                connection.drain_events(timeout=PATIENCE)
    assert received == [0, 1, 2]
    assert box.bodies() == []


def test_channels_and_producers_of_a_connection(
    pools: ModuleType, url: str, inbox: MakeInbox
) -> None:
    box = inbox(url)
    with pools.connections[Connection(url)].acquire(block=True) as connection:
        with connection.channel() as channel:
            Producer(channel, routing_key=box.name).publish("by a channel")
        connection.Producer(routing_key=box.name).publish("by the connection")
        assert connection.default_channel is connection.default_channel
        assert connection.info()["hostname"]
    assert sorted(box.bodies(2)) == ["by a channel", "by the connection"]


def test_ensure_tries_again(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    failures: list[BaseException] = []

    with pools.producers[Connection(url)].acquire(block=True) as producer:
        connection = producer.connection
        broken = [connection.recoverable_connection_errors[0]("just once")]

        def publish(body: Any) -> None:
            if broken:
                raise broken.pop()
            producer.publish(body, routing_key=box.name)

        connection.ensure(
            producer,
            publish,
            errback=lambda error, interval: failures.append(error),
            max_retries=3,
            interval_start=0,
            interval_step=0,
        )("hello")
    assert len(failures) == 1
    assert box.bodies(1) == ["hello"]
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        producer.publish("again", routing_key=box.name)
    assert box.bodies(1) == ["again"]


def test_a_publish_with_a_retry_policy(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        producer.publish("hello", routing_key=box.name, retry=True, retry_policy=policy)
    assert box.bodies(1) == ["hello"]


def test_a_publish_that_is_retried_survives_a_broken_connection(
    pools: ModuleType, amqp_url: str, inbox: MakeInbox
) -> None:
    import socket

    box, pool = inbox(amqp_url), pools.producers[Connection(amqp_url)]
    policy = {"max_retries": 3, "interval_start": 0}
    with pool.acquire(block=True) as producer:
        producer.publish(1, routing_key=box.name)
        # Without confirms it could be lost with its connection.
        assert box.bodies(1) == [1]
        producer.connection.connection._transport.sock.shutdown(socket.SHUT_RDWR)
        producer.publish(2, routing_key=box.name, retry=True, retry_policy=policy)
    with pool.acquire(block=True) as producer:
        producer.publish(3, routing_key=box.name)
    assert sorted(box.bodies(2)) == [2, 3]


@pytest.mark.parametrize(
    "serializer, body, content_type",
    [
        ("json", {"a": [1, None]}, "application/json"),
        ("pickle", {1, 2}, "application/x-python-serialize"),
        ("raw", b"\x00\xff", "application/data"),
        (None, "text", "text/plain"),
    ],
)
def test_serializers(
    pools: ModuleType,
    url: str,
    inbox: MakeInbox,
    serializer: str | None,
    body: Any,
    content_type: str,
) -> None:
    box = inbox(url)
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        producer.publish(
            body, routing_key=box.name, serializer=serializer, priority=1, expiration=60
        )
    (message,) = box.messages(1)
    message.accept = {content_type}
    assert message.content_type == content_type
    assert message.payload == body


def test_a_body_that_cannot_be_serialised(pools: ModuleType, url: str, inbox: MakeInbox) -> None:
    box, pool = inbox(url), pools.producers[Connection(url)]
    pool.limit = 1
    with pool.acquire(block=True) as producer:
        with pytest.raises(EncodeError):
            producer.publish(object(), routing_key=box.name)
        producer.publish("still usable", routing_key=box.name)
    pool.acquire().release()
    assert box.bodies(1) == ["still usable"]


def test_what_a_producer_knows(
    pools: ModuleType, url: str, inbox: MakeInbox, exchange: Exchange
) -> None:
    box = inbox(url)
    with pools.producers[Connection(url)].acquire(block=True) as producer:
        assert producer.channel.connection.client.as_uri() == producer.connection.as_uri()
        assert producer.exchange.name == ""
        assert producer.serializer is None
        assert producer.auto_declare
        producer.maybe_declare(exchange)
        producer.maybe_declare(
            Queue(box.name, exchange, routing_key="key", durable=False)(producer.channel)
        )
        producer.publish("routed", exchange=exchange.name, routing_key="key")
        producer.revive(producer.connection.channel())
        producer.publish("revived", exchange=exchange.name, routing_key="key")
    assert sorted(box.bodies(2)) == ["revived", "routed"]
