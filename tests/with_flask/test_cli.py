"""``flask kombu-pools``: the core's command, through Flask's command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_ext import AppPools, KombuPools, PoolsImproperlyConfigured, pools_reset
from kombu_pools_ext.control import command_line, serve
from kombu_pools_ext.control.command_line import COMMANDS, FORMATS, OPTIONS
from kombu_pools_ext.errors import SettingsError
from tests.worker import ready, said

from .conftest import MakeApp, eventually

Flasks = Callable[..., Result]

SECRET = "s3cr3t-w0rd"
#: Seconds for a child to begin, or to end.
PATIENCE = 60.0


@pytest.fixture
def two(make_app: MakeApp, memory_url: str) -> Flask:
    """An app of this test's own project, whose second broker does not exist."""
    unreachable = {"URL": f"amqp://me:{SECRET}@127.0.0.1:1//", "CONNECT_TIMEOUT": 1}
    return make_app(
        {
            "SECRET_KEY": f"{uuid.uuid4()}",
            "KOMBU_POOLS": {"default": {"URL": memory_url}, "audit": unreachable},
        }
    )


@pytest.fixture
def state(two: Flask) -> AppPools:
    state = two.extensions["kombu_pools"]
    assert isinstance(state, AppPools)
    return state


@pytest.fixture
def listening(state: AppPools) -> AppPools:
    """The pools of the app, which listens for commands from now on."""
    assert serve(state.control.project)
    return state


@pytest.fixture
def flask(two: Flask) -> Flasks:
    def invoke(*args: str, color: bool = False) -> Result:
        return two.test_cli_runner().invoke(args=["kombu-pools", *args], color=color)

    return invoke


def rows(result: Result) -> list[dict[str, Any]]:
    [process] = json.loads(result.stdout)["processes"]
    found: list[dict[str, Any]] = process["rows"]
    return found


def test_help_names_commands_and_options(flask: Flasks) -> None:
    assert all(command in flask("--help").output for command in COMMANDS)
    for command in COMMANDS:
        shown = flask(command, "--help").output
        for option in OPTIONS:
            assert (f"--{option.name} " in shown) == option.suits(command)
        assert f"[{'|'.join(FORMATS)}]" in shown
    assert "N is the most connections" in flask("limit", "--help").output


def test_only_apps_with_pools_have_the_command(two: Flask) -> None:
    assert "kombu-pools" in two.cli.commands
    assert "kombu-pools" not in Flask("bare").cli.commands


def test_status(flask: Flasks, listening: AppPools) -> None:
    listening.publish({}, "queue")
    result = flask("status")
    assert result.exit_code == 0
    head, default, audit = result.stdout.splitlines()
    assert head.startswith("PROCESS")
    assert f":{os.getpid()} " in default
    assert " default " in default
    assert audit.endswith("amqp://me:**@127.0.0.1:1//")
    (row,) = rows(flask("status", "--using", "default", "--format", "json"))
    assert (row["alias"], row["opened"], row["idle"]) == ("default", 1, 1)


def test_reset(flask: Flasks, two: Flask, listening: AppPools) -> None:
    heard = []

    def receive(sender: Flask, **what: Any) -> None:
        heard.append(what)

    listening.publish({}, "queue")
    with pools_reset.connected_to(receive, sender=two):
        result = flask("reset", "--using", "default", "--using", "audit")
    default, audit = result.stdout.splitlines()
    assert default.endswith("  default  closed 1 idle connection")
    assert audit.endswith("  audit    nothing to close: no connection was open")
    assert result.exit_code == 0
    assert heard == [{"reason": "command"}]
    assert listening.connections["default"].stats().size == 1
    listening.publish({}, "queue")


def test_limit_suspend_and_resume(flask: Flasks, listening: AppPools) -> None:
    pool = listening.connections["default"]
    assert "  default  limit 3, was 10\n" in flask("limit", "3").stdout
    assert pool.limit == 3
    assert "  default  suspended\n" in flask("suspend", "--mode", "fail").stdout
    assert pool.stats().suspended
    assert "  default  resumed\n" in flask("resume", "--using", "default").stdout
    assert not pool.stats().suspended


def test_ping_fails_with_a_code_if_one_broker_does(flask: Flasks, listening: AppPools) -> None:
    assert flask("ping", "--using", "default").exit_code == 0
    result = flask("ping", "--timeout", "30")
    assert result.exit_code == 1
    good, bad = result.stdout.splitlines()
    assert "ok in" in good
    assert "failed" in bad
    assert "ping failed in 1 of 1 process: " in result.stderr
    assert [row["ok"] for row in rows(flask("ping", "--timeout", "30", "--format", "json"))] == [
        True,
        False,
    ]


def test_ping_on_brokers_that_are_there(make_app: MakeApp, amqp_url: str, redis_url: str) -> None:
    app = make_app(
        {
            "SECRET_KEY": f"{uuid.uuid4()}",
            "KOMBU_POOLS": {"default": amqp_url, "cache": redis_url},
        }
    )
    result = app.test_cli_runner().invoke(args=["kombu-pools", "ping"])
    assert result.exit_code == 0
    assert result.stdout.count("ok in") == 2


