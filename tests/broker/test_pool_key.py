"""A connection remembers its pool, and must not find it once it has been changed."""

from __future__ import annotations

import enum
import gc
import ssl
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kombu_pools_ext import Connections, PoolGroup, Pools, connections, producers, reset
from kombu_pools_ext.broker.pool_key import KEY_CACHE, key_of
from kombu_pools_ext.settings.nested import copy_options

from .common import PATIENCE

#: What looks pools up by a connection.
LOOKUPS: dict[str, Callable[[], Any]] = {
    "connections": lambda: connections,
    "producers": lambda: producers,
    "connections by alias": lambda: Pools().connections,
    "producers by alias": lambda: Pools().producers,
}


@pytest.fixture(params=LOOKUPS)
def lookup(request: pytest.FixtureRequest) -> Any:
    return LOOKUPS[request.param]()


def without_its_cache(connection: kombu.Connection) -> kombu.Connection:
    """One like it that has not been looked up by."""
    like_it = object.__new__(kombu.Connection)
    like_it.__dict__ = {**connection.__dict__}
    like_it.__dict__.pop(KEY_CACHE, None)
    return like_it


def password() -> str:
    return "of the hour"


CONTEXT = ssl.create_default_context()

#: What each attribute that makes two connections different may be, no two of them equal.
VALUES: dict[str, list[Any]] = {
    "hostname": ["one", "two"],
    "userid": ["guest", "somebody"],
    "password": ["secret", "another", password],
    "virtual_host": ["/", "orders"],
    "port": [5672, 5673],
    "login_method": ["PLAIN", "EXTERNAL"],
    "connect_timeout": [5, 7.5],
    "heartbeat": [0, 30.0],
    "transport_cls": ["memory", "amqp"],
    "uri_prefix": [None, "sqla"],
    "_failover_strategy": ["round-robin", "shuffle", password],
    "credential_provider": [None, password, object()],
    "ssl": [False, True, {"ca_certs": "/a"}, {"ca_certs": "/b", "context": CONTEXT}],
    "transport_options": [{}, {"confirm_publish": True}, {"a": [{"b": (1, 2)}]}],
    "alt": [[], ["amqp://a//"], ["amqp://a//", "amqp://b//"]],
}
if not hasattr(kombu.Connection("memory://"), "credential_provider"):
    # A kombu that has none has it neither in its settings.
    del VALUES["credential_provider"]


@pytest.mark.parametrize("name", VALUES)
def test_each_attribute_that_is_changed_leads_to_another_pool(lookup: Any, name: str) -> None:
    connection = kombu.Connection("memory://one", port=1)
    found = {}
    for _ in range(2):
        for number, value in enumerate(VALUES[name]):
            setattr(connection, name, copy_options(value))
            pool = lookup[connection]
            assert found.setdefault(number, pool) is pool
            assert lookup[connection] is lookup[connection] is pool
    assert len(set(map(id, found.values()))) == len(VALUES[name])


