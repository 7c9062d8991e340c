"""One command reaches every process of a project on this machine."""

from __future__ import annotations

import errno
import gc
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kombu_pools_ext
from kombu_pools_ext import Pools, events
from kombu_pools_ext.control import attach, attach_to, detach, serve, server, socket_dir
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.process_info import Process
from tests.control.rig import PATIENCE, SECRET, Base, Child, memory, until


def pids(answers: Answers) -> list[int]:
    return sorted(answer.process.pid for answer in answers.answers)


def test_every_process_answers_and_says_who_it_is(base: Base) -> None:
    control = base.control()
    with Child(base.path) as first, Child(base.path) as second:
        answers = control.ask("status", timeout=PATIENCE)
        assert answers.ok
        assert answers.seconds < PATIENCE / 2
        assert pids(answers) == sorted([first.pid, second.pid])
        for answer in answers.answers:
            process = answer.process
            assert (process.host, process.version) == (
                socket.gethostname(),
                kombu_pools_ext.__version__,
            )
            assert process.server == "python"
            assert abs(process.started - time.time()) < 2 * PATIENCE
            assert process.name.startswith(f"{process.host}:{process.pid}:")
            assert [row["alias"] for row in answer.rows] == ["default", "other"]
            assert answer.seconds is not None
    assert json.loads(json.dumps(answers.as_dict()))["processes"][0]["rows"][0]["limit"] == 10


def test_a_process_with_unused_pools_does_not_listen(base: Base) -> None:
    pools, control = base.attach()
    assert pools.connections["default"].stats().size == 0
    assert control.ask("status").answers == ()
    assert list(base.path.iterdir()) == []


def test_listening_begins_with_the_first_connection(base: Base) -> None:
    pools, control = base.attach()
    with pools.connections["default"].acquire():
        [answer] = until(lambda: control.ask("status", timeout=PATIENCE).answers)
    assert answer.process.pid == os.getpid()
    assert answer.rows[0]["opened"] == 1


def test_listening_begins_when_a_suspended_pool_is_asked(base: Base) -> None:
    pools, control = base.attach()
    pools.suspend(mode="fail")
    with pytest.raises(kombu_pools_ext.errors.PoolSuspended):
        pools.connections["default"].acquire()
    assert until(lambda: control.ask("resume", timeout=PATIENCE).answers)
    pools.connections["default"].acquire().release()


def test_listening_can_be_turned_off(base: Base) -> None:
    pools = Pools(default=memory())
    control = attach(pools, {"DIRECTORY": str(base.path), "ENABLED": False}, secret=SECRET)
    base.pools.append(pools)
    pools.connections["default"].acquire().release()
    assert not serve(control.project)
    assert list(base.path.iterdir()) == []
    assert attach(pools, False).project.settings.enabled is False


def test_all_commands_reach_a_process(base: Base) -> None:
    pools, control = base.serve(default=memory(), other=memory())
    told: list[dict[str, Any]] = []

    def note(**what: Any) -> None:
        told.append(what)

    events.pools_reset.connect(note)
    try:
        pool = pools.connections["default"]
        pool.acquire().release()
        [answer] = control.ask("reset", using=["default"], timeout=PATIENCE).answers
        assert answer.rows[0]["closed"] == 1
        assert told == [{"reason": "command"}]
    finally:
        events.pools_reset.disconnect(note)
    [answer] = control.ask("limit", limit=3, timeout=PATIENCE).answers
    assert [(row["before"], row["limit"]) for row in answer.rows] == [(10, 3), (10, 3)]
    assert (pool.limit, pools.producers["default"].limit) == (3, 3)
    [answer] = control.ask("suspend", using=["other"], mode="fail", timeout=PATIENCE).answers
    assert [(row["alias"], row["suspended"]) for row in answer.rows] == [("other", True)]
    with pytest.raises(kombu_pools_ext.errors.PoolSuspended):
        pools.connections["other"].acquire(timeout=PATIENCE)
    [answer] = control.ask("resume", timeout=PATIENCE).answers
    assert [row["suspended"] for row in answer.rows] == [False, False]
    [answer] = control.ask("ping", timeout=PATIENCE).answers
    assert [row["ok"] for row in answer.rows] == [True, True]