def test_an_app_listens_after_the_first_use_of_a_pool(flask: Flasks, state: AppPools) -> None:
    assert "no process of this project is running here" in flask("status").stdout
    state.publish({}, "queue")
    eventually(lambda: f":{os.getpid()} " in flask("status").stdout)
    assert f":{os.getpid()} " in flask("reset", "--dry-run").stdout


def test_fewer_processes_than_expected_is_an_error(flask: Flasks, state: AppPools) -> None:
    result = flask("reset")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("no process of this project is running here")
    result = flask("reset", "--allow-none")
    assert (result.exit_code, result.stderr) == (0, "")
    assert serve(state.control.project)
    assert flask("reset", "--expect", "1").exit_code == 0
    result = flask("reset", "--expect", "2")
    assert result.exit_code == 4
    assert "2 processes were expected, and 1 answered" in result.stderr


def test_commands_reach_all_apps_with_one_secret(
    make_app: MakeApp, flask: Flasks, two: Flask, listening: AppPools, memory_url: str
) -> None:
    another = {"SECRET_KEY": two.secret_key, "KOMBU_POOLS": {"other": f"{memory_url}other"}}
    other = make_app(another)
    stranger = make_app({**another, "SECRET_KEY": f"{uuid.uuid4()}"})
    shown = other.test_cli_runner().invoke(args=["kombu-pools", "status", "--format", "json"])
    assert {row["alias"] for row in rows(shown)} == {"default", "audit", "other"}
    result = other.test_cli_runner().invoke(args=["kombu-pools", "suspend", "--using", "other"])
    assert result.exit_code == 0
    assert other.extensions["kombu_pools"].connections["other"].stats().suspended
    assert not listening.connections["default"].stats().suspended
    result = stranger.test_cli_runner().invoke(args=["kombu-pools", "status"])
    assert "no process of this project" in result.stdout


