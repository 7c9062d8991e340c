"""A reload goes on with other settings, and gives up nothing that works before the new connections are there."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext import aliases, connections, events
from kombu_pools_ext.aliases import Pools, configure
from kombu_pools_ext.control import local
from kombu_pools_ext.errors import ConnectionsKept, PoolSuspended, UnknownAlias
from kombu_pools_ext.settings import SettingsError
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.rig import in_child
from tests.brokers import PrivateRabbitMQ, PrivateRedis, free_port

NOWHERE = f"redis://127.0.0.1:{free_port()}/0"


#: A word for each question for CREDENTIALS.
ASKED: list[str] = []


class Source:
    """Settings that a test changes: what is called, or written into a file."""

    def __init__(self, **current: Any) -> None:
        self.current = current

    def __call__(self) -> Any:
        return self.current


def used(pools: Pools, alias: str = "default") -> Any:
    """The pool of *alias*, with a connection in it."""
    pool = pools.connections[alias]
    pool.acquire(timeout=PATIENCE).release()
    return pool


# -- what changes, and what stays --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["connections", "producers"])
def test_an_alias_in_use_goes_by_force_alone(memory_url: str, how: str) -> None:
    first = {"URL": memory_url, "LIMIT": 2}
    source = Source(default=first, unused={"URL": memory_url, "LIMIT": 3})
    pools = Pools(source)
    getattr(pools, how)["default"].acquire(timeout=PATIENCE).release()
    source.current = {"defualt": first}
    with pytest.raises(SettingsError, match=r"\['default'\]: it is gone, but this process uses it"):
        pools.reload()
    assert list(pools.settings) == ["default", "unused"]
    source.current = {"default": first}
    assert list(pools.reload().gone) == ["unused"]
    source.current = {"defualt": first}
    assert list(pools.reload(force=True).gone) == ["default"]


def test_an_alias_goes_whose_pool_another_one_has(memory_url: str) -> None:
    one = {"URL": memory_url, "LIMIT": 2}
    source = Source(default=one, other=one)
    pools = Pools(source)
    used(pools)
    source.current = {"default": one}
    assert list(pools.reload().gone) == ["other"]


def test_what_changed_begins_anew_and_what_stayed_keeps_its_connections(memory_url: str) -> None:
    source = Source(
        default={"URL": memory_url, "LIMIT": 2},
        same=memory_url,
        going={"URL": memory_url, "LIMIT": 3},
    )
    pools = Pools(source)
    before = {alias: used(pools, alias) for alias in pools.settings}
    producers = pools.producers["same"]
    source.current = {
        "default": {"URL": memory_url, "LIMIT": 4},
        "same": {"URL": memory_url},
        "coming": {"URL": memory_url, "LIMIT": 5},
    }
    done = pools.reload(force=True)
    assert (dict(done.changed), dict(done.gone)) == ({"default": (1, 0)}, {"going": (1, 0)})
    assert (done.new, done.stayed) == (("coming",), ("same",))
    assert pools.connections["default"].limit == pools.producers["default"].limit == 4
    # Opened before the former ones went.
    assert pools.connections["default"].stats().idle == 1
    assert pools.connections["same"] is before["same"]
    assert before["same"].stats().idle == 1
    assert pools.producers["same"] is producers
    assert before["default"].stats().closed == before["going"].stats().closed == {"drained": 1}
    # It was never used, and may be for others.
    assert pools.connections["coming"].stats().opened == 0
    with pytest.raises(UnknownAlias, match="'going'"):
        pools.connections["going"]
    # Whoever holds the old ones can go on, each time with a connection of its own.
    with before["default"].acquire():
        pass
    assert before["default"].stats().size == 0


def test_settings_that_are_not_the_connections_keep_them(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "ACQUIRE_TIMEOUT": 1, "RETRY": None})
    pools = Pools(source)
    pool, producers = used(pools), pools.producers["default"]
    source.current = {"default": {"URL": memory_url, "ACQUIRE_TIMEOUT": 2, "SERIALIZER": "pickle"}}
    assert dict(pools.reload().changed) == {"default": (0, 0)}
    assert pools.connections["default"] is pool
    assert pool.stats().idle == 1
    assert pools.producers["default"] is not producers
    assert pools.settings["default"].acquire_timeout == 2


def test_the_same_credentials_are_no_change(amqp_url: str) -> None:
    ASKED.clear()

    def settings() -> Any:
        # Another function each time, which says the same.
        def ask() -> tuple[str, str]:
            ASKED.append("")
            return "guest", "guest"

        return {"default": {"URL": amqp_url.replace("guest:guest@", ""), "CREDENTIALS": ask}}

    pools = Pools(settings)
    pool = used(pools)
    assert pools.reload().stayed == ("default",)
    assert pools.connections["default"] is pool
    # Each connection asks, that of a reset too.
    pools.reset()
    assert len(ASKED) == 2


def test_an_unused_alias_is_not_connected_to(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2}, elsewhere=NOWHERE)
    pools = Pools(source)
    used(pools)
    # Another process is the one that can reach it.
    source.current = {**source.current, "elsewhere": f"{NOWHERE[:-1]}1"}
    assert list(pools.reload().changed) == ["elsewhere"]
    assert pools.settings["elsewhere"].url[0].endswith("/1")


def test_a_reload_before_the_first_use_only_reads(memory_url: str) -> None:
    pools = Pools(lambda: {"default": memory_url})
    assert pools.reload().new == ("default",)
    assert pools.reload().stayed == ("default",)


def test_another_set_with_the_same_settings_loses_nothing(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2})
    one, two = Pools(source), Pools(default={"url": memory_url, "limit": 2})
    pool = used(one)
    assert pool is two.connections["default"]
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
    assert dict(one.reload().changed) == {"default": (0, 0)}
    assert two.connections["default"] is pool
    assert pool.stats().idle == 1


def test_the_aliases_of_plain_python_follow(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2})
    pools = configure(source)
    before = used(pools)
    assert connections["default"] is before
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
    pools.reload()
    assert connections["default"] is pools.connections["default"]
    assert connections["default"].limit == 3
    assert before.stats().closed == {"drained": 1}
    configure(default=memory_url)
    source.current = {"default": {"URL": memory_url, "LIMIT": 4}}
    # Others are in force by now.
    pools.reload()
    assert connections["default"].limit != 4


def test_back_to_the_former_settings(memory_url: str) -> None:
    former = {"default": {"URL": memory_url, "LIMIT": 2, "MIN_IDLE": 1}}
    source = Source(**former)
    pools = Pools(source)
    old = used(pools)
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
    pools.reload()
    source.current = former
    pools.reload()
    # Not the one that keeps nothing any more, though somebody holds it.
    assert pools.connections["default"] is not old
    assert pools.connections["default"].stats().idle == 1


def test_a_reload_is_told_if_there_was_something_new(memory_url: str) -> None:
    told: list[str] = []

    def listener(reason: str) -> None:
        told.append(reason)

    source = Source(default=memory_url)
    pools = Pools(source)
    pools.reload()
    events.pools_reset.connect(listener)
    try:
        pools.reload()
        assert told == []
        source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
        pools.reload()
    finally:
        events.pools_reset.disconnect(listener)
    assert told == ["settings"]


# -- what fails --------------------------------------------------------------------------------------------------


def test_wrong_settings_leave_the_old_ones_in_force(memory_url: str) -> None:
    source = Source(default=memory_url, other={"URL": memory_url, "LIMIT": 2})
    pools = Pools(source)
    pool = used(pools)
    source.current = {"default": {"LIMT": 3}, "other": {"URL": memory_url, "LIMIT": -1}}
    with pytest.raises(SettingsError) as caught:
        pools.reload()
    assert len(caught.value.problems) == 3
    [row] = local.reload(pools)
    assert (row.ok, row.alias, row.change) == (False, "KOMBU_POOLS", "kept")
    assert row.error is not None
    assert row.error.endswith("; the old settings stay in force")
    assert "did you mean 'LIMIT'?" in row.error
    assert pools.connections["default"] is pool
    assert pool.stats().idle == 1


def test_one_broker_that_cannot_be_reached_leaves_everything_as_it_was(redis_url: str) -> None:
    source = Source(
        default={"URL": redis_url, "LIMIT": 2}, other={"URL": redis_url, "LIMIT": 3}, same=redis_url
    )
    pools = Pools(source)
    before = {alias: used(pools, alias) for alias in pools.settings}
    source.current = {
        "default": {"URL": redis_url, "LIMIT": 4},
        "other": NOWHERE,
        "same": redis_url,
    }
    with pytest.raises(
        ConnectionsKept, match="'other' keeps its connection and its settings"
    ) as caught:
        pools.reload()
    assert list(caught.value.failures) == ["other"]
    default, other, same = local.reload(pools)
    assert [default.ok, other.ok, same.ok] == [False] * 3
    assert default.error == "keeps its settings, because 'other' cannot be connected to"
    assert other.error is not None
    assert other.error.startswith(
        "keeps its settings, because a connection with the new ones cannot be opened: "
    )
    assert {alias: pools.connections[alias] for alias in pools.settings} == before
    assert [pool.stats().closed for pool in before.values()] == [{}, {}, {}]
    # Nor is anything left of the attempts.
    assert connections.get(pools.settings["default"]) is before["default"]
    assert [pool.limit for pool in connections.all_pools() if pool.limit == 4] == []
    default, other, same = local.reload(pools, force=True)
    assert (default.ok, default.change, same.change) == (True, "changed", "stayed")
    assert (other.ok, other.change) == (False, "changed")
    assert pools.settings["other"].url == (NOWHERE,)


def test_a_function_that_fails_is_told_by_its_class(memory_url: str, caplog: Any) -> None:
    source = Source(default=memory_url)

    def ask() -> Any:
        if not source.current:
            raise LookupError("the vault says Secr3t")
        return source.current

    pools = Pools(ask)
    used(pools)
    source.current = {}
    with pytest.raises(LookupError):
        pools.reload()
    [row] = local.reload(pools)
    assert row.error == "LookupError; see the log of that process; the old settings stay in force"
    assert "cannot be read" in caplog.text
    assert used(pools).stats().opened == 1


def test_of_a_plain_dict_there_is_nothing_to_read_anew(memory_url: str) -> None:
    given: dict[str, Any] = {"default": {"URL": memory_url, "LIMIT": 2}}
    pools = Pools(given)
    [row] = local.reload(pools)
    assert (row.ok, row.change, row.error) == (False, "stayed", local.NOTHING_TO_READ)
    assert local.reload(Pools(lambda: given))[0].ok
    # Unless somebody has changed what is in it.
    given["default"]["LIMIT"] = 3
    [row] = local.reload(pools)
    assert (row.ok, row.change, row.error) == (True, "changed", None)


def test_an_alias_that_is_needed_must_stay(memory_url: str) -> None:
    source = Source(default=memory_url, control=memory_url)
    pools = Pools(source)
    assert set(pools.settings) == {"default", "control"}
    source.current = {"default": memory_url}
    with pytest.raises(SettingsError, match=r"\['control'\]: it is gone, but BROADCAST"):
        pools.reload(needed=["control"])
    assert list(pools.reload(needed=["default"]).gone) == ["control"]


def test_two_reloads_at_once_are_one_and_a_refusal(memory_url: str) -> None:
    going, asked = threading.Event(), threading.Event()

    def ask() -> Any:
        asked.set()
        going.wait(PATIENCE)
        return {"default": memory_url}

    pools = Pools(ask)
    thread = threading.Thread(target=pools.reload)
    thread.start()
    assert asked.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="is being reloaded by another thread"):
        pools.reload()
    going.set()
    thread.join(PATIENCE)
    assert pools.reload().stayed == ("default",)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_half_written_is_refused_and_read_when_it_is_whole(
    tmp_path: Path, memory_url: str
) -> None:
    path = tmp_path / "pools.json"
    path.write_text(json.dumps({"default": {"URL": memory_url, "LIMIT": 2}}))
    pools = Pools(path)
    pool = used(pools)
    whole = json.dumps({"default": {"URL": memory_url, "LIMIT": 3}})
    for end in range(len(whole)):
        path.write_text(whole[:end])
        [row] = local.reload(pools)
        assert not row.ok
        assert row.error is not None
        assert "rename it" in row.error
    assert pools.connections["default"] is pool
    path.write_text(whole)
    assert local.reload(pools)[0].change == "changed"
    path.unlink()
    assert not local.reload(pools)[0].ok
    assert pools.connections["default"].limit == 3


# -- in use ------------------------------------------------------------------------------------------------------


def test_who_holds_or_awaits_a_lease_meanwhile_is_served_by_what_works(redis_url: str) -> None:
    # Of no other test: its `Pools`, were they not collected yet, would keep the pool in use.
    mine = {"URL": redis_url, "OUTAGE_PATIENCE": 41}
    source = Source(default={**mine, "LIMIT": 1})
    pools = Pools(source)
    old = pools.connections["default"]
    served: list[bool] = []

    def wait() -> None:
        with old.acquire(timeout=PATIENCE) as connection:
            served.append(bool(connection.connected))

    with old.acquire(timeout=PATIENCE) as held:
        waiting = [threading.Thread(target=wait) for _ in range(3)]
        for thread in waiting:
            thread.start()
        eventually(lambda: old.stats().waiting == 3)
        source.current = {"default": {**mine, "LIMIT": 2}}
        assert dict(pools.reload().changed) == {"default": (0, 1)}
        # Whatever would be opened with the former settings would fail by now.
        old._driver._make_origin = lambda: pytest.fail("it was opened")
        assert held.connected
        assert pools.connections["default"].stats().idle == 1
    for thread in waiting:
        thread.join(PATIENCE)
    assert served == [True] * 3
    assert old.stats().opened == 1
    eventually(lambda: old.stats().closed == {"drained": 1})


def test_what_is_suspended_stays_so_and_opens_nothing(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2})
    pools = Pools(source)
    used(pools)
    pools.suspend(mode="fail")
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
    assert dict(pools.reload().changed) == {"default": (1, 0)}
    with pytest.raises(PoolSuspended):
        pools.connections["default"].acquire(timeout=PATIENCE)
    assert pools.connections["default"].stats().opened == 0
    pools.resume()
    used(pools)


def test_what_is_suspended_and_was_never_used_stays_so(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2})
    pools = Pools(source)
    pools.suspend(mode="fail")
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}}
    pools.reload()
    with pytest.raises(PoolSuspended):
        pools.connections["default"].acquire(timeout=PATIENCE)


def test_what_is_suspended_stays_so_where_another_alias_has_to_be_forced(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2}, other={"URL": memory_url, "LIMIT": 4})
    pools = Pools(source)
    used(pools)
    used(pools, "other")
    pools.suspend(["default"], mode="fail")
    source.current = {"default": {"URL": memory_url, "LIMIT": 3}, "other": NOWHERE}
    assert list(pools.reload(force=True).failures) == ["other"]
    with pytest.raises(PoolSuspended):
        pools.connections["default"].acquire(timeout=PATIENCE)


def test_a_resume_after_reloads_ends_it_for_who_waits_in_a_former_pool(memory_url: str) -> None:
    source = Source(default={"URL": memory_url, "LIMIT": 2})
    pools = Pools(source)
    old = used(pools)
    pools.suspend()
    served = threading.Event()

    def ask() -> None:
        with old.acquire(timeout=PATIENCE):
            served.set()

    waiter = threading.Thread(target=ask, daemon=True)
    waiter.start()
    eventually(lambda: old.stats().waiting == 1)
    for limit in (3, 4):
        source.current = {"default": {"URL": memory_url, "LIMIT": limit}}
        pools.reload()
    assert not served.is_set()
    pools.resume()
    waiter.join(PATIENCE)
    assert served.is_set()
    assert not old.stats().suspended


def test_no_request_fails_of_a_rotation_and_a_reload(private_redis: PrivateRedis) -> None:
    import redis

    admin = redis.Redis(port=private_redis.port)
    words = [f"word-number-{number}" for number in range(6)]
    admin.execute_command(
        "ACL", "SETUSER", "app", "reset", "on", f">{words[0]}", "~*", "&*", "+@all"
    )
    current = words[0]
    pools = Pools(
        lambda: {
            "default": {
                "URL": f"redis://app:{current}@127.0.0.1:{private_redis.port}/0",
                "LIMIT": 3,
            }
        }
    )
    stop, failed = threading.Event(), list[Exception]()
    done = [0] * 6

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                pools.publish({}, "reloading")
                done[number] += 1
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: all(done))
    for word in words[1:]:
        admin.execute_command("ACL", "SETUSER", "app", "resetpass", f">{word}")
        # The new one first, which does no harm: it is kept out by what is in force.
        assert [row.ok for row in local.reset(pools)] == [False]
        current = word
        [row] = local.reload(pools)
        assert (row.ok, row.change) == (True, "changed")
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    admin.close()


@pytest.mark.forks
def test_a_child_reloads_by_itself(redis_url: str) -> None:
    # Of no other test: its `Pools`, were they not collected yet, would keep the pool in use.
    mine = {"URL": redis_url, "OUTAGE_PATIENCE": 42}
    source = Source(default={**mine, "LIMIT": 1})
    pools = Pools(source)
    pool = used(pools)
    # As if a thread of the parent's were at it.
    pools._turns[os.getpid(), "reload"] = object()
    source.current = {"default": {**mine, "LIMIT": 2}}

    def child() -> Any:
        used(pools)
        done = pools.reload()
        return tuple(done.changed["default"]), pools.connections["default"].limit

    assert in_child(child) == ((1, 0), 2)
    assert pools.connections["default"] is pool
    assert pool.stats().idle == 1
    pools._turns.clear()


@pytest.mark.slow
@pytest.mark.broker
def test_a_broker_that_moved_and_a_user_that_is_gone(
    private_rabbitmq: PrivateRabbitMQ, amqp_url: str
) -> None:
    node = private_rabbitmq
    node.add_user("former", "a-former-word", configure=".*", write=".*", read=".*")
    node.add_user("newer", "a-newer-word", configure=".*", write=".*", read=".*")
    source = Source(default=node.url_of("former", "a-former-word", "%2F"))
    pools = Pools(source)
    used(pools)
    source.current = {"default": node.url_of("newer", "another-word", "%2F")}
    [row] = local.reload(pools)
    assert row.error is not None
    assert "ACCESS_REFUSED" in row.error
    source.current = {"default": node.url_of("newer", "a-newer-word", "%2F")}
    assert local.reload(pools)[0].ok
    node.delete_user("former")
    pools.publish({}, "reloading", mandatory=False)
    # To another machine, while this one is silent.
    node.freeze()
    try:
        source.current = {"default": amqp_url}
        began = time.monotonic()
        [row] = local.reload(pools)
        assert row.ok
        assert time.monotonic() - began < PATIENCE
    finally:
        node.thaw()
    within(PATIENCE, lambda: pools.publish({}, "reloading", mandatory=False))


@pytest.mark.parametrize("make", [lambda path: path, str])
def test_a_path_is_taken_as_it_is(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "p.toml"
    path.write_text('default = "memory://"')
    assert list(Pools(make(path)).settings) == ["default"]


def test_the_sets_of_a_process_are_known_as_long_as_they_live() -> None:
    pools = Pools(default="memory://")
    assert pools in aliases._all