def test_a_limit_below_the_lent_connections_applies_as_they_return(base: Base) -> None:
    pools, control = base.serve()
    pool = pools.connections["default"]
    lent = [pool.acquire() for _ in range(3)]
    [answer] = control.ask("limit", limit=1, timeout=PATIENCE).answers
    assert (answer.rows[0]["ok"], answer.rows[0]["lent"]) == (True, 3)
    for one in lent:
        one.release()
    assert pool.stats().size == 1


def test_a_ping_of_a_broker_that_is_not_there_fails_and_is_not_silent(base: Base) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        _, control = base.serve(default=f"amqp://u:{SECRET}@127.0.0.1:{peer.getsockname()[1]}//")
        answers = control.ask("ping", timeout=3.0)
    [answer] = answers.answers
    assert answer.outcome == "failed"
    # The process has what is left of the 3 s, without a reserve for its answer.
    assert "TimeoutError: no answer within 2." in answer.rows[0]["error"]
    assert not answers.ok
    assert SECRET not in json.dumps(answers.as_dict())


def test_a_command_can_be_for_some_processes_only(base: Base) -> None:
    control = base.control()
    with Child(base.path) as first, Child(base.path) as second:
        by_pid = control.ask("status", processes=[str(first.pid)], timeout=PATIENCE)
        assert pids(by_pid) == [first.pid]
        name = by_pid.answers[0].process.name
        assert pids(control.ask("status", processes=[name], timeout=PATIENCE)) == [first.pid]
        here = control.ask("status", hosts=[socket.gethostname()], timeout=PATIENCE)
        assert pids(here) == sorted([first.pid, second.pid])
        assert [one.pid for one in control.who(timeout=PATIENCE)] == sorted([first.pid, second.pid])


def test_names_of_no_process_are_reported(base: Base) -> None:
    pools, control = base.serve()
    pools.connections["default"].acquire().release()
    answers = control.ask("reset", processes=["0"], hosts=["elsewhere"], timeout=PATIENCE)
    assert answers.answers == ()
    assert answers.problems == (
        f"no process of this project is there as host 'elsewhere'; known: {socket.gethostname()}",
        f"no process of this project is there as process '0'; known: {os.getpid()}",
    )
    assert not answers.ok
    assert pools.connections["default"].stats().size == 1


def test_callbacks_get_the_processes_asked_and_each_answer(base: Base) -> None:
    control = base.control()
    known: list[Process] = []
    heard: list[Answer] = []
    with Child(base.path), Child(base.path):
        answers = control.ask(
            "status", timeout=PATIENCE, known=known.extend, heard=lambda one: heard.append(one)
        )
    assert {one.name for one in known} == {one.process.name for one in answers.answers}
    assert {one.process.name for one in heard} == {one.name for one in known}
    assert len(known) == len(heard) == 2


def test_all_wrong_arguments_are_reported(base: Base) -> None:
    control = base.control()
    with pytest.raises(ValueError, match=r"(?s)using: .*unknown command 'halt'.*timeout"):
        control.ask("halt", using="default", timeout=0)
    for limit in (-1, 0, 10**9, True, None):
        with pytest.raises(ValueError, match="limit: expected a number from 1 to 10000"):
            control.ask("limit", limit=limit)
    with pytest.raises(ValueError, match="processes: expected names"):
        control.who(processes="4711")


# -- those who do not answer -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_hangs_is_silent_and_does_not_delay_the_others(base: Base) -> None:
    control = base.control()
    with Child(base.path) as first, Child(base.path) as second:
        os.kill(first.pid, signal.SIGSTOP)
        heard: dict[int, float] = {}
        began = time.monotonic()
        answers = control.ask(
            "status",
            timeout=8.0,
            heard=lambda one: heard.setdefault(one.process.pid, time.monotonic() - began),
        )
        outcomes = {answer.process.pid: answer.outcome for answer in answers.answers}
        assert outcomes == {first.pid: "silent", second.pid: "done"}
        assert heard[first.pid] >= 8.0 > heard[second.pid]
        assert not answers.ok
        # Named by its number, which its socket tells.
        [silent] = control.ask("status", processes=[str(first.pid)], timeout=1.0).answers
        assert (silent.outcome, silent.error) == ("silent", "no answer within 1 s")
        # Who is there can be told without waiting for it.
        assert {one.pid for one in control.who(timeout=PATIENCE)} == {first.pid, second.pid}
        os.kill(first.pid, signal.SIGCONT)
        assert control.ask("status", timeout=PATIENCE).ok


