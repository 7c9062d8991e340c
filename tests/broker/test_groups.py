"""Groups: what a pool is looked up by, how long it stays, and the limit that governs it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import kombu.connection
import kombu.pools
import pytest
from kombu import Connection
from kombu.exceptions import ConnectionLimitExceeded, LimitExceeded

from kombu_pools_ext import (
    Connections,
    PoolGroup,
    PoolSettings,
    Producers,
    configure,
    connections,
    get_limit,
    producers,
    register_group,
    reset,
    set_limit,
    use_global_limit,
)
from kombu_pools_ext.broker import groups
from kombu_pools_ext.errors import SettingsError, UnknownAlias

from .common import PATIENCE, eventually, within

GROUPS = pytest.mark.parametrize(
    "group", [connections, producers], ids=["connections", "producers"]
)


@pytest.fixture
def kombu_group() -> Iterator[Callable[..., Any]]:
    """Makes groups of kombu's own, registered with ours."""
    made = []

    def make(limit: Any = None) -> Any:
        made.append(register_group(kombu.pools.Connections(limit=limit)))
        return made[-1]

    yield make
    for group in made:
        for pool in group.values():
            pool.force_close_all()


# -- looking up --------------------------------------------------------------------------------------------------------


@GROUPS
def test_one_pool_by_all_its_names(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    assert group[Connection(memory_url)] is pool
    assert group[[memory_url]] is pool
    assert group[(memory_url,)] is pool
    with pool.acquire():
        pass


@GROUPS
def test_an_alias_and_its_settings(group: Any, memory_url: str) -> None:
    pools = configure(default={"url": memory_url, "limit": 2})
    assert group["default"] is group[pools.settings["default"]]
    assert group["default"] is group[PoolSettings.of(url=memory_url, limit=2)]
    assert group["default"].limit == 2
    # An alias has defaults that a URL has not.
    assert group["default"] is not group[memory_url]


@GROUPS
def test_a_url_and_a_failover_list(group: Any) -> None:
    one, two = "amqp://a//", "amqp://b//"
    assert group[[one, two]] is group[f"{one};{two}"] is group[Connection([one, two])]
    assert group[[one, two]] is not group[one]


@GROUPS
@pytest.mark.parametrize("nothing", [[], ()])
def test_an_empty_list_is_refused(group: Any, nothing: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        group[nothing]


@GROUPS
@pytest.mark.parametrize("thing", [None, 5, b"amqp://", {"url": "amqp://"}, object()])
def test_what_names_no_broker_is_refused(group: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"a kombu\.Connection, a URL, a list of URLs or an alias"):
        group[thing]


@GROUPS
def test_an_unknown_alias_is_told_with_the_known_ones_and_the_nearest(group: Any) -> None:
    configure(orders={"url": "memory://"}, audit={"url": "memory://"})
    with pytest.raises(UnknownAlias) as caught:
        group["odrers"]
    assert isinstance(caught.value, KeyError)
    message = str(caught.value)
    assert message.startswith("no broker pool is configured under 'odrers'; did you mean 'orders'?")
    assert "'orders', 'audit'" in message
    with pytest.raises(UnknownAlias, match="configured: 'orders', 'audit'") as caught:
        group["xyz"]
    assert "did you mean" not in str(caught.value)


@GROUPS
def test_without_any_alias_the_error_says_so(group: Any) -> None:
    with pytest.raises(UnknownAlias, match=r"configured: none"):
        group["default"]
    with pytest.raises(UnknownAlias):
        group[""]


@GROUPS
def test_configure_again_replaces_the_aliases(group: Any, memory_url: str) -> None:
    configure(one={"url": memory_url}, both={"url": memory_url, "limit": 3})
    before = group["both"]
    assert group["one"] is group["one"]
    configure(both={"url": memory_url, "limit": 4})
    assert group["both"] is not before
    assert group["both"].limit == 4
    with pytest.raises(UnknownAlias):
        group["one"]


def test_a_configuration_that_is_wrong_leaves_the_old_one(memory_url: str) -> None:
    configure(default={"url": memory_url})
    pool = connections["default"]
    with pytest.raises(SettingsError):
        configure(default={"url": memory_url, "limit": -1})
    assert connections["default"] is pool


@GROUPS
def test_membership(group: Any, memory_url: str) -> None:
    configure(default={"url": memory_url, "limit": 2})
    for name in ("default", memory_url, Connection(memory_url), [memory_url], "unknown"):
        assert name not in group
        assert group.get(name) is None
        assert group.get(name, 5) == 5
    assert len(group) == 0

    pool, other = group[memory_url], group["default"]
    for name in (memory_url, Connection(memory_url), [memory_url]):
        assert name in group
        assert group.get(name) is pool
    assert "default" in group
    assert group.get("default") is other
    assert "unknown" not in group
    assert set(group.values()) == {pool, other}


@GROUPS
def test_a_groups_keys_are_names_too(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    (key,) = group
    assert key in group
    assert group[key] is group.get(key) is pool
    del group[key]
    assert key not in group
    with pytest.raises(KeyError):
        group[key]
    with pytest.raises(KeyError):
        del group[key]


@GROUPS
def test_deleted_a_pool_is_made_anew(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    del group[memory_url]
    assert memory_url not in group
    assert group[memory_url] is not pool
    with pytest.raises(KeyError):
        del group[f"{memory_url}x"]


@GROUPS
def test_a_pool_can_be_put_in(group: Any, memory_url: str) -> None:
    pool, mine = group[memory_url], group.create(Connection(memory_url), 1)
    group[memory_url] = mine
    assert group[memory_url] is group[Connection(memory_url)] is mine
    group.clear()
    assert group[memory_url] is not pool


@GROUPS
def test_discarded_a_pool_comes_back_while_somebody_holds_it(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    group.discard(memory_url)
    group.discard(memory_url)
    assert memory_url not in group
    assert group[memory_url] is pool


@GROUPS
def test_the_repr_of_a_group(group: Any, memory_url: str) -> None:
    assert repr(group) == f"<{type(group).__name__}: >"
    group[memory_url]
    expected = f"<{type(group).__name__}: {group[memory_url]!r}>"
    assert repr(group) == expected
    assert "0 of 10 (0 idle, 0 lent), 0 waiting" in expected
    with group[memory_url].acquire():
        assert "1 of 10 (0 idle, 1 lent), 0 waiting" in repr(group)


def test_producers_draw_on_the_connections_of_the_same_broker(memory_url: str) -> None:
    configure(default={"url": memory_url, "limit": 1})
    for name in (memory_url, "default"):
        assert producers[name].connections is connections[name]
    with producers["default"].acquire():
        with pytest.raises(ConnectionLimitExceeded):
            connections["default"].acquire()


def test_producers_with_other_defaults_share_the_connections(memory_url: str) -> None:
    configure(
        plain={"url": memory_url},
        pickled={"url": memory_url, "serializer": "pickle", "compression": "gzip"},
    )
    assert producers["plain"] is not producers["pickled"]
    assert connections["plain"] is connections["pickled"]
    with producers["plain"].acquire() as one, producers["pickled"].acquire() as two:
        assert (one.serializer, one.compression) == (None, None)
        assert (two.serializer, two.compression) == ("pickle", "gzip")


# -- the global limit --------------------------------------------------------------------------------------------------


def test_who_follows_the_global_limit_and_who_does_not(memory_url: str) -> None:
    configure(
        follows={"url": memory_url},
        own={"url": memory_url, "limit": 3},
        unlimited={"url": memory_url, "limit": None},
    )
    group = register_group(Connections(limit=4))
    following = register_group(Producers(limit=use_global_limit))
    assert set_limit(7) == get_limit() == 7
    pools = {name: (connections[name], producers[name]) for name in ("follows", "own", "unlimited")}
    set_limit(8)
    limits = {name: {pool.limit for pool in both} for name, both in pools.items()}
    assert limits == {"follows": {8}, "own": {3}, "unlimited": {None}}
    assert group[memory_url].limit == 4
    assert following[memory_url].limit == connections[memory_url].limit == 8
    set_limit(9)
    assert (group[memory_url].limit, following[memory_url].limit) == (4, 9)


@GROUPS
def test_a_limit_set_on_the_pool_is_its_own_from_then_on(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    pool.limit = 5
    set_limit(7)
    assert pool.limit == 5
    reset()
    set_limit(8)
    assert group[memory_url] is pool
    assert pool.limit == 5


def test_no_limit(memory_url: str) -> None:
    pool = connections[memory_url]
    for nothing in (None, 0):
        assert set_limit(nothing) == get_limit() == 0
        assert pool.limit is None
        set_limit(3)
        pool = connections[memory_url]
        assert pool.limit == 3


@pytest.mark.parametrize(
    "limit, error",
    [(True, TypeError), (False, TypeError), (2.5, TypeError), ("5", TypeError), (-1, ValueError)],
)
def test_a_limit_that_is_none_is_refused_by_name(memory_url: str, limit: Any, error: type) -> None:
    pool = connections[memory_url]

    def set_property() -> None:
        pool.limit = limit

    attempts: list[Callable[[], Any]] = [
        lambda: set_limit(limit),
        lambda: set_limit(limit, force=True),
        set_property,
        lambda: pool.resize(limit),
        lambda: producers[memory_url].resize(limit),
        lambda: Connections(limit=limit)[memory_url],
    ]
    for attempt in attempts:
        with pytest.raises(error, match="limit must be"):
            attempt()
    assert (get_limit(), pool.limit, producers[memory_url].limit) == (10, 10, 10)


@GROUPS
@pytest.mark.parametrize(
    "timeout, error",
    [
        (True, TypeError),
        ("5", TypeError),
        (-0.1, ValueError),
        (float("nan"), ValueError),
    ],
)
def test_a_timeout_that_is_none_is_refused_by_name(
    group: Any, memory_url: str, timeout: Any, error: type
) -> None:
    pool = group[memory_url]
    for block in (True, False):
        with pytest.raises(error, match="timeout must be"):
            pool.acquire(block=block, timeout=timeout)
    assert pool.stats().acquires == 0


@GROUPS
def test_timeouts_at_the_edges(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    pool.limit = 1
    with within(PATIENCE, lambda: pool.acquire(timeout=float("inf"))):
        with pytest.raises(LimitExceeded):
            pool.acquire(timeout=0)
        with pytest.raises(LimitExceeded):
            pool.acquire(block=True, timeout=0)
    pool.acquire(timeout=0).release()


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_says_what_it_closed(memory_url: str) -> None:
    pool = connections[memory_url]
    lent = [pool.acquire() for _ in range(3)]
    lent.pop().release()
    with producers[memory_url].acquire():
        assert reset() == (0, 3)
    for one in lent:
        one.release()
    assert reset() == (0, 0)
    assert pool.stats().closed == {"drained": 3}


@GROUPS
def test_a_pool_that_somebody_holds_is_found_again(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    reset()
    assert len(group) == 0
    assert memory_url not in group
    assert group[memory_url] is group[Connection(memory_url)] is pool


@GROUPS
def test_a_pool_that_nobody_holds_goes(group: Any, memory_url: str) -> None:
    group[memory_url].acquire().release()
    gone = weakref.ref(group[memory_url])
    reset()

    def collected() -> bool:
        gc.collect()
        return gone() is None

    # The thread that tends pools may hold it for a moment.
    eventually(collected)


@GROUPS
def test_a_closed_pool_does_not_come_back(group: Any, memory_url: str) -> None:
    pool = group[memory_url]
    pool.force_close_all()
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire()
    reset()
    assert group[memory_url] is not pool
    if group is producers:
        connections[memory_url].force_close_all()
        closed = producers[memory_url]
        reset()
        assert producers[memory_url] is not closed
    group[memory_url].acquire().release()


def test_a_limit_set_between_reset_and_the_next_look_up_is_not_lost(memory_url: str) -> None:
    pool = connections[memory_url]
    reset()
    set_limit(4)
    assert pool.limit == 4
    assert connections[memory_url] is pool


def test_a_second_reset_reaches_a_pool_that_was_used_since_the_first(memory_url: str) -> None:
    pool = connections[memory_url]
    for count in (1, 2):
        pool.acquire().release()
        assert reset() == (1, 0)
        assert pool.stats().closed == {"drained": count}


# -- groups of others --------------------------------------------------------------------------------------------------


class Pool:
    """The least that a group may hold."""

    def __init__(self, limit: Any = None) -> None:
        self.limit = limit
        self.resets = 0
        self.fails = False

    def force_close_all(self) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.resets += 1

    def resize(self, limit: int, **kwargs: Any) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.limit = limit


class Group(PoolGroup):
    def create(self, resource: Any, limit: int | None) -> Pool:
        return Pool(limit)


def test_a_registered_group_is_reached() -> None:
    following, own = register_group(Group(limit=use_global_limit)), register_group(Group(limit=5))
    one, two = following["any"], own["any"]
    assert (one.limit, two.limit) == (10, 5)
    set_limit(3)
    assert (one.limit, two.limit) == (3, 5)
    reset()
    assert (one.resets, two.resets) == (1, 1)
    assert not following
    assert not own


def test_a_group_that_is_not_registered_is_left_alone() -> None:
    group = Group(limit=use_global_limit)
    pool = group["any"]
    set_limit(3)
    reset()
    assert (pool.limit, pool.resets) == (10, 0)
    assert group["any"] is pool


def test_a_pool_that_fails_saves_no_other_from_the_reset(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = register_group(Group()), register_group(Group())
    failing, other = before["failing"], after["other"]
    failing.fails = True
    pool = connections[memory_url]
    pool.acquire().release()
    assert reset() == (1, 0)
    assert other.resets == 1
    assert not before
    assert not after
    assert "could not be reset" in caplog.text


def test_a_pool_that_fails_saves_no_other_from_the_limit(memory_url: str) -> None:
    group, pool = register_group(Group(limit=use_global_limit)), connections[memory_url]
    failing, other = group["failing"], group["other"]
    failing.fails = True
    with pytest.raises(ZeroDivisionError):
        set_limit(3)
    assert get_limit() == pool.limit == other.limit == 3


def test_a_plain_dict_of_pools_can_be_registered() -> None:
    pool = Pool(5)
    group = register_group({"any": pool})
    set_limit(3)
    assert pool.limit == 5
    reset()
    assert pool.resets == 1
    assert group == {}


def test_kombus_own_pools_follow(memory_url: str, kombu_group: Callable[..., Any]) -> None:
    following, own = kombu_group(use_global_limit), kombu_group(5)
    connection = Connection(memory_url)
    one, two = following[connection], own[connection]
    lent = one.acquire()
    set_limit(3)
    assert (one.limit, two.limit) == (3, 5)
    more = [one.acquire(), one.acquire()]
    with pytest.raises(LimitExceeded):
        one.acquire()
    with pytest.raises(RuntimeError, match="nothing has changed"):
        set_limit(2)
    assert (get_limit(), one.limit) == (3, 3)
    for each in [lent, *more]:
        each.release()


def test_kombus_own_pools_are_usable_after_a_reset(
    amqp_url: str, kombu_group: Callable[..., Any]
) -> None:
    pool = kombu_group(1)[Connection(amqp_url)]
    with pool.acquire() as lent:
        lent.ensure_connection(max_retries=1)
        idle = lent.connection
    reset()
    assert not idle.connected
    with within(PATIENCE, lambda: pool.acquire(block=True)) as lent:
        lent.ensure_connection(max_retries=1)
        with pytest.raises(LimitExceeded):
            pool.acquire()
    pool.force_close_all()


@pytest.mark.parametrize("kind", [Group, Connections, dict, type("Mine", (), {})])
def test_a_class_is_no_group(kind: Any) -> None:
    before = groups.registered_groups()
    with pytest.raises(
        TypeError, match=rf"{kind.__name__} is a class.*= register_group\({kind.__name__}\("
    ):
        register_group(kind)
    assert groups.registered_groups() == before
    reset()
    set_limit(3)


@pytest.mark.parametrize("what", [None, 5, "group", [], Pool(5)])
def test_what_has_no_pools_is_no_group(what: Any) -> None:
    with pytest.raises(TypeError, match="a group of pools"):
        register_group(what)
    reset()


def test_every_registered_group_is_known() -> None:
    group = register_group(Group())
    assert groups.registered_groups()[:2] == (connections, producers)
    assert groups.registered_groups()[-1] is group


def test_a_group_that_hands_out_anothers_pool_leaves_it_the_global_limit(memory_url: str) -> None:
    class Others(PoolGroup):
        def create(self, connection: Any, limit: int | None) -> Any:
            return connections[connection]

    others = register_group(Others(limit=3))
    pool = others[Connection(memory_url)]
    set_limit(7)
    assert pool is connections[Connection(memory_url)]
    assert pool.limit == 7
