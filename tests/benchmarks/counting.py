"""Counts instructions, in a process of its own: ``python -m tests.benchmarks.counting bytecode|marks``.

With ``bytecode`` it prints, as JSON, how many instructions of Python's a turn of each subject takes. With ``marks`` it
only does the turns, and calls ``getsid(0)`` between them: callgrind, under which it then runs, counts the processor's
from one such call to the next.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import kombu

from kombu_pools_ext import Pools
from kombu_pools_ext.engine import Pool

from .fakes import FakeDriver

__all__ = ["MARKS", "SUBJECTS", "TURNS", "count_bytecode"]

#: Turns between two marks; calls of getsid for a subject, which enclose three counts.
TURNS, MARKS = 100, 4
#: Turns before anything is counted: the interpreter specialises what it has run often.
WARM = 300

FLOOR = "lock + deque"


@contextmanager
def subjects() -> Iterator[dict[str, Callable[[], object]]]:
    """What a turn of each subject does."""
    lock, container = threading.Lock(), deque([object()])
    engine: Pool[Any] = Pool(FakeDriver(), name="counted", limit=2)
    pools = Pools(default={"URL": "memory://"})
    connections, producers = pools.connections["default"], pools.producers["default"]
    group, connection = pools.producers, kombu.Connection("memory://")

    def floor() -> None:
        with lock:
            item = container.pop()
        with lock:
            container.append(item)

    def producer() -> None:
        with producers.acquire(timeout=60) as one:
            one.channel

    try:
        yield {
            FLOOR: floor,
            "engine: acquire and release": lambda: engine.release(engine.acquire(timeout=60)),
            "connection: acquire and release": lambda: connections.acquire(timeout=60).release(),
            "producer: with, and its channel": producer,
            "look-up by alias": lambda: group["default"],
            "look-up by URL": lambda: group["memory://"],
            "look-up by Connection": lambda: group[connection],
        }
    finally:
        engine.close()
        pools.reset()


SUBJECTS = (
    FLOOR,
    "engine: acquire and release",
    "connection: acquire and release",
    "producer: with, and its channel",
    "look-up by alias",
    "look-up by URL",
    "look-up by Connection",
)


def by_monitoring(turn: Callable[[], object], turns: int) -> int:
    """From Python 3.12 on."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined]  # 3.11 has none
    me, count = threading.get_ident(), 0

    def step(code: CodeType, offset: int) -> None:
        nonlocal count
        count += threading.get_ident() == me

    tool = monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "counting")
    try:
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, step)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        for _ in range(turns):
            turn()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


def by_tracing(turn: Callable[[], object], turns: int) -> int:
    """On Python 3.11."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        for _ in range(turns):
            turn()
    finally:
        sys.settrace(None)
    return count


def count_bytecode(turn: Callable[[], object]) -> float:
    """Instructions of Python's for one turn: 30 less 10 of them, so that the counting itself counts for nothing."""
    count = by_monitoring if hasattr(sys, "monitoring") else by_tracing
    return (count(turn, 30) - count(turn, 10)) / 20


def main(how: str) -> None:
    with subjects() as all_of_them:
        assert tuple(all_of_them) == SUBJECTS
        for turn in all_of_them.values():
            for _ in range(WARM):
                turn()
        gc.collect()
        gc.disable()
        if how == "bytecode":
            print(json.dumps({name: count_bytecode(turn) for name, turn in all_of_them.items()}))
            return
        for turn in all_of_them.values():
            for mark in range(MARKS):
                os.getsid(0)
                if mark < MARKS - 1:
                    for _ in range(TURNS):
                        turn()
        os.getsid(0)


if __name__ == "__main__":
    main(sys.argv[1])
