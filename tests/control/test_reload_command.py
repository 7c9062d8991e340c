"""`reload` and `reset`, sent to real processes: over sockets, over a broker, by the frameworks' command lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control import attach, command_line, serve
from kombu_pools_ext.control.command_line import Screen
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.project import Project
from kombu_pools_ext.control.remote.client import RemoteClient
from kombu_pools_ext.control.request import Request
from kombu_pools_ext.errors import ControlError
from tests.control.meeting import Asked
from tests.control.rig import PATIENCE, SECRET, Base, until

#: Uses its pool, whose settings are in a file, and listens: at its socket, at the broker, or both.
WORKER = """
import sys
from pathlib import Path
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach, serve

directory, secret, path, way = sys.argv[1:]
pools = Pools(Path(path))
pools.connections["default"].acquire(timeout=60).release()
control = attach(
    pools, {"DIRECTORY": directory, "BROADCAST": "default" if way == "broker" else None}, secret=secret
)
serve(control.project)
print("ready", flush=True)
sys.stdin.read()
"""


class Settings:
    """The settings file of the workers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **aliases: Any) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(aliases))
        new.rename(self.path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "pools.json")


class Worker:
    def __init__(self, base: Base, settings: Settings, way: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(base.path), SECRET, str(settings.path), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


def run(
    base: Base, settings: Settings, *options: str, **named: Any
) -> tuple[int, list[str], list[str]]:
    """Return what the command line prints, and its exit code."""
    shown: list[str] = []
    wrong: list[str] = []
    code = command_line.run(
        options[0],
        lambda: base.control(),
        Pools(settings.path),
        Screen(write=shown.append, complain=wrong.append),
        timeout=PATIENCE,
        **named,
    )
    return code, shown, wrong


def did(lines: list[str]) -> list[str]:
    """Return the lines without the names of the processes."""
    # The numbers of two processes may differ in length, so there may be more than two spaces.
    return [re.split(" {2,}", line, maxsplit=2)[2].strip() for line in lines]


def test_each_process_reads_the_file_anew(base: Base, settings: Settings, redis_url: str) -> None:
    one = {"URL": redis_url, "LIMIT": 2}
    settings.write(default=one, same={"URL": redis_url, "LIMIT": 5}, old=redis_url)
    with Worker(base, settings, "socket"), Worker(base, settings, "socket"):
        code, shown, _ = run(base, settings, "reload")
        assert code == 0
        assert [line.split()[-1] for line in shown] == ["unchanged"] * 6
        settings.write(
            default={**one, "LIMIT": 3}, same={"URL": redis_url, "LIMIT": 5}, new=redis_url
        )
        code, shown, _ = run(base, settings, "reload")
        assert code == 0
        assert (
            did(shown)
            == [
                "default  changed: closed 1 idle connection",
                "same     unchanged",
                "new      new",
                "old      gone",
            ]
            * 2
        )
        rows = base.control().ask("status", timeout=PATIENCE).answers
        assert [
            row["limit"] for answer in rows for row in answer.rows if row["alias"] == "default"
        ] == [3, 3]


def test_wrong_arguments_are_reported_and_change_nothing(
    base: Base, settings: Settings, redis_url: str
) -> None:
    settings.write(default={"URL": redis_url, "LIMIT": 2})
    with Worker(base, settings, "socket"):
        settings.write(default={"URL": redis_url, "LIMIT": -2, "LIMT": 1})
        # The command's own process reads them, too.
        before = settings.path.read_text()
        code, shown, wrong = run_with(base, settings, before)
        assert (code, shown) == (2, [])
        assert len(wrong) == 2
        [answer] = base.control().ask("reload", timeout=PATIENCE).answers
        [row] = answer.rows
        assert (answer.outcome, row["alias"], row["change"]) == ("failed", "KOMBU_POOLS", "kept")
        assert "got -2" in row["error"]
        assert "did you mean 'LIMIT'?" in row["error"]
        settings.write(default={"URL": "redis://127.0.0.1:1/0", "LIMIT": 2})
        code, shown, wrong = run(base, settings, "reload")
        assert code == 1
        assert "failed: keeps its settings, because " in shown[0]
        assert wrong[0].startswith("reload failed in 1 of 1 process: ")
        code, shown, _ = run(base, settings, "reset")
        assert (code, did(shown)) == (0, ["default  closed 1 idle connection"])
        code, shown, _ = run(base, settings, "reload", force=True)
        assert code == 1
        assert "failed: changed, because of force; no connection: " in shown[0]
        code, shown, wrong = run(base, settings, "reset")
        assert (code, did(shown)) == (0, ["default  nothing to close: no connection was open"])


def run_with(base: Base, settings: Settings, text: str) -> tuple[int, list[str], list[str]]:
    shown: list[str] = []
    wrong: list[str] = []
    code = command_line.run(
        "reload",
        lambda: base.control(),
        Pools(lambda: json.loads(text)),
        Screen(write=shown.append, complain=wrong.append),
    )
    return code, shown, wrong


def test_a_process_whose_settings_are_a_dict_says_so(base: Base) -> None:
    base.serve()
    [answer] = base.control().ask("reload", timeout=PATIENCE).answers
    assert answer.outcome == "failed"
    assert answer.rows[0]["error"].startswith("nothing to reload: the settings are a plain dict")


def test_wrong_present_settings_can_be_repaired_by_a_reload(base: Base) -> None:
    current: dict[str, Any] = {"default": {"LIMIT": 1}}
    pools = Pools(lambda: current)
    base.pools.append(pools)
    assert serve(attach(pools, base.control().project).project)
    [answer] = base.control().ask("status", timeout=PATIENCE).answers
    assert answer.outcome == "failed"
    current = {"default": {"URL": "memory://"}}
    [answer] = base.control().ask("reload", timeout=PATIENCE).answers
    assert [row["change"] for row in answer.rows] == ["stayed"]


@pytest.mark.parametrize(
    "request_, told",
    [
        ({"command": "reload", "using": ("default",)}, "'reload' takes none"),
        ({"command": "ping", "force": True}, "force: can only be used with reset and reload"),
        ({"command": "reset", "force": "yes"}, "force: expected true or false"),
    ],
)
def test_a_wrong_request_is_refused(request_: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Request(**request_)


# -- by the broker -----------------------------------------------------------------------------------------------


def asked(url: str, request: Request) -> Asked:
    project = Project(ControlSettings(broadcast="default"), SECRET)
    pools = Pools(default=url)
    project.pools.add(pools)
    found = Asked()
    RemoteClient(project, tuple).ask(request, time.monotonic() + PATIENCE, found.know, found.hear)
    return found


@pytest.fixture
def other_place(redis_url: str) -> str:
    """Another virtual host or database of the same broker, from which commands do not reach the first."""
    return f"{redis_url.rpartition('/')[0]}/7"


@pytest.mark.slow
def test_a_process_follows_the_broker_of_its_commands(
    base: Base, settings: Settings, redis_url: str, other_place: str
) -> None:
    settings.write(default=redis_url)
    with Worker(base, settings, "broker"):

        def there(place: str) -> bool:
            try:
                return bool(asked(place, Request(command="status", timeout=PATIENCE)).answers)
            except ControlError:
                return False

        until(lambda: there(redis_url))
        settings.write(default=other_place)
        # It is answered where it was asked.
        [answer] = asked(redis_url, Request(command="reload", timeout=PATIENCE)).answers.values()
        assert [row["change"] for row in answer.rows] == ["changed"]
        until(lambda: there(other_place))
        assert asked(redis_url, Request(command="status", timeout=2.0)).answers == {}
        settings.write(other=redis_url)
        [answer] = asked(other_place, Request(command="reload", timeout=PATIENCE)).answers.values()
        assert (
            "it is gone, but BROADCAST of KOMBU_POOLS_CONTROL names it" in answer.rows[0]["error"]
        )


# -- by the frameworks -------------------------------------------------------------------------------------------

DJANGO = """
import django, sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_app"], SECRET_KEY="for-this-test", KOMBU_POOLS=sys.argv[1],
    KOMBU_POOLS_CONTROL={"DIRECTORY": sys.argv[2]},
)
django.setup()
from django.core.management import execute_from_command_line
from django_app import connections, conf
from kombu_pools_ext.control import serve
if sys.argv[3:]:
    execute_from_command_line(["manage.py", "kombu_pools", *sys.argv[3:]])
else:
    connections["default"].acquire(timeout=60).release()
    serve(conf.control().project)
    print("ready", flush=True)
    sys.stdin.read()
"""

FLASK = """
import sys
from pathlib import Path
from flask import Flask
from flask_ext import KombuPools
from kombu_pools_ext.control import serve
app = Flask("shop")
app.config.update(
    SECRET_KEY="for-this-test", KOMBU_POOLS=Path(sys.argv[1]), KOMBU_POOLS_CONTROL={"DIRECTORY": sys.argv[2]},
)
KombuPools(app)
if sys.argv[3:]:
    result = app.test_cli_runner().invoke(args=["kombu-pools", *sys.argv[3:]])
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    sys.exit(result.exit_code)
pools = app.extensions["kombu_pools"]
pools.connections["default"].acquire(timeout=60).release()
serve(pools.control.project)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [DJANGO, FLASK], ids=["django", "flask"])
def test_the_commands_of_the_frameworks(
    base: Base, settings: Settings, program: str, redis_url: str
) -> None:
    start = [sys.executable, "-c", program, str(settings.path), str(base.path)]
    settings.write(default={"URL": redis_url, "LIMIT": 2})
    worker = subprocess.Popen(
        start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        settings.write(default={"URL": redis_url, "LIMIT": 3})
        for limit, options, code, told in (
            (3, ["reload"], 0, "changed: closed 1 idle connection"),
            (3, ["reload"], 0, "unchanged"),
            (3, ["reset"], 0, "closed 1 idle connection"),
            (3, ["reset", "--force"], 0, "closed 1 idle connection"),
            (4, ["reload", "--force"], 0, "changed"),
        ):
            settings.write(default={"URL": redis_url, "LIMIT": limit})
            done = subprocess.run(
                [*start, *options], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert (done.returncode, done.stderr) == (code, "")
            assert done.stdout.rstrip().endswith(f"  default  {told}")
    finally:
        worker.kill()
        worker.communicate(timeout=PATIENCE)
