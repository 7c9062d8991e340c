"""Sockets and a broker together: each process counts once, however it was found, and both begin and end together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import Control, attach, command_line, detach, serve
from kombu_pools_ext.control.process_info import this_process
from kombu_pools_ext.control.remote.listener import Listener
from kombu_pools_ext.control.server import server_of
from tests.broker.common import eventually
from tests.broker.rig import in_child, port_of, sockets_to
from tests.brokers import PrivateRabbitMQ
from tests.control.rig import PATIENCE, Base
from tests.integration.rig import Log

#: Listens both ways; leaves when its input ends.
BOTH = """
import sys
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach, serve, server

# On a busy machine even a thread that has nothing else to do may need longer for its goodbye.
server.GOODBYE_TIMEOUT = 30.0
url, directory, secret = sys.argv[1:]
pools = Pools(default=url)
control = attach(pools, {"DIRECTORY": directory, "BROADCAST": "default"}, secret=secret)
serve(control.project)
print("ready", flush=True)
sys.stdin.read()
"""


class Both:
    """A project that is reached by sockets and by a broker, and its processes."""

    def __init__(self, url: str, base: Base) -> None:
        self.url = url
        self.base = base
        self.secret = os.urandom(16).hex()
        self._stack = contextlib.ExitStack()
        self.pools = Pools(default=url)
        self.control = self.of(self.pools)

    def of(self, pools: Pools) -> Control:
        settings = {"DIRECTORY": str(self.base.path), "BROADCAST": "default"}
        return attach(pools, settings, secret=self.secret)

    def child(self, directory: Path) -> subprocess.Popen[str]:
        """Start a process that listens in *directory*, and at the broker."""
        directory.mkdir(exist_ok=True)
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", BOTH, self.url, str(directory), self.secret],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def pids(self) -> list[int]:
        """Return the numbers of the processes that listen, in their order."""
        return [one.pid for one in self.control.who(timeout=PATIENCE)]

    def close(self) -> None:
        self._stack.close()
        detach(self.pools)


@pytest.fixture
def both(meeting_url: str, base: Base) -> Iterator[Both]:
    one = Both(meeting_url, base)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.slow
def test_each_process_counts_once(both: Both) -> None:
    """Of two processes that the broker reaches, one is reached by a socket as well."""
    near, far = both.child(both.base.path), both.child(both.base.path / "of-another-machine")
    eventually(lambda: both.pids() == sorted([near.pid, far.pid]))
    heard: list[int] = []
    answers = both.control.ask(
        "reset", timeout=PATIENCE, heard=lambda answer: heard.append(answer.process.pid)
    )
    assert answers.problems == ()
    assert [one.outcome for one in answers.answers] == ["done", "done"]
    assert sorted(heard) == sorted([near.pid, far.pid])
    # By number, and by the name of the machine.
    [one] = both.control.ask("status", processes=[str(far.pid)], timeout=PATIENCE).answers
    assert (one.process.pid, one.outcome) == (far.pid, "done")
    assert len(both.control.ask("status", hosts=[one.process.host]).answers) == 2
    nobody = both.control.ask("status", hosts=["nowhere"])
    assert nobody.answers == ()
    assert "'nowhere'" in nobody.problems[0]


@pytest.mark.slow
def test_a_process_here_that_is_stuck_is_reported_as_silent_once(both: Both) -> None:
    near, far = both.child(both.base.path), both.child(both.base.path / "of-another-machine")
    eventually(lambda: both.pids() == sorted([near.pid, far.pid]))
    near.send_signal(signal.SIGSTOP)
    try:
        for seconds in (2.0, 12.0):  # the second on a busy machine
            answers = both.control.ask("status", timeout=seconds)
            if any(one.outcome == "done" for one in answers.answers):
                break
    finally:
        near.send_signal(signal.SIGCONT)
    assert {one.process.pid: one.outcome for one in answers.answers} == {
        near.pid: "silent",
        far.pid: "done",
    }
    assert answers.problems == ()


@pytest.mark.slow
def test_a_process_that_ends_closes_its_connection_properly(
    private_rabbitmq: PrivateRabbitMQ, base: Base
) -> None:
    """RabbitMQ logs a connection that is not closed properly."""
    log = Log(private_rabbitmq)
    both = Both(private_rabbitmq.url, base)
    try:
        near = both.child(base.path)
        eventually(lambda: both.pids() == [near.pid])
        assert near.stdin is not None
        near.stdin.close()
        assert near.wait(PATIENCE) == 0
        assert both.pids() == []
        eventually(lambda: not private_rabbitmq.list_connections())
        assert log.accepted
        log.assert_all_said_goodbye()
    finally:
        both.close()


def test_the_first_use_begins_both_and_detaching_ends_both(both: Both) -> None:
    server = server_of(both.control.project)
    assert server._remote_listener is None
    with both.pools.connections["default"].acquire():
        pass
    listener = eventually(lambda: server._remote_listener)
    assert isinstance(listener, Listener)
    assert listener.joined.wait(PATIENCE)
    eventually(lambda: server.listens)
    [answer] = both.control.ask("status").answers
    assert answer.process == this_process()
    # Once: the second use begins nothing.
    with both.pools.connections["default"].acquire():
        pass
    assert server._remote_listener is listener
    detach(both.pools)
    assert listener._ended.wait(PATIENCE)
    assert server._remote_listener is None


def test_without_a_directory_for_a_socket_the_broker_carries_commands(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    both.base.path.chmod(0o777)
    try:
        server = server_of(both.control.project)
        with both.pools.connections["default"].acquire():
            pass
        listener = eventually(lambda: server._remote_listener)
        assert listener.joined.wait(PATIENCE)
        eventually(lambda: "cannot be reached by commands" in caplog.text)
        assert not server.listens
    finally:
        both.base.path.chmod(0o700)
    eventually(lambda: both.pids() == [this_process().pid])


@pytest.mark.forks
def test_a_child_begins_anew(both: Both) -> None:
    assert serve(both.control.project)
    listener = server_of(both.control.project)._remote_listener
    assert listener is not None
    assert listener.joined.wait(PATIENCE)
    port = port_of(both.url)
    parents = set(sockets_to(port))

    def use() -> tuple[bool, bool, list[int]]:
        server = server_of(both.control.project)
        forgotten = server._remote_listener is None
        inherited = bool(parents.intersection(sockets_to(port)))
        with both.pools.connections["default"].acquire():
            pass
        eventually(lambda: server._remote_listener).joined.wait(PATIENCE)
        eventually(lambda: server.listens)
        found = sorted(both.pids())
        both.close()
        return forgotten, inherited, found

    forgotten, inherited, found = in_child(use)
    assert (forgotten, inherited) == (True, False)
    assert len(found) == 2
    assert this_process().pid in found
    eventually(lambda: both.pids() == [this_process().pid])


def test_exit_codes_across_machines(both: Both) -> None:
    said: list[str] = []
    screen = command_line.Screen(write=said.append, complain=said.append)

    def run(command: str, **options: Any) -> int:
        said.clear()
        return command_line.run(
            command, lambda: both.control, both.pools, screen, timeout=PATIENCE, **options
        )

    assert run("reset") == 3
    assert said[0].startswith("no process of this project is running (")
    assert run("reset", allow_none=True) == 0
    assert run("reset", expect=1, dry_run=True) == 3
    both.child(both.base.path)
    far = both.child(both.base.path / "elsewhere")
    eventually(lambda: len(both.pids()) == 2)
    assert run("suspend", expect=2) == 0
    assert run("resume", expect=3) == 4
    assert said[2] == "3 processes were expected, and 2 answered"
    # One is reached by way of the broker alone.
    assert run("status", expect=1, process=[f"{far.pid}"]) == 0


def test_a_broker_that_is_down_is_only_a_problem_in_the_answer(
    base: Base, nowhere: int, caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(f"amqp://guest:a-p4ssword@127.0.0.1:{nowhere}//", base)
    try:
        assert serve(both.control.project)
        answers = both.control.ask("suspend", timeout=PATIENCE)
        assert [one.outcome for one in answers.answers] == ["done"]
        [problem] = answers.problems
        assert f"127.0.0.1:{nowhere}" in problem
        assert "a-p4ssword" not in problem
        assert both.pools.connections["default"].stats().suspended
        assert both.control.ask("resume", timeout=PATIENCE).answers[0].ok
        eventually(lambda: [one for one in caplog.records if one.levelno == logging.WARNING])
        assert "a-p4ssword" not in caplog.text
    finally:
        both.close()
