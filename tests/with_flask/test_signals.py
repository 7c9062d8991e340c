"""Signals: which app gets which ones, from which thread or process, and what happens when an app is collected."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from kombu.exceptions import LimitExceeded

from flask_ext import (
    KombuPools,
    connection_closed,
    connection_opened,
    pool_exhausted,
    pools_reset,
    signals,
)
from kombu_pools_ext import reset

from .conftest import MakeApp, eventually

Heard = list[tuple[str, Any, dict[str, Any]]]

SIGNALS = (connection_opened, connection_closed, pool_exhausted, pools_reset)


@pytest.fixture
def heard(apps: list[Flask]) -> Iterator[Heard]:
    """What the apps of this test have sent: the signal's name, the sender, and the arguments."""
    sent: Heard = []

    def listen_to(signal: Any) -> Any:
        def receive(sender: Any, **what: Any) -> None:
            # An app of an earlier test may live yet, and what an opener's thread has to tell may come late.
            if sender in apps:
                sent.append((signal.name, sender, what))

        return signal.connected_to(receive)

    with ExitStack() as stack:
        for signal in SIGNALS:
            stack.enter_context(listen_to(signal))
        yield sent


def named(heard: Heard, name: str) -> Heard:
    return [each for each in heard if each[0] == name]


def publish(app: Flask) -> None:
    app.extensions["kombu_pools"].publish({}, "queue")


def test_opening_and_closing_a_connection_send_signals(app: Flask, heard: Heard) -> None:
    publish(app)
    pool = app.extensions["kombu_pools"].connections["default"]
    expected = ("connection-opened", app, {"pool": pool, "using": "default"})
    assert eventually(lambda: named(heard, "connection-opened")) == [expected]
    app.extensions["kombu_pools"].reset()
    expected = ("connection-closed", app, {"pool": pool, "using": "default", "reason": "drained"})
    assert eventually(lambda: named(heard, "connection-closed")) == [expected]


def test_the_sender_is_the_app_and_not_a_proxy(app: Flask, heard: Heard) -> None:
    with app.app_context():
        publish(app)
        app.extensions["kombu_pools"].reset()
    assert {type(sender) for _, sender, _ in heard} == {Flask}


def test_a_receiver_may_listen_to_one_app(make_app: MakeApp) -> None:
    one, two = make_app(LIMIT=2), make_app(LIMIT=3)
    heard: list[Any] = []

    def receive(sender: Any, **what: Any) -> None:
        heard.append(sender)

    with connection_opened.connected_to(receive, sender=one):
        publish(two)
        publish(one)
        eventually(lambda: heard)
    assert heard == [one]


@pytest.mark.parametrize("reason", ["exhausted", "timeout"])
def test_an_exhausted_pool_sends_a_signal(make_app: MakeApp, heard: Heard, reason: str) -> None:
    app = make_app(LIMIT=1)
    pool = app.extensions["kombu_pools"].connections["default"]
    with pool.acquire(), pytest.raises(LimitExceeded):
        pool.acquire(timeout=None if reason == "exhausted" else 0.01)
    assert named(heard, "pool-exhausted") == [
        ("pool-exhausted", app, {"pool": pool, "using": "default", "reason": reason})
    ]


@pytest.mark.threads
def test_a_full_pool_sends_a_signal(make_app: MakeApp, heard: Heard) -> None:
    app = make_app(LIMIT=1, MAX_WAITING=1)
    pool = app.extensions["kombu_pools"].connections["default"]
    with pool.acquire():
        waiter = threading.Thread(target=lambda: pool.acquire(timeout=10).release())
        waiter.start()
        eventually(lambda: pool.stats().waiting)
        with pytest.raises(LimitExceeded):
            pool.acquire(timeout=10)
    waiter.join()
    ((_, _, what),) = named(heard, "pool-exhausted")
    assert what["reason"] == "full"


def test_an_app_gets_signals_only_about_its_own_pools(make_app: MakeApp, heard: Heard) -> None:
    sharing = make_app(LIMIT=2), make_app(LIMIT=2)
    make_app(LIMIT=3)
    publish(sharing[0])
    eventually(lambda: len(named(heard, "connection-opened")) == 2)
    assert {sender for _, sender, _ in heard} == set(sharing)