def test_after_a_kill_the_next_command_is_clean(base: Base) -> None:
    control = base.control()
    with Child(base.path) as first, Child(base.path) as second:
        assert len(base.sockets()) == 2
        first.kill()
        answers = control.ask("status", timeout=PATIENCE)
        assert answers.ok
        assert pids(answers) == [second.pid]
        [path] = base.sockets()
        assert path.name.startswith(f"{second.pid}-")
        second.kill()
    assert control.ask("status").answers == ()
    assert list(base.path.iterdir()) == []


def test_a_process_that_dies_while_it_performs_a_command_is_silent(base: Base) -> None:
    control = base.control()
    dying = (
        "from kombu_pools_ext import events\n"
        "import os, signal\n"
        "events.pools_reset.connect(lambda **what: os.kill(os.getpid(), signal.SIGKILL))\n"
        "print('armed', flush=True)\nsys.stdin.read()\n"
    )
    with Child(base.path, more=dying) as child:
        assert child.line() == "armed"
        [answer] = control.ask("reset", timeout=PATIENCE).answers
    assert (answer.process.pid, answer.outcome) == (child.pid, "silent")
    assert "before it answered" in str(answer.error)


def test_a_process_that_ends_takes_its_socket_with_it(base: Base) -> None:
    with Child(base.path) as child:
        assert len(base.sockets()) == 1
        assert child.leave() == 0
    assert list(base.path.iterdir()) == []


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_child_of_multiprocessing_takes_its_socket_with_it(base: Base, way: str) -> None:
    # Where the base folder is asked for in a program of its own: this process's threads do not survive its forks.
    program = f"""
import multiprocessing, sys
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach, serve

def work(directory):
    pools = Pools(default="memory://x")
    control = attach(pools, {{"DIRECTORY": directory}}, secret="x" * 20)
    assert serve(control.project)
    assert len(control.ask("status", timeout={PATIENCE}).answers) == 1

if __name__ == "__main__":
    child = multiprocessing.get_context({way!r}).Process(target=work, args=(sys.argv[1],))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
    script = base.path / "program.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script, base.path], timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert [path.name for path in base.path.iterdir()] == ["program.py"]


# -- forks -------------------------------------------------------------------------------------------------------------


def in_child(work: Any) -> int:
    """Fork, do it in the child, and return the child's number. The child then waits to be killed."""
    ready, said = os.pipe()
    pid = os.fork()
    if not pid:  # pragma: no cover - the child, which is killed
        try:
            work()
            os.write(said, b"y")
            signal.pause()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(said)
    with open(ready, "rb") as pipe:
        assert pipe.read(1) == b"y", "the child failed"
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.forks
@pytest.mark.threads
def test_a_forked_child_is_reached_by_itself_and_its_parent_too(base: Base) -> None:
    pools, control = base.serve()
    [mine] = base.sockets()

    def nothing() -> None:
        pass

    def use() -> None:
        pools.connections["default"].acquire(timeout=PATIENCE).release()
        until(lambda: len(base.sockets()) > 1)

    quiet = in_child(nothing)
    try:
        # A child that uses no pools has no socket, and answers nothing in its parent's name.
        assert pids(control.ask("status", timeout=PATIENCE)) == [os.getpid()]
        busy = in_child(use)
        try:
            answers = control.ask("status", timeout=PATIENCE)
            assert answers.ok
            assert pids(answers) == sorted([os.getpid(), busy])
            assert len({answer.process.name for answer in answers.answers}) == 2
        finally:
            end(busy)
        assert pids(control.ask("status", timeout=PATIENCE)) == [os.getpid()]
    finally:
        end(quiet)
    assert base.sockets() == [mine]


