"""A call that blocks warns in a thread whose event loop is running, once for each line; elsewhere it costs nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.broker import event_loops
from kombu_pools_ext.broker.guarded import guarded
from kombu_pools_ext.errors import BlockingInEventLoop


@pytest.fixture
def pools(memory_url: str) -> Pools:
    return Pools(default=memory_url)


CALLS: dict[str, Callable[[Pools], Any]] = {
    "publish": lambda pools: pools.publish(1, "q"),
    "a producer": lambda pools: pools.producers["default"].acquire().release(),
    "a connection": lambda pools: pools.connections["default"].acquire().release(),
}


def in_loop(work: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return work()

    return asyncio.run(run())


@pytest.mark.parametrize("call", CALLS)
def test_it_warns_and_names_the_line_and_what_to_do(pools: Pools, call: str) -> None:
    with pytest.warns(BlockingInEventLoop) as told:
        in_loop(lambda: CALLS[call](pools))
    (warning,) = told
    assert warning.filename == __file__
    assert str(warning.message).startswith(f"{__file__}:{warning.lineno}: ")
    assert "await apublish(…)" in str(warning.message)
    assert issubclass(BlockingInEventLoop, RuntimeWarning)


def test_it_warns_of_a_producer_that_was_acquired_elsewhere(pools: Pools) -> None:
    producer = guarded(pools.producers["default"].acquire())
    with pytest.warns(BlockingInEventLoop, match=r"publish\(\) blocks"):
        in_loop(lambda: producer.publish(1, "q"))
    producer.release()


def test_it_warns_once_for_each_line(pools: Pools) -> None:
    def publish_three_times() -> None:
        for number in range(3):
            pools.publish(number, "q")
        pools.publish(3, "q")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        in_loop(publish_three_times)
        in_loop(publish_three_times)
    assert len({warning.lineno for warning in told}) == len(told) == 2


def test_as_an_error_it_leaves_nothing_lent(pools: Pools) -> None:
    for call in CALLS.values():
        with pytest.raises(BlockingInEventLoop):
            in_loop(lambda call=call: call(pools))
    stats = pools.connections["default"].stats()
    assert (stats.acquires, stats.lent) == (0, 0)


@pytest.mark.parametrize("call", CALLS)
def test_a_thread_without_a_loop_is_not_warned(pools: Pools, call: str) -> None:
    CALLS[call](pools)

    async def in_threads() -> None:
        await asyncio.to_thread(CALLS[call], pools)

    asyncio.run(in_threads())


def test_a_greenlet_beside_the_one_of_the_loop_is_not_warned(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greenlets have numbers of their own, and share what C knows of the operating system's thread."""

    async def run() -> None:
        monkeypatch.setattr(threading, "get_ident", lambda: -1)
        pools.publish(1, "q")

    try:
        asyncio.run(run())
    finally:
        monkeypatch.undo()


def test_what_a_framework_allows_is_not_warned_of(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loops, "allowed", [lambda: True])
    in_loop(lambda: pools.publish(1, "q"))


@pytest.mark.threads
def test_a_process_without_asyncio_does_not_load_it(tmp_path: Path) -> None:
    program = """
import sys
from kombu_pools_ext import Pools

pools = Pools(default="memory://")
pools.publish(1, "q")
before = "asyncio" in sys.modules
import asyncio
async def main():
    pools.publish(1, "q")
asyncio.run(main())
print(before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "False\n"
    assert "BlockingInEventLoop: <string>:10: acquire() blocks" in done.stderr
