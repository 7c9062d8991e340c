"""The cases of many who publish at once: each of them is played, and finds what it is to find."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import kombu
import pytest

from tests.benchmarks import (
    all_cases,  # noqa: F401  # fills the register
    view_cases,
)
from tests.benchmarks.case import BODY, CASES, OURS, Case, Missing, Setting
from tests.benchmarks.child import a_queue, play
from tests.benchmarks.lease_cases import KOMBU
from tests.benchmarks.shared_cases import IDLE, PROCESSES, TO_THREAD, beat
from tests.benchmarks.thread_cases import publishing
from tests.benchmarks.view_cases import Load, busy_loops, get, served
from tests.benchmarks.ways import (
    BARE,
    CELERY,
    OVER_LEASES,
    OVER_ONE,
    TASK_WAYS,
    UNSENT,
    WAYS,
)
from tests.from_debian import find_wrk


@pytest.fixture
def setting(amqp_url: str) -> Setting:
    return Setting(amqp_url, watch=0.2, queue=f"bench-{os.getpid()}")


def those_of(case: Case, *names: str) -> Case:
    return replace(case, contenders={name: case.contenders[name] for name in names})


@pytest.mark.threads
def test_each_thread_of_a_crew_publishes() -> None:
    names: list[int] = []
    with ThreadPoolExecutor(8) as crew:
        found = publishing(lambda: names.append(threading.get_ident()), crew, 8, 0.05)
    assert len(set(names)) == 8
    # Of all together, and each thread was at it for 50 ms.
    assert found["time"] >= 0.05e6 / len(names)
    assert found["processor"] > 0
    assert found["p99"] > 0


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("name", ["shared.threads.1", "shared.threads.128"])
def test_threads_publish_in_each_way(name: str, setting: Setting) -> None:
    done = play(those_of(CASES[name], OURS, OVER_LEASES, KOMBU), setting, 2)
    assert done["left_out"] == {}
    for figures in done["values"].values():
        assert set(figures) == set(CASES[name].figures)
        assert all(value > 0 for values in figures.values() for value in values)
        assert len(figures["time"]) == 2


@pytest.mark.slow
@pytest.mark.threads
def test_coroutines_publish_in_each_way_and_the_loop_that_does_nothing_is_the_measure(
    setting: Setting,
) -> None:
    case = CASES["shared.coroutines.50"]
    done = play(those_of(case, OURS, OVER_LEASES, TO_THREAD, IDLE), setting, 1)
    assert done["left_out"] == {}
    assert set(done["values"].pop(IDLE)) == {"lag"}
    for figures in done["values"].values():
        assert set(figures) == set(case.figures)
        assert all(value > 0 for values in figures.values() for value in values)


def test_a_beat_is_as_late_as_the_loop_is_held_up() -> None:
    async def hold_up() -> list[float]:
        beats = asyncio.ensure_future(beat(time.perf_counter() + 0.1))
        await asyncio.sleep(0.01)
        time.sleep(0.08)
        return await beats

    assert max(asyncio.run(hold_up())) > 0.05


@pytest.mark.slow
@pytest.mark.threads
def test_processes_that_publish_have_a_connection_each(setting: Setting) -> None:
    done = play(those_of(CASES["shared.processes"], OVER_ONE), setting, 1)
    assert done["left_out"] == {}
    assert done["values"][OVER_ONE]["connections"] == [PROCESSES]
    assert done["values"][OVER_ONE]["time"][0] > 0


@pytest.mark.slow
@pytest.mark.threads
def test_tasks_are_sent_in_each_way_but_the_one_that_sends_nothing(setting: Setting) -> None:
    with a_queue(setting), kombu.Connection(setting.url) as connection:
        bound = kombu.Queue(setting.queue)(connection.default_channel)
        for name, way in TASK_WAYS.items():
            with way(setting) as publish:
                publish()
            message = bound.get(no_ack=True)
            assert (message is None) == (name == UNSENT)
            assert message is None or message.payload[0] == [BODY]
    done = play(CASES["delay.threads.8"], setting, 1)
    assert done["left_out"] == {}
    assert done["values"].keys() == TASK_WAYS.keys()


# -- the view --------------------------------------------------------------------------------------


@pytest.fixture
def messages(setting: Setting) -> Iterator[kombu.Queue]:
    with a_queue(setting), kombu.Connection(setting.url) as connection:
        yield kombu.Queue(setting.queue)(connection.default_channel)


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("way", [OURS, OVER_LEASES, KOMBU, CELERY])
def test_a_request_publishes_the_order(way: str, setting: Setting, messages: kombu.Queue) -> None:
    with served(way, setting) as url:
        messages.purge()
        assert get(url) == "ok"
        (message,) = iter(lambda: messages.get(no_ack=True), None)
        assert float(get(f"{url}processor")) > 0
    assert message.properties["delivery_mode"] == 2
    found = json.loads(message.body)
    assert found[0] == [BODY] if way == CELERY else found == BODY


@pytest.mark.slow
@pytest.mark.threads
def test_the_bare_view_publishes_nothing(setting: Setting, messages: kombu.Queue) -> None:
    with served(BARE, setting) as url:
        assert get(url) == "ok"
    assert messages.get() is None


@pytest.mark.slow
@pytest.mark.threads
def test_a_view_that_fails_says_why(setting: Setting) -> None:
    nowhere = replace(setting, url="no-url://")
    with pytest.raises(RuntimeError, match=r"(?s)does not serve the view: .*No such transport"):
        with served(KOMBU, nowhere):
            pass


def test_without_wrk_the_view_is_left_out(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_cases, "find_wrk", lambda: None)
    done = play(CASES["shared.view"], setting, 1)
    assert done["values"] == {}
    assert set(done["left_out"]) == set(CASES["shared.view"].contenders)
    assert done["left_out"][OURS].startswith("wrk is neither installed nor fetched")


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.skipif(find_wrk() is None, reason="no wrk: make wrk fetches it")
@pytest.mark.parametrize("name", ["shared.view", "shared.view.busy"])
def test_requests_are_counted_and_the_bare_view_is_taken_off(name: str, setting: Setting) -> None:
    done = play(those_of(CASES[name], OURS, BARE), setting, 1)
    assert done["left_out"] == {}
    mine, bare = done["values"][OURS], done["values"][BARE]
    assert set(mine) == set(CASES[name].figures)
    assert set(bare) == set(mine) - {"above"}
    assert mine["above"] == [mine["processor"][0] - bare["processor"][0]]
    assert mine["requests"][0] > 0
    assert mine["p99"][0] > 0


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.skipif(find_wrk() is None, reason="no wrk: make wrk fetches it")
def test_a_request_that_fails_is_no_request(setting: Setting) -> None:
    with served(BARE, setting) as url:
        assert Load()(url, 1).count > 0
        with pytest.raises(RuntimeError, match=r"requests failed"):
            Load()(f"{url}nowhere", 1)


def test_busy_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def popen(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(start(command))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with busy_loops(2):
        assert [one.poll() for one in started] == [None, None]
        assert all(one.args[0] == sys.executable for one in started)
    assert None not in [one.poll() for one in started]
    assert len(started) == 2


def test_a_way_is_there_or_says_what_it_lacks(setting: Setting) -> None:
    lacking = []
    for way in WAYS.values():
        try:
            with way(setting) as publish:
                assert callable(publish)
        except Missing as missing:
            lacking.append(str(missing).partition(" (")[0])
    assert set(lacking) <= {"pika is not installed", "amqpstorm is not installed"}