def test_each_alias_of_a_pool_gets_its_own_signal(
    make_app: MakeApp, heard: Heard, memory_url: str
) -> None:
    # What belongs to the caller makes no other pool.
    aliases = {
        "default": {"URL": memory_url},
        "patient": {"URL": memory_url, "ACQUIRE_TIMEOUT": 60},
    }
    publish(make_app({"KOMBU_POOLS": aliases}))
    eventually(lambda: len(heard) == 2)
    assert [what["using"] for _, _, what in heard] == ["default", "patient"]


def test_connections_closed_after_a_reset_send_signals(app: Flask, heard: Heard) -> None:
    state = app.extensions["kombu_pools"]
    with state.producers["default"].acquire(timeout=30):
        reset()
    closed = eventually(lambda: named(heard, "connection-closed"))
    assert [sender for _, sender, _ in closed] == [app]


def test_a_reset_sends_a_signal_to_each_app(make_app: MakeApp, heard: Heard) -> None:
    both = [make_app(LIMIT=2), make_app(LIMIT=3)]
    reset()
    told = {sender: what for _, sender, what in named(heard, "pools-reset")}
    assert told == {app: {"reason": "api"} for app in both}


def test_a_receiver_that_raises_has_no_other_effect(
    app: Flask, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sender: Any, **what: Any) -> None:
        raise ValueError("from the receiver")

    with ExitStack() as stack:
        for signal in SIGNALS:
            stack.enter_context(signal.connected_to(fail, sender=app))
        publish(app)
        eventually(lambda: named(heard, "connection-opened"))
        app.extensions["kombu_pools"].reset()
        eventually(lambda: named(heard, "pools-reset"))
        eventually(lambda: len(errors(caplog)) == 4)
    publish(app)
    assert all(f"app {app.name!r}: a receiver of" in text for text in errors(caplog))


def test_a_receiver_may_be_asynchronous(app: Flask) -> None:
    pytest.importorskip("asgiref")
    heard = []

    async def receive(sender: Any, **what: Any) -> None:
        heard.append((sender, what))

    with pools_reset.connected_to(receive, sender=app):
        reset()
    assert heard == [(app, {"reason": "api"})]
    # asgiref's threads end with their executors.
    gc.collect()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "kombu_pools_ext.flask"]


def test_a_muted_signal_is_silent(app: Flask, heard: Heard) -> None:
    with pools_reset.muted():
        reset()
    assert named(heard, "pools-reset") == []


def test_collected_apps_are_forgotten(make_app: MakeApp, apps: list[Flask]) -> None:
    for _ in range(3):
        app = make_app()
        publish(app)
        app.test_client().get("/")
    refs = {weakref.ref(app) for app in apps}

    def watched() -> set[weakref.ref[Flask]]:
        return {ref for ref in signals._apps if ref() in apps}

    assert len(watched()) == 3
    mine = watched()
    del app
    apps.clear()

    def collected() -> bool:
        # The thread that opened a connection holds an app while it tells of it.
        gc.collect()
        return all(ref() is None for ref in refs)

    eventually(collected)
    assert not mine & signals._apps
    reset()


@pytest.mark.forks
def test_a_fork_sends_a_signal_in_the_child_to_each_app(
    app: Flask, pools: KombuPools, heard: Heard
) -> None:
    with app.app_context():
        inherited = pools.producer
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            report = "nothing"
            try:
                told = [what for _, sender, what in named(heard, "pools-reset") if sender is app]
                mine = pools.producer
                mine.publish({}, routing_key="queue")
                report = f"{told} {mine is inherited}"
            finally:
                os.write(writing, report.encode())
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == "[{'reason': 'fork'}] False"
        os.waitpid(pid, 0)
        # The parent noticed nothing.
        assert named(heard, "pools-reset") == []
        assert pools.producer is inherited
        inherited.publish({}, routing_key="queue")