@pytest.mark.forks
@pytest.mark.threads
def test_a_killed_parent_is_not_listed_while_its_child_has_its_socket_open(base: Base) -> None:
    control = base.control()
    forking = (
        "import os\n"
        "pid = os.fork()\n"
        "if not pid:\n    sys.stdin.read(); os._exit(0)\n"
        "print(pid, flush=True)\nsys.stdin.read()\n"
    )
    with Child(base.path, more=forking) as child:
        grandchild = int(child.line())
        child.kill()
        assert control.ask("status", timeout=PATIENCE).answers == ()
        assert base.sockets() == []
        os.kill(grandchild, signal.SIGKILL)


@pytest.mark.forks
@pytest.mark.threads
def test_the_end_of_a_child_leaves_the_parents_socket(base: Base) -> None:
    _pools, control = base.serve()
    child = multiprocessing.get_context("fork").Process(target=server.stop_for_good)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert pids(control.ask("status", timeout=PATIENCE)) == [os.getpid()]


# -- several applications in a process ---------------------------------------------------------------------------------


def test_two_applications_of_a_project_share_a_socket(base: Base) -> None:
    _, control = base.serve(default=memory(), shared=memory())
    base.serve(other=memory(), shared=memory())
    assert len(base.sockets()) == 1
    [answer] = control.ask("status", timeout=PATIENCE).answers
    assert sorted(row["alias"] for row in answer.rows) == ["default", "other", "shared", "shared"]
    [answer] = control.ask("reset", using=["default", "other"], timeout=PATIENCE).answers
    assert sorted(row["alias"] for row in answer.rows) == ["default", "other"]
    [answer] = control.ask("reset", using=["other", "defualt"], timeout=PATIENCE).answers
    assert answer.outcome == "failed"
    assert answer.error == "no pool is configured as 'defualt'; did you mean 'default'?"
    assert answer.rows == ()


def test_two_projects_do_not_reach_each_other(base: Base) -> None:
    pools, control = base.serve(SECRET)
    others, other_control = base.serve(SECRET + "!")
    for one in (pools, others):
        one.connections["default"].acquire().release()
    assert len(base.sockets()) == 2
    [answer] = control.ask("reset", timeout=PATIENCE).answers
    assert answer.rows[0]["closed"] == 1
    assert others.connections["default"].stats().size == 1
    [answer] = other_control.ask("reset", timeout=PATIENCE).answers
    assert answer.rows[0]["closed"] == 1


def test_collected_pools_are_no_longer_reached(base: Base) -> None:
    pools, control = base.serve()
    base.pools.clear()
    assert len(base.sockets()) == 1
    del pools
    gc.collect()
    until(lambda: not base.sockets())
    assert control.ask("status", timeout=PATIENCE).answers == ()


def test_pools_collected_late_do_not_remove_the_socket_of_others(base: Base) -> None:
    pools, control = base.serve()
    base.pools.clear()
    detach(pools)
    _, again = base.serve()
    listening = server.server_of(again.project)
    del pools
    gc.collect()
    assert server.server_of(control.project) is listening
    assert len(control.ask("status", timeout=PATIENCE).answers) == 1


def test_detached_pools_are_no_longer_reached(base: Base) -> None:
    pools, control = base.serve()
    others, _ = base.attach()
    detach(pools)
    [answer] = control.ask("status", timeout=PATIENCE).answers
    assert len(answer.rows) == 1
    detach(others)
    assert list(base.path.iterdir()) == []
    pools.connections["default"].acquire().release()
    attach_to(control.project, pools)
    assert serve(control.project)
    assert len(base.sockets()) == 1


def test_the_thread_of_a_stopped_server_ends(base: Base) -> None:
    def listeners() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == server.THREAD}

    # Some of them may be ending still.
    before = listeners()
    pools, _ = base.serve()
    [mine] = until(lambda: listeners() - before)
    detach(pools)
    until(lambda: mine not in listeners())


