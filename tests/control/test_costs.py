"""Control costs nothing in a process that gets no commands. This is counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext.control import Control, Project, server
from kombu_pools_ext.control.options import parse_control
from kombu_pools_ext.engine import maintenance

SECRET = "of one test alone"
#: Seconds that anything may take on a busy machine.
PATIENCE = 60.0
#: Seconds of idleness.
IDLE = 3.0
#: Leases that are counted.
LEASES = 50

#: Arguments: the broker's URL, KOMBU_POOLS_CONTROL as JSON, the secret. Then a line to do, and a line of JSON for it.
PROGRAM = """
import contextlib, gc, json, sys, threading
from kombu_pools_ext import Pools, control

url, settings, secret = sys.argv[1:]
# No lease is checked, or seen to, for its age.
pools = Pools({"default": {"URL": url, "CHECK_AFTER": 3600, "HEARTBEAT": 3600, "MIN_IDLE": 1}})
control.attach(pools, json.loads(settings), secret=secret)
me = threading.get_ident()
steps = 0

def count(*_):
    global steps
    steps += threading.get_ident() == me

def trace(frame, event, argument):
    frame.f_trace_lines, frame.f_trace_opcodes = False, True
    if event == "opcode":
        count()
    return trace

@contextlib.contextmanager
def counting():
    # What sys.settrace() tells of instructions, 3.13 does not tell of all code; 3.11 has nothing else.
    if sys.version_info >= (3, 12):
        monitoring, mine, event = sys.monitoring, 3, sys.monitoring.events.INSTRUCTION
        monitoring.use_tool_id(mine, "steps")
        monitoring.register_callback(mine, event, count)
        monitoring.set_events(mine, event)
        try:
            yield
        finally:
            monitoring.set_events(mine, 0)
            monitoring.free_tool_id(mine)
    else:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)

def connection():
    pools.connections["default"].acquire(timeout=30).release()

def producer():
    with pools.producers["default"].acquire(timeout=30):
        pass

def counted(work):
    global steps
    work()
    gc.collect()
    gc.disable()
    steps = 0
    with counting():
        work()
    gc.enable()
    return steps

for line in sys.stdin:
    name, _, times = line.strip().partition(" ")
    if name == "threads":
        answer = {thread.native_id: thread.name for thread in threading.enumerate()}
    else:
        answer = [counted(globals()[name]) for _ in range(int(times))]
    print(json.dumps(answer), flush=True)
"""


#: Threads that stay, by name.
LASTING = {"MainThread", maintenance.THREAD, server.THREAD}


class Child:
    """A process with a used pool; with control, it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def tell(self, line: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended with {self._process.wait(PATIENCE)}"
        return json.loads(answer)

    def threads(self) -> dict[int, str]:
        """Return the names of the threads by number, once all threads have ended that answer a caller or connect."""
        deadline = time.monotonic() + PATIENCE
        while not LASTING.issuperset((found := self.tell("threads")).values()):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return {int(number): name for number, name in found.items()}

    def switches(self, thread: int) -> int:
        """Return how often a thread has waited for something."""
        status = Path(f"/proc/{self.pid}/task/{thread}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@contextmanager
def child(url: str, on: bool) -> Iterator[Child]:
    with tempfile.TemporaryDirectory(prefix="kp-") as directory:
        settings = {"ENABLED": on, "DIRECTORY": directory}
        command = [sys.executable, "-c", PROGRAM, url, json.dumps(settings), SECRET]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            one = Child(process)
            one.tell("connection 1")
            control = Control(Project(parse_control(settings | {"ENABLED": True}, ()), SECRET))
            deadline = time.monotonic() + PATIENCE
            while on and not control.ask("status", timeout=PATIENCE).answers:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert len(control.ask("status", timeout=PATIENCE).answers) == on
            yield one
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert not [one for one in Path(directory).rglob("*") if one.is_socket()]


@pytest.mark.parametrize("what", ["connection", "producer"])
def test_a_lease_takes_as_many_steps_with_control_as_without(what: str) -> None:
    with child("memory://", on=True) as with_it, child("memory://", on=False) as without:
        on, off = (one.tell(f"{what} {LEASES}") for one in (with_it, without))
    # The fewest: now and then the other thread has just looked at the pool.
    assert min(on) == min(off) > 100, (on, off)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc tells what a thread did")
def test_an_idle_process_wakes_no_more_often(amqp_url: str) -> None:
    with child(amqp_url, on=True) as with_it, child(amqp_url, on=False) as without:
        threads = {one: one.threads() for one in (with_it, without)}
        before = {one: {n: one.switches(n) for n in threads[one]} for one in threads}
        time.sleep(IDLE)
        woken = {
            one: {name: one.switches(n) - before[one][n] for n, name in threads[one].items()}
            for one in threads
        }
    print(woken)
    own = set(woken[with_it]) - set(woken[without])
    assert own
    assert {woken[with_it][name] for name in own} == {0}, woken
