"""A process whose pools were used is reached, even if they are attached later, or if it could not listen at first."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kombu_pools_ext import Pools, events
from kombu_pools_ext.control import attach, detach, server
from kombu_pools_ext.control.remote import listener as remote_listener
from tests.control.rig import PATIENCE, SECRET, Base, memory, until
from tests.control.test_sockets import end, in_child, pids


@contextlib.contextmanager
def program(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs *text*, and ends when its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# -- a pool that was used first ----------------------------------------------------------------------------------------

USED_FIRST = """
import sys
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach
pools = Pools(default="memory://")
pools.publish({}, "anywhere")
attach(pools, {"DIRECTORY": sys.argv[1]}, secret=sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


def test_pools_that_were_used_before_they_are_attached_are_reached(base: Base) -> None:
    with program(USED_FIRST, base.path, SECRET) as process:
        assert line(process) == "ready"
        control = base.control()
        [found] = until(lambda: control.who(timeout=PATIENCE))
        assert found.pid == process.pid
        [answer] = control.ask("reset", timeout=PATIENCE).answers
        assert answer.rows[0]["closed"] == 1


def test_a_suspended_pool_that_was_asked_before_it_is_attached_is_reached(base: Base) -> None:
    pools = Pools(default=memory())
    base.pools.append(pools)
    pools.suspend(mode="fail")
    with contextlib.suppress(Exception):
        pools.connections["default"].acquire()
    control = attach(pools, {"DIRECTORY": str(base.path)}, secret=SECRET)
    assert until(lambda: control.ask("resume", timeout=PATIENCE).answers)


def test_pools_attached_to_another_project_are_still_reached(base: Base) -> None:
    pools, _ = base.attach()
    pools.connections["default"].acquire().release()
    control = attach(pools, {"DIRECTORY": str(base.path)}, secret=SECRET + "!")
    assert until(lambda: control.ask("reset", timeout=PATIENCE).answers)


@pytest.mark.forks
@pytest.mark.threads
def test_a_forked_child_has_not_used_its_parents_pools(base: Base) -> None:
    pools = Pools(default=memory())
    base.pools.append(pools)
    pools.connections["default"].acquire().release()
    control = base.control()

    def attached() -> None:
        attach(pools, {"DIRECTORY": str(base.path)}, secret=SECRET)
        assert not events.demand.was_sent

    def used_then_attached() -> None:
        pools.connections["default"].acquire(timeout=PATIENCE).release()
        attach(pools, {"DIRECTORY": str(base.path)}, secret=SECRET)

    quiet = in_child(attached)
    try:
        busy = in_child(used_then_attached)
        try:
            until(lambda: pids(control.ask("status", timeout=PATIENCE)) == [busy])
        finally:
            end(busy)
    finally:
        end(quiet)


# -- what kept it from listening at first ------------------------------------------------------------------------------

SHORT_OF_DESCRIPTORS = """
import logging, resource, sys, time
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach, server

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines = []
logging.getLogger("kombu_pools_ext.control").addHandler(Lines())
server.FIRST_PAUSE = server.LONGEST_PAUSE = 0.05
directory, secret, url = sys.argv[1:]
pools = Pools(default="memory://", **({"far": url} if url else {}))
# All modules are loaded, as they are by an attach() that comes earlier.
if url:
    from kombu_pools_ext.control.remote import client, listener
pools.connections["default"].acquire().release()
most, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, highest))
attach(pools, {"DIRECTORY": directory, "BROADCAST": "far" if url else None}, secret=secret)
attempts = 0
bind_in = server.Server._bind_in
def counted(*arguments):
    global attempts
    attempts += 1
    return bind_in(*arguments)
server.Server._bind_in = counted
deadline = time.monotonic() + 60
while attempts < 5 and time.monotonic() < deadline:
    pools.connections["default"].force_close_all(close_pool=False)
    pools.connections["default"].acquire().release()
    time.sleep(0.01)
said = list(lines)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, highest))
print(attempts >= 5, len(said), said, flush=True)
sys.stdin.read()
"""


def test_a_process_without_descriptors_at_its_first_use_is_reached_later(base: Base) -> None:
    with program(SHORT_OF_DESCRIPTORS, base.path, SECRET, "") as process:
        tried, lines, said = line(process).split(" ", 2)
        assert (tried, lines) == ("True", "1"), said
        assert "Too many open files; raise the limit of open files (ulimit -n)" in said
        control = base.control()
        # Not one more connection is opened for it.
        [found] = until(lambda: control.who(timeout=PATIENCE))
        assert found.pid == process.pid


def test_a_process_without_descriptors_at_its_first_use_is_reached_later_from_other_machines(
    base: Base, meeting_url: str
) -> None:
    secret = secrets.token_hex()
    pools = Pools(far=meeting_url)
    control = attach(pools, {"DIRECTORY": "/nowhere", "BROADCAST": "far"}, secret=secret)
    try:
        with program(SHORT_OF_DESCRIPTORS, base.path, secret, meeting_url) as process:
            tried, lines, said = line(process).split(" ", 2)
            assert (tried, lines) == ("True", "2"), said
            problems: list[str] = []
            [found] = until(lambda: control.who(timeout=PATIENCE, problem=problems.append))
            assert found.pid == process.pid
    finally:
        detach(pools)


def test_a_process_without_a_thread_at_its_first_use_is_reached_later(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it opens nothing more, as a worker of uWSGI that loads the application itself."""
    monkeypatch.setattr(server, "spawn_thread", lambda work, name: False)
    pools, control = base.attach()
    pool = pools.connections["default"]
    pool.acquire().release()
    assert not server.server_of(control.project).listens
    monkeypatch.undo()
    # Borrowers do the maintenance thread's work when it does not.
    pool.engine.overdue_at = 0.0
    pool.acquire().release()
    assert until(lambda: control.ask("status", timeout=PATIENCE).answers)
    assert pool.stats().opened == 1


def test_a_listener_without_a_thread_at_first_begins_with_the_next_use(
    base: Base, meeting_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_listener, "spawn_thread", lambda work, name: False)
    pools = Pools(default=memory(), far=meeting_url)
    base.pools.append(pools)
    settings = {"DIRECTORY": str(base.path), "BROADCAST": "far"}
    control = attach(pools, settings, secret=secrets.token_hex())
    one = server.server_of(control.project)
    pools.connections["default"].acquire().release()
    until(lambda: one.listens)
    assert one._remote_listener is None
    monkeypatch.undo()
    pools.connections["default"].force_close_all(close_pool=False)
    pools.connections["default"].acquire().release()
    assert until(lambda: one._remote_listener).joined.wait(PATIENCE)


def test_a_stopped_server_makes_no_more_attempts(base: Base) -> None:
    base.path.chmod(0o777)
    before = set(threading.enumerate())
    pools, control = base.attach()
    pools.connections["default"].acquire().release()
    one = server.server_of(control.project)
    until(lambda: one._period is not None and one._period._last_failure)
    detach(pools)
    base.path.chmod(0o700)
    threads = [one for one in threading.enumerate() if one.name == server.THREAD]
    until(lambda: not any(one.is_alive() for one in threads if one not in before))
    assert list(base.path.iterdir()) == []