def test_stopping_while_it_begins_leaves_nothing(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pools, control = base.attach()
    listening = server.server_of(control.project)
    lstat = os.lstat

    def stop(path: Any, **kwargs: Any) -> os.stat_result:
        found = lstat(path, **kwargs)
        if Path(path).name.startswith("."):
            # Bound, and not visible yet.
            listening.stop()
        return found

    monkeypatch.setattr(os, "lstat", stop)
    assert not listening.serve()
    assert not listening.listens
    assert base.files() == []


def test_without_a_thread_nothing_listens(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pools, control = base.attach()
    monkeypatch.setattr(server, "spawn_thread", lambda work, name: False)
    with caplog.at_level(logging.DEBUG, "kombu_pools_ext.control"):
        pools.connections["default"].acquire().release()
        assert not serve(control.project)
    assert base.files() == []
    monkeypatch.undo()
    pools.connections["default"].force_close_all(close_pool=False)
    pools.connections["default"].acquire().release()
    until(base.sockets)
    assert caplog.records == []


# -- what can go wrong at each step ------------------------------------------------------------------------------------


def test_settings_are_checked_when_pools_are_attached(base: Base) -> None:
    pools, control = base.attach()
    with pytest.raises(kombu_pools_ext.errors.SettingsError, match=r"DIRECTORY.*an absolute path"):
        attach(pools, {"DIRECTORY": "relative"}, secret=SECRET)
    # Nothing has changed; and the same once more changes nothing.
    attach_to(control.project, pools)
    again = attach(pools, control.project.settings, secret=SECRET)
    assert again.project.name == control.project.name
    assert serve(control.project)
    assert serve(again.project)
    assert len(base.sockets()) == 1


def test_pools_attached_to_another_project_are_detached_from_the_first(base: Base) -> None:
    pools, control = base.serve()
    other = attach(pools, {"DIRECTORY": str(base.path)}, secret=SECRET + "!")
    assert base.sockets() == []
    assert serve(other.project)
    assert control.ask("status", timeout=PATIENCE).answers == ()
    assert len(other.ask("status", timeout=PATIENCE).answers) == 1


def test_uwsgis_master_has_no_listener(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(worker_id=lambda: 0, masterpid=os.getpid)
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.setattr(server.exit_hooks, "prepare", lambda: None)
    pools, control = base.attach()
    pools.connections["default"].acquire().release()
    assert not serve(control.project)
    assert base.files() == []


def test_a_process_without_descriptors_goes_on_listening(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "PAUSE_WITHOUT_DESCRIPTORS", 0.01)
    _, control = base.serve()
    accept = socket.socket.accept
    failures = iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    def fail(self: socket.socket) -> Any:
        for error in failures:
            raise error
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fail)
    for _ in range(2):
        assert control.ask("status", timeout=PATIENCE).ok
    [record] = caplog.records
    assert "cannot accept a caller: [Errno 24] Too many open files" in record.getMessage()


def test_a_process_ends_cleanly_if_its_directory_is_gone(base: Base) -> None:
    pools, control = base.serve()
    listener = server.server_of(control.project)._listener
    assert listener is not None
    shutil.rmtree(base.project.parent)
    assert control.ask("status").answers == ()
    detach(pools)
    until(lambda: listener.fileno() == -1)


def test_a_directory_that_others_remove_is_made_again(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, control = base.attach()
    key = socket_dir.SocketDir.key
    removals = iter(range(2))

    def remove(self: socket_dir.SocketDir, *, make: bool) -> bytes | None:
        for _ in removals:
            self.remove()
            break
        return key(self, make=make)

    monkeypatch.setattr(socket_dir.SocketDir, "key", remove)
    assert serve(control.project)
    assert len(base.sockets()) == 1
    removals = iter(range(10**6))
    _, other = base.attach(SECRET + "!")
    with pytest.raises(
        kombu_pools_ext.errors.ControlError, match="was removed again after each attempt"
    ):
        serve(other.project)


def test_an_unexpected_error_is_logged_and_harms_no_pool(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(project: Any) -> Any:
        raise ValueError("never thought of")

    monkeypatch.setattr(server, "dirs_to_listen_in", fail)
    pools, control = base.attach()
    pools.connections["default"].acquire().release()
    until(lambda: "never thought of" in caplog.text)
    monkeypatch.undo()
    assert serve(control.project)


def test_an_ending_process_does_not_begin_to_listen(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_stopped_pids", {os.getpid()})
    pools, control = base.attach()
    pools.connections["default"].acquire().release()
    assert not server.server_of(control.project).listens
    assert base.files() == []
