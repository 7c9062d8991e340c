from __future__ import annotations

import dataclasses
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import Pools, PoolSettings, events
from kombu_pools_ext.broker import redis_sockets
from kombu_pools_ext.broker.plain import PlainSession
from kombu_pools_ext.control import local, roundtrip
from kombu_pools_ext.errors import SettingsError, UnknownAlias
from tests.proxy import Proxy

SECRET = "s3cr3t-word"
_numbers = itertools.count(1)


def memory() -> str:
    """A broker in memory whose pools only one test uses."""
    return f"memory://control{next(_numbers)}"


#: Seconds that a round trip may take on a busy machine, and that a test waits for what must come.
PATIENCE = 30.0
#: Seconds within which a bounded round trip is over on a busy machine: less than opening a connection would take.
BOUNDED = 4.5


def until(what: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def silence() -> Iterator[int]:
    """The port of a peer that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def resets() -> Iterator[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []

    def note(**what: Any) -> None:
        seen.append(what)

    events.pools_reset.connect(note)
    yield seen
    events.pools_reset.disconnect(note)


def test_status_returns_the_numbers_and_opens_nothing() -> None:
    pools = Pools(
        default=f"amqp://guest:{SECRET}@127.0.0.1:1//", mem={"url": memory(), "limit": None}
    )
    [default, mem] = local.status(pools)
    assert (default.host, default.pid) == (socket.gethostname(), os.getpid())
    assert default.alias == "default"
    assert default.broker == "amqp://guest:**@127.0.0.1:1//"
    assert (default.limit, default.size, default.opened, default.closed) == (10, 0, 0, {})
    assert mem.limit is None
    with pools.connections["mem"].acquire():
        [mem] = local.status(pools, ["mem"])
    assert (mem.size, mem.lent, mem.idle, mem.opened, mem.acquires) == (1, 1, 0, 1, 1)


def test_a_status_row_has_all_that_the_stats_of_a_pool_have() -> None:
    pools = Pools(default=memory())
    with pools.connections["default"].acquire():
        stats = dataclasses.asdict(pools.connections["default"].stats())
        [row] = local.status(pools)
    shown = dataclasses.asdict(row)
    assert [*shown] == [
        "host",
        "pid",
        "alias",
        "broker",
        *[name for name in stats if name != "name"],
        "publish_over",
        "in_flight",
        "tasks",
        "relay",
    ]
    assert {name: shown[name] for name in stats if name not in ("name", "seconds_waited")} == {
        name: stats[name] for name in stats if name not in ("name", "seconds_waited")
    }


def test_rows_are_plain_data() -> None:
    pools = Pools(default=f"redis://:{SECRET}@127.0.0.1:1/0")
    rows = [*local.status(pools), *local.reset(pools), *local.ping(pools, timeout=1)]
    text = json.dumps([dataclasses.asdict(row) for row in rows])
    assert SECRET not in text
    assert [row["alias"] for row in json.loads(text)] == ["default"] * 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows[0].alias = "other"  # type: ignore[misc]


def test_reset_closes_what_is_idle_and_later_what_is_lent(resets: list[dict[str, Any]]) -> None:
    pools = Pools(default=memory(), other={"url": memory(), "limit": 3})
    pool = pools.connections["default"]
    lent = pool.acquire()
    pool.acquire().release()
    with pool.acquire():
        pass
    [row] = local.reset(pools, ["default"])
    assert (row.ok, row.closed, row.lent, row.error) == (True, 1, 1, None)
    assert resets == [{"reason": "command"}]
    # The new one was opened before the others went.
    assert (pool.stats().idle, pool.stats().lent, pool.stats().opened) == (1, 1, 3)
    lent.release()
    assert pool.stats().size == 1
    with pool.acquire():
        assert pool.stats().opened == 3
    assert [row.alias for row in local.reset(pools, reason="api")] == ["default", "other"]
    assert resets[1] == {"reason": "api"}


def test_a_reset_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(
        default={"url": f"memory://u:{SECRET}@h", "limit": 1}, other={"url": memory(), "limit": 2}
    )

    def fail(close_pool: bool = True) -> None:
        raise OSError(f"no way to {SECRET}")

    monkeypatch.setattr(pools.connections["default"], "force_close_all", fail)
    pools.connections["other"].acquire().release()
    [default, other] = local.reset(pools)
    assert (default.ok, default.error) == (False, "OSError: no way to **")
    assert (other.ok, other.closed) == (True, 1)


@pytest.mark.parametrize("function", [local.status, local.reset, local.ping])
def test_an_unknown_alias_is_refused_before_anything_happens(
    function: Callable[..., Any], resets: list[dict[str, Any]]
) -> None:
    pools = Pools(default=memory())
    pools.connections["default"].acquire().release()
    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        function(pools, ["default", "defautl"])
    assert pools.connections["default"].stats().size == 1
    assert resets == []


@pytest.mark.parametrize("function", [local.status, local.reset, local.ping])
def test_wrong_settings_are_reported(function: Callable[..., Any]) -> None:
    with pytest.raises(SettingsError, match="'LIMIT'"):
        function(Pools(lambda: {"default": {"URL": memory(), "LIMIT": -1}}))


@pytest.mark.parametrize("function", [local.status, local.reset, local.ping])
def test_a_driver_that_is_not_installed(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PoolSettings,
        "missing_driver",
        lambda self: "pip install it" if self.transport == "redis" else None,
    )
    pools = Pools(default=memory(), cache="redis://localhost/0")
    with pytest.raises(SettingsError, match=r"^KOMBU_POOLS\['cache'\]\['URL'\]: pip install it$"):
        function(pools)
    assert function(pools, ["default"])


@pytest.mark.parametrize(
    "timeout, error",
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (True, TypeError),
        ("5", TypeError),
        (None, TypeError),
    ],
)
def test_a_timeout_is_a_number_of_seconds_above_0(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be a number of seconds"):
        local.ping(Pools(default=memory()), timeout=timeout)


def test_ping_of_a_transport_without_a_round_trip_connects() -> None:
    pools = Pools(default=memory())
    [row] = local.ping(pools, timeout=PATIENCE)
    assert row.ok, row.error
    assert row.error is None
    assert row.seconds is not None
    assert 0 <= row.seconds < PATIENCE
    assert pools.connections["default"].stats().idle == 1
    with pools.connections["default"].acquire() as connection:
        connection.collect()
        with pytest.raises(OperationalError, match="the connection is lost"):
            connection.item.pooled_session.ping()


def test_a_status_row_says_what_messages_are_published_over() -> None:
    url = "amqp://localhost//"
    ways: Any = {over: {"url": url, "publish_over": over} for over in ("auto", "leased", "shared")}
    pools = Pools(**ways, default={"url": url}, mem=memory())
    rows = {row.alias: row for row in local.status(pools)}
    over = {alias: (row.publish_over, row.in_flight) for alias, row in rows.items()}
    assert over == {
        "auto": ("auto", 0),
        "default": ("auto", 0),
        "leased": ("leased", 0),
        "shared": ("shared", 0),
        "mem": ("leased", 0),
    }


def test_ping_makes_a_round_trip_to_rabbitmq(amqp_url: str) -> None:
    # With a limit of its own, the pool is of this test alone.
    pools = Pools(default={"url": amqp_url, "limit": 7})
    for _ in range(3):
        [row] = local.ping(pools, timeout=PATIENCE)
        assert row.ok, row.error
    stats = pools.connections["default"].stats()
    assert (stats.opened, stats.idle, stats.lent) == (1, 1, 0)


def test_ping_makes_a_round_trip_to_redis(redis_url: str) -> None:
    # With a limit of its own, the pool is of this test alone.
    pools = Pools(default={"url": redis_url, "limit": 7})
    for _ in range(3):
        [row] = local.ping(pools, timeout=PATIENCE)
        assert row.ok, row.error
    stats = pools.connections["default"].stats()
    assert (stats.opened, stats.idle, stats.lent) == (1, 1, 0)


def test_ping_works_with_an_older_redis_client(redis_url: str) -> None:
    class Older:
        def __init__(self, pool: Any) -> None:
            self._pool = pool
            self.release = pool.release

        def get_connection(self, command: str) -> Any:
            assert command == "PING"
            try:
                return self._pool.get_connection()
            except TypeError:
                return self._pool.get_connection(command)

    class Client:
        pass

    with Pools(default=redis_url).connections["default"].acquire() as connection:
        client: Any = Client()
        client.connection_pool = Older(connection.default_channel.client.connection_pool)
        redis_sockets.ping(client)
        with pytest.raises(AssertionError):
            client.connection_pool.get_connection("INFO")


@pytest.mark.parametrize(
    "url", [f"amqp://guest:{SECRET}@127.0.0.1:1//", f"redis://:{SECRET}@127.0.0.1:1/0"]
)
def test_ping_of_a_broker_that_is_down(url: str) -> None:
    pools = Pools(default=url)
    began = time.monotonic()
    [row] = local.ping(pools, timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2
    assert not row.ok
    assert row.seconds is None
    assert row.error is not None
    assert "refused" in row.error
    assert SECRET not in repr(row)


def test_ping_with_wrong_credentials_shows_no_password(amqp_url: str) -> None:
    where = urlsplit(amqp_url)
    pools = Pools(default=f"amqp://guest:{SECRET}@{where.hostname}:{where.port or 5672}//")
    [row] = local.ping(pools, timeout=PATIENCE)
    assert not row.ok
    assert row.error is not None
    assert row.error.startswith("AccessRefused")
    assert "\n" not in row.error
    assert SECRET not in repr(row)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_ping_of_a_peer_that_never_sends_a_byte(silence: int, scheme: str) -> None:
    pools = Pools(default=f"{scheme}://u:{SECRET}@127.0.0.1:{silence}/0")
    began = time.monotonic()
    [row] = local.ping(pools, timeout=0.5)
    assert time.monotonic() - began < BOUNDED
    assert not row.ok
    assert row.error is not None
    assert SECRET not in row.error


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_ping_of_a_broker_that_fell_silent(broker: str, request: pytest.FixtureRequest) -> None:
    url = urlsplit(request.getfixturevalue(f"{broker}_url"))
    with Proxy(url.hostname or "127.0.0.1", url.port or 5672) as proxy:
        login = url.netloc.rpartition("@")[0]
        netloc = f"{login}@{proxy.address}" if login else proxy.address
        pools = Pools(default=url._replace(netloc=netloc).geturl())
        [row] = local.ping(pools, timeout=PATIENCE)
        assert row.ok, row.error
        proxy.silence()
        began = time.monotonic()
        [row] = local.ping(pools, timeout=0.5)
        took = time.monotonic() - began
        assert not row.ok
        assert row.error == "TimeoutError: no answer within 0.5 s"
        assert took < BOUNDED
        pool = pools.connections["default"]
        until(lambda: pool.stats().size == 0)
        assert pool.stats().closed == {"broken": 1}
        until(lambda: "kombu-pools-ping" not in {one.name for one in threading.enumerate()})


def test_all_brokers_are_asked_at_once(silence: int) -> None:
    urls = {f"a{number}": f"amqp://127.0.0.1:{silence}/{number}" for number in range(5)}
    began = time.monotonic()
    # One after the other they would take five times as long.
    rows = local.ping(Pools({**urls, "mem": memory()}), timeout=1.5)
    assert time.monotonic() - began < BOUNDED
    assert [row.ok for row in rows] == [False] * 5 + [True]


def test_ping_of_an_exhausted_pool_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(default={"url": memory(), "limit": 1})
    here = threading.current_thread()

    def monotonic() -> float:
        # For the thread that asks, the time is nearly up; whoever waits for it has all of it left.
        return 100.0 if threading.current_thread() is here else 100.0 + PATIENCE - 0.2

    with pools.connections["default"].acquire(), monkeypatch.context() as patched:
        patched.setattr(roundtrip, "time", SimpleNamespace(monotonic=monotonic))
        [row] = local.ping(pools, timeout=PATIENCE)
    assert row.error is not None
    assert row.error.startswith("PoolTimeout: ")
    assert "1 lent" in row.error
    [row] = local.ping(pools, timeout=PATIENCE)
    assert row.ok, row.error


def test_ping_without_threads_reports_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pools = Pools(default=memory())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        [row] = local.ping(pools, timeout=1)
    assert row.error == "RuntimeError: can't start new thread"


def test_ping_before_uwsgi_forks_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        pytest.fail("a thread was started")

    pools = Pools(default=memory())
    master = SimpleNamespace(worker_id=lambda: 0, masterpid=os.getpid)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "uwsgi", master)
        patched.setattr(threading.Thread, "start", fail)
        [row] = local.ping(pools, timeout=PATIENCE)
    assert row.ok, row.error


def test_a_connection_that_opens_after_the_time_out_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools = Pools(default=memory())
    pool = pools.connections["default"]
    acquire = pool.acquire
    asked: list[str] = []
    given_up = threading.Event()

    def late(block: bool = False, timeout: float | None = None) -> Any:
        assert given_up.wait(30)
        return acquire(timeout=PATIENCE)

    def ping(session: PlainSession) -> None:
        asked.append("something")

    monkeypatch.setattr(pool, "acquire", late)
    monkeypatch.setattr(PlainSession, "ping", ping)
    [row] = local.ping(pools, timeout=0.1)
    assert row.error == "TimeoutError: no answer within 0.1 s"
    given_up.set()
    until(lambda: pool.stats().opened == 1 and pool.stats().lent == 0)
    assert asked == []


def test_an_answer_just_before_the_time_out_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def ping(session: PlainSession) -> None:
        # Between the deadline of the thread, and that of who waits for it.
        now[0] += 0.95

    monkeypatch.setattr(PlainSession, "ping", ping)
    monkeypatch.setattr(roundtrip, "time", SimpleNamespace(monotonic=lambda: now[0]))
    [row] = local.ping(Pools(default=memory()), timeout=1)
    assert row.ok, row.error


def test_passwords_in_errors_are_masked_however_they_are_written() -> None:
    settings = Pools(default="amqp://u:p%40ss%2Fword@h//").settings["default"]
    assert local.error_text(ValueError("p@ss/word, p%40ss%2Fword\nand more"), settings) == (
        "ValueError: **, ** and more"
    )
    assert local.error_text(ValueError(), settings) == "ValueError"
    short = Pools(default="amqp://u:on@h//").settings["default"]
    assert local.error_text(ValueError("connection"), short) == "ValueError: connection"
    odd = Pools(default="mongodb://a:1,b:2/db").settings["default"]
    assert local.error_text(ValueError("odd"), odd) == "ValueError: odd"


@pytest.mark.parametrize(
    "url, text, told",
    [
        # The password is the name of the user, of the host, or a part of a word.
        ("amqp://guest:guest@h//", "amqp://guest:**@h//: guest was refused", None),
        ("amqp://guest:guest@h//", "amqp://guest:guest@h//", "amqp://guest:**@h//"),
        ("amqp://me:localhost@localhost//", "amqp://me:**@localhost//: refused", None),
        ("amqp://me:localhost@localhost//", "localhost?", "**?"),
        ("redis://shop:user@h/0", "invalid username-password pair", None),
        ("redis://shop:user@h/0", "user is disabled", "** is disabled"),
        # A long one is looked for within words, too.
        ("redis://shop:s3cr3t-w0rd@h/0", "xs3cr3t-w0rdx", "x**x"),
    ],
)
def test_text_that_is_no_password_is_not_masked(url: str, text: str, told: str | None) -> None:
    settings = Pools(default=url).settings["default"]
    assert local.error_text(ValueError(text), settings) == f"ValueError: {told or text}"


def test_a_row_says_if_nothing_was_to_be_changed() -> None:
    url = memory()
    pools = Pools(default=url, same=url)
    for mode, before in (("wait", None), ("wait", "wait"), ("fail", "wait"), ("fail", "fail")):
        rows = local.suspend(pools, mode)  # type: ignore[arg-type]
        assert [(row.before, row.suspended) for row in rows] == [(before, True)] * 2
    for before in ("fail", None):
        rows = local.resume(pools)  # type: ignore[assignment]
        assert [(row.before, row.suspended) for row in rows] == [(before, False)] * 2
    assert [row.before for row in local.limit(pools, 3)] == [10, 10]
    assert [row.before for row in local.limit(pools, 3)] == [3, 3]


def test_a_reset_says_which_alias_has_the_numbers_of_a_shared_pool() -> None:
    url = memory()
    pools = Pools(default=url, same=url)
    pools.connections["default"].acquire().release()
    first, second = local.reset(pools)
    assert (first.closed, first.shared_with) == (1, None)
    assert (second.closed, second.shared_with) == (0, "default")