CHANGES: dict[str, Callable[[kombu.Connection], object]] = {
    "an option": lambda one: one.transport_options.update(a=2),
    "an option of an option": lambda one: one.transport_options["nested"]["of"].append(1),
    "an option less": lambda one: one.transport_options.popitem(),
    "an alternate": lambda one: one.alt.append("memory://three"),
    "the order of alternates": lambda one: one.alt.reverse(),
    "an option of TLS": lambda one: one.ssl.update(ca_certs="/b"),
    "another broker": lambda one: one.switch("memory://two"),
    "the next broker": lambda one: one.maybe_switch_next(),
    "an attribute that is gone": lambda one: delattr(one, "virtual_host"),
    "one that was not there": lambda one: setattr(one, "uri_prefix", "sqla"),
    "all of its state": lambda one: setattr(
        one, "__dict__", {**one.__dict__, "virtual_host": "another"}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_place_leads_to_another_pool(lookup: Any, change: str) -> None:
    connection = kombu.Connection(
        ["memory://one", "memory://two"],
        virtual_host="first",
        transport_options={"a": 1, "nested": {"of": []}},
        ssl={"ca_certs": "/a"},
    )
    before = lookup[connection]
    assert lookup[connection] is before
    CHANGES[change](connection)
    after = lookup[connection]
    assert after is not before
    assert after is lookup[connection] is lookup[without_its_cache(connection)]


def test_a_copy_of_its_state_has_no_part_in_what_it_remembers(lookup: Any) -> None:
    connection, other = kombu.Connection("memory://one"), kombu.Connection("memory://one")
    pool = lookup[connection]
    other.__dict__.update(connection.__dict__)
    assert lookup[other] is pool
    other.__dict__.update(connection.__dict__)
    other.virtual_host = "another"
    assert lookup[other] is not pool
    assert lookup[connection] is pool


@given(
    steps=st.lists(
        st.sampled_from([(name, value) for name, values in VALUES.items() for value in values])
        | st.sampled_from(["mutate", "reset", "use"])
        | st.sampled_from(list(LOOKUPS)),
        max_size=30,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_done_to_it_it_finds_what_one_finds_that_remembers_nothing(
    steps: list[Any],
) -> None:
    connection = kombu.Connection("memory://one", port=1)
    lookups = {name: make() for name, make in LOOKUPS.items()}
    for step in [*steps, *LOOKUPS]:
        if isinstance(step, tuple):
            setattr(connection, step[0], copy_options(step[1]))
        elif step == "mutate":
            connection.alt.append("amqp://c//")
        elif step == "reset":
            reset()
        elif step == "use":
            connection.declared_entities.add(object())
        else:
            lookup = lookups[step]
            pool = lookup[connection]
            assert lookup[connection] is lookup[without_its_cache(connection)] is pool
            assert key_of(connection) == key_of(without_its_cache(connection))
    reset()


def test_a_connection_of_a_class_with_ways_of_its_own_is_asked_each_time(lookup: Any) -> None:
    passwords = ["one"]

    class Rotating(kombu.Connection):
        @property
        def password(self) -> str:
            return passwords[-1]

        @password.setter
        def password(self, value: Any) -> None:
            pass

    class Named(kombu.Connection):
        """Has nothing of the kind."""

    connection = Rotating("memory://one")
    first = lookup[connection]
    assert lookup[connection] is first
    passwords.append("two")
    assert lookup[connection] is not first
    assert KEY_CACHE not in connection.__dict__
    named = Named("memory://one")
    assert lookup[named] is lookup[named] is lookup[kombu.Connection("memory://one")]
    assert KEY_CACHE in named.__dict__


def test_a_connection_that_is_used_finds_its_pool_still(lookup: Any, memory_url: str) -> None:
    connection = kombu.Connection(memory_url)
    pool = lookup[connection]
    with connection:
        connection.default_channel.queue_declare("orders")
        assert lookup[connection] is lookup[connection] is pool
    assert lookup[connection] is pool


def test_a_lease_names_its_pool_and_nothing_once_it_has_ended(lookup: Any, memory_url: str) -> None:
    pool = connections[memory_url]
    lease = pool.acquire(timeout=PATIENCE)
    found = lookup[lease]
    assert lookup[lease] is found
    assert getattr(found, "connections", found) is pool
    gone = weakref.ref(lease)
    lease.release()
    with pytest.raises(Exception, match="released"):
        lookup[lease]
    del lease
    gc.collect()
    assert gone() is None


def test_what_has_been_looked_up_by_does_not_stay(lookup: Any, memory_url: str) -> None:
    def look_up() -> weakref.ref[Any]:
        connection = kombu.Connection(memory_url)
        lookup[connection], lookup[connection]
        return weakref.ref(connection)

    # The first one is the pool's own.
    lookup[kombu.Connection(memory_url)]
    references = [look_up() for _ in range(10)]
    remembered = len(lookup._names)
    gc.collect()
    assert [one() for one in references] == [None] * 10
    assert remembered == len(lookup._names) == 1


def test_a_text_of_a_kind_of_its_own_is_a_name(lookup: Any, memory_url: str) -> None:
    class Broker(enum.StrEnum):
        ORDERS = memory_url

    assert lookup[Broker.ORDERS] is lookup[memory_url] is lookup[Broker.ORDERS]


def test_a_group_with_keys_of_its_own_is_asked_for_them_each_time(memory_url: str) -> None:
    tenant = ["one"]

    class Group(Connections):
        def key(self, resource: Any) -> Any:
            return tenant[0], super().key(resource)

    group, connection = Group(limit=1), kombu.Connection(memory_url)
    first = group[connection]
    assert connections[connection] is not first
    assert group[connection] is first
    tenant[0] = "two"
    assert group[connection] is not first


def test_a_group_that_takes_one_connection_for_another(memory_url: str) -> None:
    class Group(PoolGroup):
        def resolve(self, resource: Any) -> Any:
            return others[resource.virtual_host]

        def create(self, resource: Any, limit: int | None) -> Any:
            return object()

    others = {"a": kombu.Connection(memory_url), "b": kombu.Connection(f"{memory_url}-b")}
    group = Group()
    one, two = (kombu.Connection(memory_url, virtual_host=name) for name in "ab")
    assert group[one] is group[one]
    assert group[one] is not group[two]
    others["a"] = others["b"]
    assert group[one] is group[two]


@pytest.mark.threads
def test_a_connection_that_others_change_meanwhile(lookup: Any) -> None:
    """Whatever a look-up found, the next one after the last change finds what belongs to it."""
    connection = kombu.Connection("memory://one")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    over = threading.Event()

    def look_up() -> None:
        while not over.is_set():
            lookup[connection]

    threads = [threading.Thread(target=look_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            connection.virtual_host = f"tenant-{number % 7}"
            pool = lookup[connection]
            assert pool is lookup[without_its_cache(connection)]
            connection.transport_options["tenant"] = number % 5
            assert lookup[connection] is lookup[without_its_cache(connection)]
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(PATIENCE)
