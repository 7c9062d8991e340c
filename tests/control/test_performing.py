"""How a process carries out a request, and how it describes itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import ControlSettings, Project, local, performing, process_info
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.request import Request
from tests.control.rig import PATIENCE, SECRET, memory


def project_of(*every: Pools) -> Project:
    project = Project(ControlSettings(), SECRET)
    for pools in every:
        project.pools.add(pools)
    return project


def test_a_project_without_pools_answers_done() -> None:
    answer = performing.perform(Request(command="reset"), project_of())
    assert (answer.outcome, answer.rows, answer.error) == ("done", (), None)
    answer = performing.perform(Request(command="reset", using=("x",)), project_of())
    assert answer.error == "no pool is configured as 'x'; known: none"


def test_wrong_settings_are_reported_in_a_line_before_anything_happens() -> None:
    good = Pools(default=memory(), name="A")
    good.connections["default"].acquire().release()
    bad = Pools(lambda: {"default": {"URL": memory(), "LIMIT": -1}}, name="B")
    answer = performing.perform(Request(command="reset"), project_of(good, bad))
    assert answer.outcome == "failed"
    assert "B['default']['LIMIT']" in str(answer.error)
    assert "\n" not in str(answer.error)
    assert good.connections["default"].stats().size == 1


def test_one_pool_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(default=f"memory://u:{SECRET}@h", other=memory())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(f"no way to {SECRET}")

    monkeypatch.setattr(pools.connections["default"], "resize", fail)
    monkeypatch.setattr(pools.connections["default"], "suspend", fail)
    for request in (Request(command="limit", limit=2), Request(command="suspend")):
        answer = performing.perform(request, project_of(pools))
        assert answer.outcome == "failed"
        assert [(row["ok"], row["error"]) for row in answer.rows] == [
            (False, "OSError: no way to **"),
            (True, None),
        ]
    assert pools.connections["other"].limit == 2
    assert pools.connections["other"].stats().suspended
    performing.perform(Request(command="resume"), project_of(pools))


def test_an_unexpected_error_is_logged_in_the_process_and_named_in_its_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(local, "status", fail)
    answer = performing.perform(Request(command="status"), project_of(Pools(default=memory())))
    assert answer.error == "KeyError; see the log of that process"
    assert "control: status failed" in caplog.text


# -- who it is ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that modules are loaded that only a server loads."""
    for name in process_info._SERVERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in process_info._GUNICORN_WORKERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("gevent.monkey", "eventlet.patcher"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(process_info, "_is_child", lambda: False)
    monkeypatch.setattr(process_info, "_is_forked", lambda: False)

    def load(name: str, **contents: Any) -> None:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**contents))

    return load


def test_a_process_has_one_name() -> None:
    this_process = process_info.this_process()
    assert this_process is process_info.this_process()
    assert (this_process.pid, this_process.host) == (os.getpid(), socket.gethostname())
    assert this_process.name == f"{this_process.host}:{this_process.pid}:{this_process.token}"
    assert Process.from_dict({**vars(this_process), "colour": "blue"}) == this_process


def test_gunicorn(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("gunicorn.arbiter")
    assert process_info._role() == ("gunicorn", "master")
    monkeypatch.setattr(process_info, "_is_forked", lambda: True)
    assert process_info._role() == ("gunicorn", "worker")
    loaded("gunicorn.workers.gthread")
    assert process_info._role() == ("gunicorn", "gthread worker")


@pytest.mark.parametrize(
    "worker, master, mule, kind",
    [
        (1, 1, 0, "worker"),
        (0, os.getpid(), 0, "master"),
        (0, 0, 0, "master"),
        (0, 1, 2, "mule"),
        (0, 1, 0, "spooler"),
    ],
)
def test_uwsgi(loaded: Any, worker: int, master: int, mule: int, kind: str) -> None:
    loaded("uwsgi", worker_id=lambda: worker, masterpid=lambda: master, mule_id=lambda: mule)
    assert process_info._role() == ("uwsgi", kind)


def test_celery(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("celery.apps.beat")
    assert process_info._role() == ("celery", "beat")
    loaded("celery.apps.worker")
    assert process_info._role() == ("celery", "worker")
    monkeypatch.setattr(process_info, "_is_child", lambda: True)
    assert process_info._role() == ("celery", "prefork worker")


def test_asgi_servers_and_greenlets(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("uvicorn.server")
    assert process_info._role() == ("uvicorn", "server")
    monkeypatch.setattr(process_info, "_is_child", lambda: True)
    assert process_info._role() == ("uvicorn", "worker")
    loaded("eventlet.patcher", is_monkey_patched=lambda what: True)
    assert process_info._role() == ("uvicorn", "eventlet worker")
    loaded("gevent.monkey", is_module_patched=lambda what: True)
    assert process_info._role() == ("uvicorn", "gevent worker")


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["/srv/manage.py", "runserver", "--secret=x"], "manage.py runserver"),
        (["/srv/manage.py", "--secret=x"], "manage.py"),
        (["/usr/bin/flask", "run"], "flask run"),
        (["/srv/import.py", "secret"], "import.py"),
        (["/lib/program/__main__.py"], "program"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_other_programs(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert process_info._role() == (name, "")


def test_a_child_of_multiprocessing_and_a_forked_one_are_known() -> None:
    program = """
import multiprocessing, os, sys
from kombu_pools_ext.control import process_info

def work():
    sys.exit(0 if process_info._is_child() and process_info.this_process().kind == "worker" else 1)

if __name__ == "__main__":
    assert not process_info._is_child()
    assert not process_info._is_forked(), "the parent is a test"
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    before = process_info.this_process()
    pid = os.fork()
    if not pid:
        os._exit(0 if process_info._is_forked() and process_info.this_process().name != before.name else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""
    Path("program.py").write_text(program)
    try:
        done = subprocess.run([sys.executable, "program.py"], timeout=PATIENCE, check=False)
    finally:
        Path("program.py").unlink()
    assert done.returncode == 0
