"""What a subclass of kombu's pools overrides is called by ours where kombu calls it, or refused where it is defined."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import kombu
import kombu.pools
import pytest
from kombu.connection import ConnectionPool as KombuConnectionPool
from kombu.exceptions import LimitExceeded
from kombu.utils.functional import lazy

from kombu_pools_ext import pools
from kombu_pools_ext.broker.hooks import CALLED
from kombu_pools_ext.errors import LeaseError, PoolExhausted
from tests.broker.common import PATIENCE

KINDS = {"kombu's": (KombuConnectionPool, kombu.pools), "ours": (pools.ConnectionPool, pools)}


def recording(base: type[Any], calls: list[str], *names: str) -> type[Any]:
    """A subclass of *base* that notes each call of the hooks *names*, and passes it on."""

    def noted(name: str) -> Callable[..., Any]:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            threads.add(threading.get_ident())
            return getattr(super(made, self), name)(*args, **kwargs)

        return hook

    threads: set[int] = set()
    made: type[Any] = type(
        "Recording", (base,), {**{name: noted(name) for name in names}, "threads": threads}
    )
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[type[Any], ModuleType]:
    found: tuple[type[Any], ModuleType] = KINDS[request.param]
    return found


CONNECTION_HOOKS = (
    *("new", "setup", "prepare", "release_resource", "close_resource", "collect_resource"),
    *("release", "replace"),
)


def acquire_and_release(pool: Any) -> None:
    pool.acquire(block=True).release()


def leave_a_block(pool: Any) -> None:
    with pool.acquire(block=True) as lease:
        lease.connect()


def give_back(pool: Any) -> None:
    pool.release(pool.acquire(block=True))


def replace(pool: Any) -> None:
    pool.replace(pool.acquire(block=True))


def twice(pool: Any) -> None:
    acquire_and_release(pool)
    acquire_and_release(pool)


def larger(pool: Any) -> None:
    acquire_and_release(pool)
    pool.resize(2)


def close(pool: Any) -> None:
    with pool.acquire(block=True) as lease:
        lease.connect()
    pool.force_close_all()


#: What is done with a pool, and the calls that both kinds make for it.
SEQUENCES: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "made": (lambda pool: None, ["setup"]),
    "released": (
        acquire_and_release,
        ["setup", "prepare", "new", "release", "release_resource"],
    ),
    "block": (leave_a_block, ["setup", "prepare", "new", "release", "release_resource"]),
    "pool.release": (give_back, ["setup", "prepare", "new", "release", "release_resource"]),
    "replaced": (replace, ["setup", "prepare", "new", "replace", "close_resource"]),
    "twice": (
        twice,
        [
            *("setup", "prepare", "new", "release", "release_resource"),
            *("prepare", "release", "release_resource"),
        ],
    ),
    "larger": (
        larger,
        ["setup", "prepare", "new", "release", "release_resource", "setup"],
    ),
    "closed": (
        close,
        ["setup", "prepare", "new", "release", "release_resource", "collect_resource"],
    ),
}


@pytest.mark.parametrize("what", SEQUENCES)
def test_the_hooks_of_a_connection_pool_are_called_in_kombus_order(
    kind: tuple[type[Any], ModuleType], url: str, what: str
) -> None:
    calls: list[str] = []
    made = recording(kind[0], calls, *CONNECTION_HOOKS)
    pool = made(kombu.Connection(url), limit=1)
    do, expected = SEQUENCES[what]
    do(pool)
    if kind[1] is pools and "new" in expected:
        # What is lent is open: it is made before, and not within, the first prepare().
        place = expected.index("prepare")
        expected = [*expected[:place], "new", "prepare", *expected[place + 2 :]]
    assert calls == expected
    assert made.threads == {threading.get_ident()}  # type: ignore[attr-defined]
    pool.force_close_all()


PRODUCER_HOOKS = ("prepare", "create_producer", "close_resource", "release", "release_resource")


@pytest.mark.parametrize("how", ["release", "block", "pool.release"])
def test_the_hooks_of_a_producer_pool_are_called_in_kombus_order(
    kind: tuple[type[Any], ModuleType], url: str, how: str
) -> None:
    calls: list[str] = []
    connections = kind[0](kombu.Connection(url), limit=1)
    made = recording(kind[1].ProducerPool, calls, *PRODUCER_HOOKS)
    pool = made(connections, limit=1)
    for _ in range(2):
        producer = pool.acquire(block=True)
        if how == "block":
            with producer:
                pass
        elif how == "release":
            producer.release()
        else:
            pool.release(producer)
    first = ["prepare", "create_producer"]
    if kind[1] is pools:
        # There: kombu passes what new() returned to prepare(), which calls it; ours calls it before.
        first.reverse()
    assert calls == [
        *first,
        "release",
        "release_resource",
        "prepare",
        "release",
        "release_resource",
    ]
    assert made.threads == {threading.get_ident()}  # type: ignore[attr-defined]
    connections.force_close_all()


def test_producers_take_connections_by_the_hooks_of_their_pool(
    kind: tuple[type[Any], ModuleType], url: str, queue: str
) -> None:
    calls: list[str] = []
    made = recording(kind[0], calls, "acquire", "prepare", "release", "release_resource")
    connections = made(kombu.Connection(url), limit=1)
    pool = kind[1].ProducerPool(connections, limit=1)
    for _ in range(2):
        with pool.acquire(block=True) as producer:
            producer.publish("x", routing_key=queue)
    assert calls == ["acquire", "prepare", "release", "release_resource"] * 2
    connections.force_close_all()


def test_a_connection_that_broke_is_told_to_close_resource(memory_url: str) -> None:
    calls: list[str] = []
    made = recording(pools.ConnectionPool, calls, *CONNECTION_HOOKS)
    pool = made(kombu.Connection(memory_url), limit=1)
    with pytest.raises(KeyboardInterrupt), pool.acquire(timeout=PATIENCE):
        raise KeyboardInterrupt
    assert calls == ["setup", "new", "prepare", "replace", "close_resource"]
    assert pool.stats().closed == {"broken": 1}
    pool.force_close_all()


# -- what real subclasses do with them -----------------------------------------------------------------


def test_what_prepare_sets_is_on_each_lease(kind: tuple[type[Any], ModuleType], url: str) -> None:
    class Marked(kind[0]):  # type: ignore[misc, name-defined]
        def prepare(self, resource: Any) -> Any:
            resource = super().prepare(resource)
            resource._acquired_from_pool = True
            return resource

    pool = Marked(kombu.Connection(url), limit=1)
    for _ in range(3):
        with pool.acquire(block=True) as lease:
            assert lease._acquired_from_pool
    pool.force_close_all()


def test_a_prepare_that_raises_gives_the_connection_back(
    kind: tuple[type[Any], ModuleType], url: str
) -> None:
    class Picky(kind[0]):  # type: ignore[misc, name-defined]
        fails = True

        def prepare(self, resource: Any) -> Any:
            resource = super().prepare(resource)
            if self.fails:
                raise ValueError("not today")
            return resource

    pool = Picky(kombu.Connection(url), limit=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="not today"):
            pool.acquire(block=True)
    pool.fails = False
    pool.acquire(block=True).release()
    pool.force_close_all()


class Counting(kombu.Connection):  # type: ignore[misc]  # kombu ships no types
    """A connection with something of its own."""

    def __init__(self, *args: Any, tenant: str = "", **kwargs: Any) -> None:
        self.tenant = tenant
        super().__init__(*args, **kwargs)

    def greeting(self) -> str:
        return f"{self.tenant} by {self.transport_cls}"


def test_new_may_return_a_connection_of_a_class_of_its_own(url: str, queue: str) -> None:
    class Tenants(pools.ConnectionPool):
        def new(self) -> Any:
            return Counting(self.connection.as_uri(include_password=True), tenant="a", heartbeat=7)

    pool = Tenants(kombu.Connection(url), limit=1)
    for _ in range(2):
        with pool.acquire(timeout=PATIENCE) as lease:
            assert isinstance(lease, Counting)
            assert (lease.tenant, lease.heartbeat) == ("a", 7)
            assert lease.greeting().startswith("a by ")
            kombu.Producer(lease).publish("x", routing_key=queue)
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        assert isinstance(producer.connection, Counting)
        producer.publish("x", routing_key=queue)
    assert pool.stats().opened == 1
    pool.force_close_all()


def test_new_may_change_what_its_super_returns(url: str) -> None:
    class Patient(pools.ConnectionPool):
        def new(self) -> Any:
            connection = super().new()
            connection.connect_timeout = 17
            return connection

    pool = Patient(kombu.Connection(url), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        assert lease.connect_timeout == 17
    pool.force_close_all()


@pytest.mark.parametrize("own", [KeyError, LimitExceeded, type("Mine", (Exception,), {})])
def test_a_limit_error_of_its_own_is_raised(memory_url: str, own: type[Exception]) -> None:
    class Strict(pools.ConnectionPool):
        LimitExceeded = own

    class StrictProducers(pools.ProducerPool):
        LimitExceeded = own

    connections = Strict(kombu.Connection(memory_url), limit=1)
    producers = StrictProducers(connections, limit=1)
    with connections.acquire(timeout=PATIENCE):
        for pool in (connections, producers):
            with pytest.raises(own) as caught:
                pool.acquire()
            assert isinstance(caught.value, PoolExhausted)
    connections.force_close_all()


def test_a_pool_of_the_connections_own_is_in_the_group(memory_url: str) -> None:
    class Special(pools.ConnectionPool):
        pass

    class Own(kombu.Connection):  # type: ignore[misc]  # kombu ships no types
        def Pool(self, limit: Any = None, **kwargs: Any) -> Any:  # noqa: N802  # kombu's name
            return Special(self, limit, **kwargs)

    special = pools.connections[Own(memory_url)]
    assert type(special) is Special
    assert special.limit == pools.get_limit()
    assert pools.connections[Own(memory_url)] is special
    assert type(pools.connections[kombu.Connection(memory_url)]) is pools.ConnectionPool
    assert pools.producers[Own(memory_url)].connections is special


# -- what is refused -------------------------------------------------------------------------------------


def test_what_nobody_would_call_is_refused_at_definition_all_at_once() -> None:
    async def prepare(self: Any, resource: Any) -> Any:
        return resource

    for base in (pools.ConnectionPool, pools.ProducerPool):
        with pytest.raises(TypeError) as caught:
            type(
                "Mine",
                (base,),
                {"_add_when_empty": None, "prepare": prepare, "LimitExceeded": 5},
            )
        told = str(caught.value)
        for name in ("Mine", "_add_when_empty: ", "prepare: ", "LimitExceeded: ", "override new()"):
            assert name in told


def test_kombus_queue_and_set_have_their_numbers_and_nothing_else(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=3)
    for pool in (connections, pools.ProducerPool(connections, limit=3)):
        with pool.acquire(timeout=PATIENCE):
            assert (pool._resource.qsize(), len(pool._dirty)) == (2, 1)
            for wrong in (
                lambda pool=pool: pool._resource.put_nowait("x"),
                lambda pool=pool: pool._dirty.clear(),
                lambda pool=pool: setattr(pool, "_resource", []),
                lambda pool=pool: setattr(pool, "_dirty", set()),
            ):
                with pytest.raises(AttributeError, match=r"has no .*stats"):
                    wrong()
    connections.force_close_all()


def test_a_closed_connection_pool_is_not_reopened_by_its_private_name(memory_url: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
    connections._closed = False
    producers = pools.ProducerPool(connections)
    producers.force_close_all()
    # As in kombu.
    producers._closed = False
    producers.acquire(timeout=PATIENCE).release()
    connections._closed = True
    with pytest.raises(RuntimeError):
        connections.acquire(timeout=PATIENCE)
    with pytest.raises(AttributeError, match="close_pool=False"):
        connections._closed = False


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_pools_and_groups_are_not_copied(memory_url: str, how: Callable[[Any], Any]) -> None:
    connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
    for one in (connections, pools.ProducerPool(connections), pools.connections, pools.producers):
        with pytest.raises(TypeError, match="belong to this process"):
            how(one)


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copy_of_a_leased_producer_is_a_plain_one_as_in_kombu(
    kind: tuple[type[Any], ModuleType], url: str, how: str
) -> None:
    ways: dict[str, Callable[[Any], Any]] = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    }
    connections = kind[0](kombu.Connection(url), limit=1)
    producer = kind[1].ProducerPool(connections).acquire(block=True)
    producer.serializer, producer.exchange = "pickle", kombu.Exchange("orders")
    copied = ways[how](producer)
    assert type(copied) is kombu.Producer
    assert (copied.serializer, copied.exchange.name) == ("pickle", "orders")
    assert copied.connection is None
    producer.release()
    if kind[1] is pools:
        with pytest.raises(LeaseError):
            ways[how](producer)
    connections.force_close_all()


@pytest.mark.parametrize("name", CALLED)
def test_a_hook_that_is_set_on_one_pool_is_refused_because_nobody_would_call_it(name: str) -> None:
    connections = pools.ConnectionPool(kombu.Connection("memory://"), limit=1)
    for pool in (connections, pools.ProducerPool(connections)):
        with pytest.raises(AttributeError, match=f"define a subclass with a {name} of its own"):
            setattr(pool, name, lambda *args: None)


def test_what_is_called_on_a_pool_may_be_replaced_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pools.ConnectionPool(kombu.Connection("memory://"), limit=1)
    monkeypatch.setattr(pool, "acquire", lambda *args, **kwargs: "mine")
    assert pool.acquire(timeout=PATIENCE) == "mine"
    monkeypatch.undo()
    pool.acquire(timeout=PATIENCE).release()


def test_a_connection_that_is_yet_to_be_made_is_not_collected() -> None:
    pool = pools.ConnectionPool(kombu.Connection("memory://"), limit=1)
    made: list[object] = []
    pool.collect_resource(lazy(made.append, "made"))
    assert not made


def test_a_hook_may_acquire_another_producer_of_the_same_connections(
    kind: tuple[type[Any], ModuleType],
) -> None:
    base, module = kind
    connections = base(kombu.Connection("memory://"), limit=3)
    others = module.ProducerPool(connections, limit=3)

    class Audited(module.ProducerPool):  # type: ignore[name-defined,misc]
        def create_producer(self) -> Any:
            with others.acquire(block=True):
                return super().create_producer()

        def prepare(self, p: Any) -> Any:
            producer = super().prepare(p)
            with others.acquire(block=True) as other:
                other.publish("lent", routing_key="audit")
            return producer

    pool = Audited(connections, limit=3)
    for _ in range(2):
        with pool.acquire(block=True) as producer:
            producer.publish("x", routing_key="nobody")
    if module is pools:
        assert (connections.lent, pool.lent, others.lent) == (0, 0, 0)
    connections.force_close_all()


def test_a_connection_that_a_hook_replaces_at_its_release_is_closed_and_told_to_close_resource() -> (
    None
):
    calls: list[str] = []

    class Careful(pools.ConnectionPool):
        def release_resource(self, resource: Any) -> None:
            calls.append("release")
            self.replace(resource)

        def close_resource(self, resource: Any) -> None:
            calls.append("close")

    pool = Careful(kombu.Connection("memory://"), limit=1)
    pool.acquire(timeout=PATIENCE).release()
    assert calls == ["release", "close"]
    assert (pool.stats().closed, pool.stats().idle) == ({"replaced": 1}, 0)


def test_new_may_not_return_a_lease_of_another_pool() -> None:
    others = pools.ConnectionPool(kombu.Connection("memory://"), limit=1)

    class Borrowing(pools.ConnectionPool):
        def new(self) -> Any:
            return others.acquire(timeout=PATIENCE)

    with pytest.raises(TypeError, match=r"new\(\) returned a lease of another pool"):
        Borrowing(kombu.Connection("memory://"), limit=1).acquire(timeout=PATIENCE)
    assert others.lent == 0


def test_the_global_limit_is_told_to_setup_as_a_limit_of_its_own_is() -> None:
    limits: list[int | None] = []

    class Noting(pools.ConnectionPool):
        def setup(self) -> None:
            limits.append(self.limit)

    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Any:
            return Noting(resource, limit=limit)

    group = pools.register_group(Group(limit=pools.use_global_limit))
    before = pools.get_limit()
    held = group[kombu.Connection("memory://")]
    try:
        pools.set_limit(before + 1)
    finally:
        pools.set_limit(before)
    assert limits == [before, before + 1, before]
    assert held.follows_global_limit