@pytest.mark.parametrize(
    "args, says",
    [
        (["ping", "--using", "adit"], "did you mean 'audit'"),
        (["ping", "--timeout", "nan"], "timeout must be a number of seconds above 0"),
        (["ping", "--timeout", "soon"], "not a valid float"),
        (["ping", "--timeout", "-1"], "timeout must be a number of seconds above 0"),
        (["status", "--format", "xml"], "xml"),
        (["limit"], "Missing argument 'N'"),
        (["limit", "-1"], "limit: expected a number from 1 to 10000, got -1"),
        (["limit", f"{10**9}"], "limit: expected a number from 1 to 10000, got 1000000000"),
        (["limit", "many"], "not a valid integer"),
        (["limit", "4", "--tiemout", "3"], "unexpected extra argument"),
        (["reset", "--watch"], "No such option"),
        (["explode"], "No such command"),
    ],
)
def test_wrong_arguments_end_with_code_2(flask: Flasks, args: list[str], says: str) -> None:
    result = flask(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_colours_are_printed_only_on_a_terminal(flask: Flasks, listening: AppPools) -> None:
    assert "\x1b[" not in flask("status").output
    assert "\x1b[1m" in flask("status", color=True).output


def test_on_a_terminal_progress_is_shown_and_the_screen_redrawn(
    flask: Flasks, listening: AppPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_ext.screen.is_terminal", lambda stream: True)
    result = flask("reset", color=True)
    assert result.stderr.endswith("1 of 1 process has answered…\x1b[K\r\x1b[K")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    known = command_line.run.__kwdefaults__
    assert known is not None
    monkeypatch.setitem(known, "pause", interrupt)
    result = flask("status", "--watch", color=True)
    assert result.exit_code == 0
    assert result.stdout.startswith("\x1b[2J\x1b[H")
    assert f":{os.getpid()} " in result.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "limit"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("there", [True, False])
def test_the_output_shows_no_secret(
    flask: Flasks, state: AppPools, command: str, format: str, there: bool
) -> None:
    if there:
        assert serve(state.control.project)
    result = flask(command, "--format", format, "--timeout", "2")
    assert SECRET not in result.output


# -- the configuration -------------------------------------------------------------------------------------------------


def test_wrong_settings_are_refused_at_once(make_app: MakeApp) -> None:
    wrong = {"KOMBU_POOLS_URL": "memory://", "SECRET_KEY": SECRET}
    with pytest.raises(ValueError, match=r"'DIR' is not a setting(.|\n)*'KEY'") as told:
        make_app({**wrong, "KOMBU_POOLS_CONTROL": {"DIR": "x", "KEY": "short"}})
    assert SECRET not in str(told.value)
    app = Flask("wrong")
    app.config.update(KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL={"BROADCAST": "nope"})
    with pytest.raises(ValueError, match="there is none") as told:
        KombuPools(app)
    assert "'nope'" in str(told.value)
    assert "kombu_pools" not in app.extensions
    assert "kombu-pools" not in app.cli.commands


WRONG = """
from flask import Flask
from flask_ext import KombuPools

def create_app():
    app = Flask(__name__)
    app.config.update({config!r})
    KombuPools(app)
    return app
"""


@pytest.mark.parametrize(
    "config, told",
    [
        (
            {
                "KOMBU_POOLS": {
                    "a": {"URL": f"amqp://me:{SECRET}@h//", "LIMIT": -1},
                    "b": {"URL": 5},
                }
            },
            ["KOMBU_POOLS['a']['LIMIT']", "KOMBU_POOLS['b']['URL']"],
        ),
        ({}, ["KOMBU_POOLS: neither this nor KOMBU_POOLS_URL is set"]),
        (
            {"KOMBU_POOLS_URL": "memory://", "KOMBU_POOLS_CONTROL": {"KEY": SECRET, "DIR": 1}},
            ["'DIR' is not a setting", "KOMBU_POOLS_CONTROL['KEY']"],
        ),
    ],
    ids=["pools", "none", "control"],
)
@pytest.mark.parametrize(
    "command",
    [["kombu-pools", "status"], ["run", "--port", "0"], ["routes"]],
    ids=lambda one: one[0],
)
def test_wrong_settings_print_a_message_without_a_traceback(
    tmp_path: Path, config: dict[str, Any], told: list[str], command: list[str]
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG.format(config=config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wrong", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    first, *_ = done.stderr.splitlines()
    assert first.startswith("Error: KOMBU_POOLS")
    assert all(one in done.stderr for one in told)
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_wrong_settings_are_one_error_for_programs() -> None:
    app = Flask("wrong")
    app.config.update(KOMBU_POOLS={"a": {"URL": "memory://", "LIMIT": -1}})
    with pytest.raises(SettingsError) as told:
        KombuPools(app)
    assert [(one.alias, one.key) for one in told.value.problems] == [("a", "LIMIT")]
    assert str(told.value).startswith("KOMBU_POOLS['a']['LIMIT']: ")
    again = pickle.loads(pickle.dumps(told.value))
    assert isinstance(again, PoolsImproperlyConfigured)
    assert (str(again), again.problems) == (str(told.value), told.value.problems)


def test_control_can_be_turned_off(make_app: MakeApp, memory_url: str) -> None:
    app = make_app(
        {
            "SECRET_KEY": f"{uuid.uuid4()}",
            "KOMBU_POOLS_URL": memory_url,
            "KOMBU_POOLS_CONTROL": False,
        }
    )
    assert not serve(app.extensions["kombu_pools"].control.project)
    result = app.test_cli_runner().invoke(args=["kombu-pools", "reset"])
    assert result.exit_code == 1
    assert "control is turned off" in result.stderr


def test_a_secret_is_not_needed(make_app: MakeApp, memory_url: str) -> None:
    app, other = (make_app({"KOMBU_POOLS_URL": memory_url}) for _ in range(2))
    assert serve(app.extensions["kombu_pools"].control.project)
    shown = [
        one.test_cli_runner().invoke(args=["kombu-pools", "status"]).stdout for one in (app, other)
    ]
    assert f":{os.getpid()} " in shown[0]
    assert "no process of this project" in shown[1]


# -- other processes ---------------------------------------------------------------------------------------------------

APP = """
import os, sys
from flask import Flask
from flask_ext import KombuPools, pools_reset
from kombu_pools_ext import Pools

if os.environ["FIRST_USE"] == "before init_app":
    Pools(default="memory://").publish({}, "anywhere")
app = Flask(__name__)
secret, *former = os.environ["PROJECT"].split()
app.config.update(
    SECRET_KEY=secret, SECRET_KEY_FALLBACKS=former or None, KOMBU_POOLS_URL="memory://"
)
pools = KombuPools(app)

def tell(app, *, reason, **what):
    print(reason, flush=True)

if __name__ == "__main__":
    pools_reset.connect(tell)
    if os.environ["FIRST_USE"] == "after init_app":
        app.extensions["kombu_pools"].publish({}, "anywhere")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "first_use, process, command",
    [
        ("after init_app", "new", "new"),
        ("before init_app", "new", "new"),
        ("after init_app", "old", "new old"),
        ("before init_app", "new old", "old"),
    ],
)
def test_a_running_process_is_reset(
    tmp_path: Path, first_use: str, process: str, command: str
) -> None:
    (tmp_path / "shop.py").write_text(APP, encoding="utf-8")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FIRST_USE": first_use,
    }
    unique = f"{uuid.uuid4()}"

    def secrets(names: str) -> str:
        return " ".join(f"{name}-{unique}" for name in names.split())

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "shop", "kombu-pools", *arguments],
            env={**environment, "PROJECT": secrets(command)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ready("shop.py", cwd=tmp_path, env={**environment, "PROJECT": secrets(process)}) as worker:
        eventually(lambda: f":{worker.pid} " in run("status"), PATIENCE)
        told = run("reset", "--process", str(worker.pid))
        assert told.endswith("  default  closed 1 idle connection\n")
        # The command's own program has used a pool as well, and is none of those that it is for.
        assert len(told.splitlines()) == 1
        assert said(worker) == "command"
    assert "no process" in run("status")
