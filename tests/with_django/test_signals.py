from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.dispatch import Signal
from django.test import override_settings
from kombu.exceptions import LimitExceeded

import kombu_pools_ext
from django_app import conf, connections, producers, signals
from django_app.signals import connection_closed, connection_opened, pool_exhausted, pools_reset
from kombu_pools_ext import events
from kombu_pools_ext.control import serve
from tests.with_django.conftest import until

Seen = list[dict[str, Any]]


@pytest.fixture
def listen() -> Iterator[Callable[[Signal], Seen]]:
    """Connect a receiver to a signal, and return the list of what it receives."""
    connected: list[tuple[Signal, Callable[..., None]]] = []

    def listen(signal: Signal) -> Seen:
        seen: Seen = []

        def receiver(signal: Signal, **what: Any) -> None:
            seen.append(what)

        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))
        return seen

    yield listen
    for signal, receiver in connected:
        signal.disconnect(receiver)


def test_opening_and_closing_send_signals(
    configure: Callable[..., None], listen: Callable[[Signal], Seen]
) -> None:
    configure()
    opened, closed = listen(connection_opened), listen(connection_closed)
    pool = connections["default"]
    lent = pool.acquire()
    what = {"sender": kombu_pools_ext.ConnectionPool, "using": "default", "pool": pool}
    # Told after the hand-over, so that nobody waits for receivers.
    until(lambda: opened == [what])
    assert closed == []
    lent.__exit__(LimitExceeded, KeyboardInterrupt(), None)
    assert closed == [{**what, "reason": "broken"}]
    with producers["default"].acquire():
        until(lambda: opened == [what, what])
    pool.force_close_all(close_pool=False)
    assert closed[1:] == [{**what, "reason": "drained"}]


def test_each_alias_of_a_pool_gets_a_signal(
    configure: Callable[..., None], memory_url: str, listen: Callable[[Signal], Seen]
) -> None:
    configure({"one": memory_url, "two": memory_url, "three": {"URL": memory_url, "LIMIT": 1}})
    opened = listen(connection_opened)
    with connections["two"].acquire():
        until(lambda: [one["using"] for one in opened] == ["one", "two"])


def test_a_pool_without_an_alias_sends_no_signal(
    configure: Callable[..., None], listen: Callable[[Signal], Seen]
) -> None:
    configure()
    opened = listen(connection_opened)
    closed = listen(connection_closed)
    for value in ({"default": "memory://"}, {"default": -1}):
        with override_settings(KOMBU_POOLS=value):
            pool = kombu_pools_ext.connections["memory://somebody-elses"]
            pool.acquire().release()
            pool.force_close_all(close_pool=False)
    assert (opened, closed) == ([], [])


@pytest.mark.parametrize("timeout, reason", [(None, "exhausted"), (0.01, "timeout")])
def test_a_refused_caller_sends_pool_exhausted(
    configure: Callable[..., None],
    listen: Callable[[Signal], Seen],
    timeout: float | None,
    reason: str,
) -> None:
    configure(LIMIT=1)
    exhausted = listen(pool_exhausted)
    pool = connections["default"]
    with pool.acquire():
        with pytest.raises(LimitExceeded):
            producers["default"].acquire(timeout=timeout)
    assert exhausted == [{"sender": type(pool), "using": "default", "pool": pool, "reason": reason}]


def test_resets_send_their_reason(
    configure: Callable[..., None], memory_url: str, listen: Callable[[Signal], Seen]
) -> None:
    reset = listen(pools_reset)
    with override_settings(KOMBU_POOLS={"default": memory_url}):
        pass
    kombu_pools_ext.reset()
    conf.pools.reset()
    assert serve(conf.control().project)
    call_command("kombu_pools", "reset", stdout=io.StringIO())
    assert reset == [
        {"sender": conf.DjangoPools, "reason": reason}
        for reason in ("settings", "settings", "api", "api", "command")
    ]


def test_a_receiver_that_raises_has_no_other_effect(
    configure: Callable[..., None],
    listen: Callable[[Signal], Seen],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(LIMIT=1)

    def fail(**what: Any) -> None:
        raise ZeroDivisionError("on purpose")

    every = (connection_opened, connection_closed, pool_exhausted, pools_reset)
    for signal in every:
        signal.connect(fail)
    try:
        seen = [listen(signal) for signal in every]
        with connections["default"].acquire():
            with pytest.raises(LimitExceeded):
                connections["default"].acquire()
        kombu_pools_ext.reset()
        until(lambda: caplog.text.count("ZeroDivisionError: on purpose") == 4)
    finally:
        for signal in every:
            signal.disconnect(fail)
    until(lambda: [len(one) for one in seen] == [1, 1, 1, 1])
    assert "fail" in caplog.text


@pytest.mark.forks
def test_a_fork_sends_a_signal_in_the_child(
    configure: Callable[..., None], listen: Callable[[Signal], Seen]
) -> None:
    configure()
    reset, opened = listen(pools_reset), listen(connection_opened)
    lent = connections["default"].acquire()
    # Told after the hand-over, by a thread that the child does not have.
    until(lambda: len(opened) == 1)
    reading, writing = os.pipe()
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        # As a thread that sends these signals does, for a moment.
        with pools_reset.lock, connection_opened.lock:
            locked.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(30)
    child = os.fork()
    if not child:
        told = b"failed"
        try:
            with connections["default"].acquire(timeout=10):
                until(lambda: len(opened) == 2)
                told = repr((reset, [one["using"] for one in opened])).encode()
        finally:
            os.write(writing, told)
            os._exit(0)
    done.set()
    holder.join()
    os.waitpid(child, 0)
    expected = ([{"sender": conf.DjangoPools, "reason": "fork"}], ["default", "default"])
    assert os.read(reading, 4096).decode() == repr(expected)
    os.close(reading)
    os.close(writing)
    assert reset == []
    lent.release()
    assert connections["default"].stats().idle == 1


def test_without_receivers_no_aliases_are_looked_up(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()

    def never(pool: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(conf.pools, "aliases_of", never)
    failures: list[Any] = []
    monkeypatch.setattr(events.logger, "exception", lambda *args: failures.append(args))
    connections["default"].acquire().release()
    assert failures == []
    assert set(signals.__all__) == {
        "connection_closed",
        "connection_opened",
        "pool_exhausted",
        "pools_reset",
    }
