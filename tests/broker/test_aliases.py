"""A set of aliases over the shared groups: sharing, publishing with retries, reloading; and the events."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError

from kombu_pools_ext import Pools, configure, connections, events, producers, reset
from kombu_pools_ext.errors import BrokerUnreachable, PoolTimeout, SettingsError, UnknownAlias

from .common import PATIENCE, eventually
from .conftest import Inbox

MakeInbox = Callable[[str], Inbox]

NO_PAUSE = {"max_retries": 3, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def break_idle(pool: Any) -> int:
    """Cut the connections that the pool keeps idle, under it; how many there were."""
    idle = list(pool.engine.state.idle)
    for entry in idle:
        entry.item.connection._transport.sock.shutdown(socket.SHUT_RDWR)
    return len(idle)


def fill(pool: Any, count: int) -> None:
    """Leave *count* connections idle."""
    for lent in [pool.acquire(timeout=PATIENCE) for _ in range(count)]:
        lent.release()


# -- the aliases -------------------------------------------------------------------------------------------------------


def test_two_sets_share_a_pool_where_they_mean_the_same(memory_url: str) -> None:
    one = Pools({"default": {"URL": memory_url, "LIMIT": 3}})
    two = Pools(events={"url": memory_url, "limit": 3}, other={"url": memory_url, "limit": 4})
    assert one.connections["default"] is two.connections["events"]
    assert one.producers["default"] is two.producers["events"]
    assert one.connections["default"] is not two.connections["other"]
    assert connections[one.settings["default"]] is one.connections["default"]


def test_what_belongs_to_the_caller_makes_no_other_pool(memory_url: str) -> None:
    pools = Pools(
        plain={"url": memory_url},
        patient={"url": memory_url, "acquire_timeout": 60, "retry": None},
    )
    assert pools.connections["plain"] is pools.connections["patient"]
    # When to try again is the producers' affair.
    assert pools.producers["plain"] is not pools.producers["patient"]
    assert pools.producers["plain"].connections is pools.producers["patient"].connections
    assert pools.producers["patient"].retry is None


def test_a_view_is_a_mapping_of_aliases(memory_url: str) -> None:
    pools = Pools(a={"url": memory_url}, b={"url": memory_url, "limit": 2})
    for view, group in ((pools.connections, connections), (pools.producers, producers)):
        assert view.group is group
        assert list(view) == ["a", "b"]
        assert len(view) == 2
        assert "a" in view
        assert "c" not in view
        assert view.get("c") is None
        assert dict(view) == {"a": view["a"], "b": view["b"]}
        assert view[memory_url] is group[memory_url]
        assert view[kombu.Connection(memory_url)] is group[memory_url]
        assert view[[memory_url]] is group[memory_url]
        assert repr(view) == f"<{type(group).__name__} by alias of <Pools: a, b>>"
    assert not any(name in connections for name in ("a", "b"))


def test_an_unknown_alias(memory_url: str) -> None:
    pools = Pools(orders={"url": memory_url})
    for attempt in (
        lambda: pools.connections["order"],
        lambda: pools.producers["order"],
        lambda: pools.publish("hello", "q", using="order"),
        lambda: pools.settings_of("order"),
        lambda: pools.pools_of(["order"]),
        lambda: pools.reset(["orders", "order"]),
    ):
        with pytest.raises(UnknownAlias, match="did you mean 'orders'"):
            attempt()


def test_settings_are_read_at_the_first_use_of_a_function(memory_url: str) -> None:
    calls = []

    def settings() -> Any:
        calls.append(1)
        return {"default": {"URL": memory_url}} if len(calls) > 1 else {"default": {"ULR": "x"}}

    pools = Pools(settings, name="SHOP_POOLS")
    assert calls == []
    with pytest.raises(SettingsError, match=r"SHOP_POOLS.*ULR"):
        pools.connections["default"]
    assert pools.connections["default"].limit == 10
    assert pools.producers["default"].limit == 10
    assert len(calls) == 2


def test_a_set_with_problems_can_be_shown() -> None:
    assert repr(Pools(lambda: {"a": {"URL": "", "X": 1}})) == "<Pools: 2 problems in KOMBU_POOLS>"
    with pytest.raises(SettingsError):
        Pools({"a": {"URL": ""}})


def test_the_aliases_of_a_pool(memory_url: str) -> None:
    pools = Pools(a={"url": memory_url}, b={"url": memory_url}, c={"url": f"{memory_url}c"})
    assert pools.aliases_of(connections[memory_url]) == ()
    pool = pools.connections["a"]
    assert pools.aliases_of(pool) == ("a", "b")
    reset()
    assert pools.aliases_of(pool) == ("a", "b")
    assert len(connections) == 0
    assert pools.pools_of() == {"a": pool, "b": pool, "c": pools.connections["c"]}
    assert list(pools.pools_of(["c"])) == ["c"]


# -- publish -----------------------------------------------------------------------------------------------------------


def test_publish(url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    pools = Pools(
        default={"url": url, "limit": 1},
        packed={"url": url, "serializer": "pickle", "compression": "gzip"},
    )
    pools.publish({"id": 1}, routing_key=box.name)
    pools.publish({"id": 2}, box.name, using="packed", headers={"a": "b"}, message_id="mine")
    one, two = box.messages()
    assert one.payload == {"id": 1}
    assert len(one.properties["message_id"]) == 36
    assert (two.content_type, two.headers["a"]) == ("application/x-python-serialize", "b")
    assert two.properties["message_id"] == "mine"
    assert pools.connections["default"].lent == 0


@pytest.mark.parametrize("broken", [1, 4])
def test_a_publish_whose_connection_broke_is_tried_on_another(
    amqp_url: str, inbox: MakeInbox, broken: int
) -> None:
    box = inbox(amqp_url)
    pools = Pools(
        default={"url": amqp_url, "retry": {**NO_PAUSE, "max_retries": 1}, "check_after": 60}
    )
    pool = pools.connections["default"]
    fill(pool, broken)
    assert break_idle(pool) == broken
    pools.publish("hello", routing_key=box.name)
    (message,) = box.messages()
    assert message.payload == "hello"
    assert message.properties["message_id"]
    stats = pool.stats()
    assert (stats.lent, stats.idle, stats.closed["broken"]) == (0, 1, 1)


@pytest.mark.parametrize("retry", [None, {**NO_PAUSE, "max_retries": 0}])
def test_without_retries_the_error_comes_at_once(
    amqp_url: str, inbox: MakeInbox, retry: Any
) -> None:
    box = inbox(amqp_url)
    pools = Pools(default={"url": amqp_url, "retry": retry, "check_after": 60})
    fill(pools.connections["default"], 1)
    break_idle(pools.connections["default"])
    with pytest.raises(OSError):
        pools.publish("lost", routing_key=box.name)
    stats = pools.connections["default"].stats()
    assert (stats.lent, stats.idle, stats.closed) == (0, 0, {"broken": 1})
    pools.publish("next", routing_key=box.name)
    assert box.bodies() == ["next"]


def test_a_broker_that_is_not_there_is_told_by_the_acquire(nowhere: int) -> None:
    nobody = f"amqp://guest:guest@127.0.0.1:{nowhere}//"
    pools = Pools(default={"url": nobody, "acquire_timeout": 0.1})
    with pytest.raises(OperationalError) as caught:
        pools.publish("lost", "q")
    assert isinstance(caught.value, BrokerUnreachable)


def test_the_acquire_timeout(memory_url: str, inbox: MakeInbox) -> None:
    box = inbox(memory_url)
    pools = Pools(
        default={"url": memory_url, "limit": 1, "acquire_timeout": 0.1},
        never={"url": memory_url, "limit": 1, "acquire_timeout": 0},
    )
    with pools.connections["default"].acquire():
        for using, arguments, least in (
            ("default", {}, 0.1),
            ("never", {}, 0),
            ("never", {"acquire_timeout": 0.2}, 0.2),
            ("default", {"acquire_timeout": 0}, 0),
        ):
            began = time.monotonic()
            with pytest.raises(PoolTimeout) as caught:
                pools.publish("lost", routing_key=box.name, using=using, **arguments)
            assert time.monotonic() - began >= least
            assert isinstance(caught.value, LimitExceeded)
    pools.publish("sent", routing_key=box.name, acquire_timeout=None)
    assert box.bodies() == ["sent"]


def test_a_body_that_cannot_be_serialised(url: str, inbox: MakeInbox) -> None:
    box = inbox(url)
    pools = Pools(default={"url": url, "limit": 1, "retry": NO_PAUSE})
    pools.publish(1, routing_key=box.name)
    with pytest.raises(EncodeError):
        pools.publish(object(), routing_key=box.name)
    pools.publish(2, routing_key=box.name)
    assert box.bodies() == [1, 2]
    stats = pools.connections["default"].stats()
    # One connection served all three.
    assert (stats.opened, stats.idle, stats.lent, stats.closed) == (1, 1, 0, {})
    assert pools.producers["default"].lent == 0


# -- reload and reset --------------------------------------------------------------------------------------------------


def test_reset_closes_the_pools_of_the_aliases(memory_url: str) -> None:
    pools = Pools(a={"url": memory_url}, b={"url": f"{memory_url}b"})
    other = connections[f"{memory_url}other"]
    held = {alias: pools.connections[alias] for alias in pools.settings}
    for pool in (*held.values(), other):
        fill(pool, 2)
    with held["a"].acquire() as lent:
        assert pools.reset(["a"]) == {"a": (1, 1)}
        assert lent.connected
        # The one that was opened first the last time.
        assert pools.reset() == {"a": (1, 1), "b": (2, 0)}
        assert pools.reset(force=True) == {"a": (1, 1), "b": (1, 0)}
    assert held["a"].stats().closed == {"drained": 4}
    assert other.stats().idle == 2
    assert dict(pools.connections) == held


def test_forgotten_settings_are_read_at_the_next_use(memory_url: str) -> None:
    current: Any = {"default": {"URL": memory_url}}
    pools = Pools(lambda: current)
    before = pools.connections["default"]
    before.acquire().release()
    current = {"default": {"LIMIT": -1}}
    pools.forget_settings()
    assert before.stats().closed == {"drained": 1}
    with pytest.raises(SettingsError):
        pools.connections["default"]
    current = {"default": {"URL": memory_url, "LIMIT": 4}}
    assert pools.connections["default"].limit == 4


# -- events ------------------------------------------------------------------------------------------------------------

Told = list[tuple[str, Any]]


@pytest.fixture
def told() -> Iterator[Told]:
    """What the events tell: their name, and all they are sent with."""
    seen: Told = []
    listeners = []
    for name in ("connection_opened", "connection_closed", "pool_exhausted", "pools_reset"):

        def listener(name: str = name, **what: Any) -> None:
            seen.append((name, what))

        event = getattr(events, name)
        event.connect(listener)
        listeners.append((event, listener))
    yield seen
    for event, listener in listeners:
        event.disconnect(listener)


def test_what_happens_to_connections_is_told(memory_url: str, told: Told) -> None:
    pools = Pools(default={"url": memory_url, "limit": 1})
    pool = pools.connections["default"]

    def told_of_it() -> list[Any]:
        # An opener of an earlier test's pool may have its word to say yet.
        return [(what, of) for what, of in told if of["pool"] is pool]

    with pool.acquire():
        # Told by the thread that opened it, while its borrower goes on.
        eventually(told_of_it)
        with pytest.raises(LimitExceeded):
            pool.acquire()
        with pytest.raises(LimitExceeded):
            pool.acquire(timeout=0)
    pool.replace(pool.acquire())
    assert told_of_it() == [
        ("connection_opened", {"pool": pool}),
        ("pool_exhausted", {"pool": pool, "reason": "exhausted"}),
        ("pool_exhausted", {"pool": pool, "reason": "timeout"}),
        ("connection_closed", {"pool": pool, "reason": "replaced"}),
    ]


def test_resets_are_told_with_their_reason(memory_url: str, told: Told) -> None:
    pools = Pools(default={"url": memory_url})
    reset()
    reset(reason="command")
    pools.reset()
    pools.reset(reason="command")
    pools.forget_settings()
    # An opener of an earlier test's pool may have its word to say yet.
    resets = [what["reason"] for name, what in told if name == "pools_reset"]
    assert resets == ["api", "command", "api", "command", "settings"]


def test_a_listener_is_told_once_and_until_it_is_disconnected(memory_url: str) -> None:
    seen = []
    before = repr(events.pools_reset)

    def listener(reason: str) -> None:
        seen.append(reason)

    assert events.pools_reset.connect(listener) is listener
    events.pools_reset.connect(listener)
    assert repr(events.pools_reset) != before
    reset()
    events.pools_reset.disconnect(listener)
    events.pools_reset.disconnect(listener)
    reset()
    assert seen == ["api"]
    assert repr(events.pools_reset) == before


def test_a_listener_that_raises_breaks_nothing(
    memory_url: str, inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    box = inbox(memory_url)
    mine = Pools(default={"url": memory_url, "limit": 1}).connections["default"]

    def listener(pool: Any = mine, **what: Any) -> None:
        # An opener of an earlier test's pool may have its word to say yet.
        if pool is mine:
            raise ZeroDivisionError

    names = ("connection_opened", "connection_closed", "pool_exhausted", "pools_reset")
    for name in names:
        getattr(events, name).connect(listener)
    try:
        pools = Pools(default={"url": memory_url, "limit": 1})
        pools.publish("hello", routing_key=box.name)
        eventually(lambda: caplog.records)
        with pools.producers["default"].acquire(), pytest.raises(LimitExceeded):
            pools.connections["default"].acquire()
        pools.reset()
    finally:
        for name in names:
            getattr(events, name).disconnect(listener)
    assert box.bodies() == ["hello"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        f"a listener to {name} failed"
        for name in (
            "connection_opened",
            "pool_exhausted",
            "connection_opened",  # the one that a reset opens first
            "connection_closed",
            "pools_reset",
        )
    ]


def test_configure_gives_a_set_and_names_the_pools(memory_url: str, inbox: MakeInbox) -> None:
    box = inbox(memory_url)
    pools = configure({"default": {"URL": memory_url}}, other={"url": memory_url, "limit": 2})
    assert connections["default"] is pools.connections["default"]
    with producers["other"].acquire(timeout=PATIENCE) as producer:
        producer.publish("hello", routing_key=box.name)
    assert box.bodies() == ["hello"]
