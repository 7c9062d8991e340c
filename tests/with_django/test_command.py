from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_app import conf, connections
from django_app.signals import pools_reset
from kombu_pools_ext.control import command_line, serve
from tests.worker import ready, said

from .conftest import until

SECRET = "s3cr3t-word"
#: Seconds for a child to begin, or to end.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _project() -> Iterator[None]:
    """A project of this test, to which only this process belongs, once it listens."""
    with override_settings(SECRET_KEY=f"{uuid.uuid4()}"):
        yield


@pytest.fixture
def listening(configure: Callable[..., None]) -> Callable[..., None]:
    """Configure pools, and listen for commands."""

    def listen(pools: Any = None) -> None:
        configure(pools)
        assert serve(conf.control().project)

    return listen


def command(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("kombu_pools", *arguments, stdout=out, **options)
    return out.getvalue()


def rows(document: str) -> list[dict[str, Any]]:
    [process] = json.loads(document)["processes"]
    found: list[dict[str, Any]] = process["rows"]
    return found


def test_status(listening: Callable[..., None], memory_url: str) -> None:
    listening({"default": memory_url, "audit": f"amqp://u:{SECRET}@h//"})
    with connections["default"].acquire():
        head, default, audit = command("status").splitlines()
        [row] = rows(command("status", "--using", "default", "--format", "json"))
    assert head.split()[:4] == ["PROCESS", "SERVER", "UP", "ALIAS"]
    assert f":{os.getpid()} " in default
    assert " default " in default
    assert audit.endswith("amqp://u:**@h//")
    assert (row["alias"], row["lent"], row["pid"]) == ("default", 1, os.getpid())


def test_reset(listening: Callable[..., None]) -> None:
    heard: list[str] = []

    def receive(reason: str, **what: Any) -> None:
        heard.append(reason)

    listening()
    pools_reset.connect(receive)
    with connections["default"].acquire(), connections["default"].acquire():
        pass
    try:
        assert command("reset").endswith("  default  closed 2 idle connections\n")
    finally:
        pools_reset.disconnect(receive)
    assert connections["default"].stats().size == 1
    assert heard == ["command"]


def test_limit_suspend_and_resume(listening: Callable[..., None]) -> None:
    listening()
    pool = connections["default"]
    assert command("limit", "3").endswith("  limit 3, was 10\n")
    assert pool.limit == 3
    assert command("suspend", "--mode", "fail").endswith("  suspended\n")
    assert pool.stats().suspended
    assert command("resume").endswith("  resumed\n")
    assert not pool.stats().suspended


def test_ping(listening: Callable[..., None], memory_url: str) -> None:
    listening({"good": memory_url, "bad": f"amqp://u:{SECRET}@127.0.0.1:1//"})
    assert " ok in " in command("ping", "--using", "good")
    out = io.StringIO()
    for format in ("table", "json"):
        with pytest.raises(CommandError, match=r"^ping failed in 1 of 1 process: \S+$") as told:
            call_command("kombu_pools", "ping", "--format", format, "--timeout", "30", stdout=out)
        assert told.value.returncode == 1
    assert SECRET not in out.getvalue()
    assert [row["ok"] for row in rows(out.getvalue()[out.getvalue().index("{\n") :])] == [
        True,
        False,
    ]


def test_ping_of_the_real_brokers(
    listening: Callable[..., None], amqp_url: str, redis_url: str
) -> None:
    listening({"rabbit": amqp_url, "redis": redis_url})
    assert [" ok in " in line for line in command("ping").splitlines()] == [True, True]
    assert [one.stats().idle for one in (connections["rabbit"], connections["redis"])] == [1, 1]


def test_a_process_listens_once_it_has_used_a_pool(configure: Callable[..., None]) -> None:
    configure()
    assert command("status").startswith("no process of this project is running here")
    with pytest.raises(CommandError, match=r"^no process of this project is running here"):
        command("reset", "--dry-run")
    with connections["default"].acquire():
        until(lambda: f":{os.getpid()} " in command("status"))
    assert f":{os.getpid()} " in command("reset", "--dry-run")


@pytest.mark.parametrize("setting", ["SECRET_KEY", "KOMBU_POOLS_CONTROL"])
def test_changed_control_settings_are_used_at_once(
    listening: Callable[..., None], setting: str, tmp_path: Path
) -> None:
    listening()
    short = os.environ["XDG_RUNTIME_DIR"]
    other = {"SECRET_KEY": "another", "KOMBU_POOLS_CONTROL": {"DIRECTORY": short, "KEY": "x" * 16}}
    with override_settings(**{setting: other[setting]}):
        assert "no process" in command("status")
        assert serve(conf.control().project)
        assert f":{os.getpid()} " in command("status")
    assert "no process" in command("status")
    with override_settings(KOMBU_POOLS_CONTROL=False):
        with pytest.raises(CommandError, match="control is turned off"):
            command("reset")


def test_a_secret_is_not_needed(configure: Callable[..., None]) -> None:
    with override_settings(SECRET_KEY="", BASE_DIR=f"/{uuid.uuid4()}"):
        configure()
        assert "no process" in command("status")
        assert serve(conf.control().project)
        assert f":{os.getpid()} " in command("status")


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["status", "--using", "nope"], "no broker pool is configured under 'nope'"),
        (["ping", "--timeout", "0"], "timeout must be a number of seconds above 0"),
        (["limit"], "limit: expected a number from 1 to 10000, got None"),
        (["limit", "-1"], "limit: expected a number from 1 to 10000, got -1"),
        (["limit", f"{10**9}"], "limit: expected a number from 1 to 10000, got 1000000000"),
        (["reset", "4"], "limit: 'reset' takes none"),
        (["reset", "--watch"], "--watch can only be used with status"),
    ],
)
def test_wrong_arguments_are_refused(
    configure: Callable[..., None], arguments: list[str], complaint: str
) -> None:
    configure()
    with pytest.raises(CommandError, match=complaint) as told:
        command(*arguments)
    assert told.value.returncode == 2


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"using": "default"}, "using: expected names, got 'default'"),
        ({"process": "4711"}, "processes: expected names, got '4711'"),
        ({"expect": "2"}, "--expect takes a number of processes, 1 to 1000000, not '2'"),
        ({"expect": True}, "--expect takes a number of processes, 1 to 1000000, not True"),
    ],
)
def test_wrong_use_from_python(
    configure: Callable[..., None], options: dict[str, Any], complaint: str
) -> None:
    configure()
    with pytest.raises(CommandError, match=complaint) as told:
        command("reset", **options)
    assert told.value.returncode == 2


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"KOMBU_POOLS": {"default": {"URL": "memory://", "LIMIT": -1, "X": 1}}}, r"'LIMIT'(.|\n)*'X'"),
        ({"KOMBU_POOLS_CONTROL": {"KEY": "short", "DIR": 1}}, r"'DIR'(.|\n)*'KEY'"),
    ],
)  # fmt: skip
def test_wrong_settings(settings: dict[str, Any], complaint: str) -> None:
    with override_settings(**settings):
        with pytest.raises(CommandError, match=complaint) as told:
            command("status")
    assert told.value.returncode == 2


def test_wrong_control_settings_do_not_prevent_publishing(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(KOMBU_POOLS_CONTROL={"DIRECTORY": f"relative {uuid.uuid4()}"}):
        configure()
        for _ in range(2):
            connections["default"].acquire().release()
            conf.pools.reset()
    [told] = [one for one in caplog.records if one.name == "kombu_pools_ext.control"]
    assert "expected an absolute path" in told.getMessage()


def test_colours_are_djangos(
    listening: Callable[..., None], memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DJANGO_COLORS", raising=False)
    listening({"good": memory_url, "bad": "amqp://127.0.0.1:1//"})
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("kombu_pools", "ping", stdout=out, force_color=True)
    good, bad = out.getvalue().splitlines()
    assert good.startswith("\x1b[32;1m")
    assert bad.startswith("\x1b[31;1m")
    head, good, bad = command("status", force_color=True).splitlines()
    assert head.startswith("\x1b[")
    assert "\x1b" not in good
    assert bad.startswith("\x1b[31;1m")
    assert "\x1b" not in command("ping", "--using", "good", no_color=True)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_shown_and_the_screen_redrawn(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    listening()
    out, err = Screen(), Screen()
    call_command("kombu_pools", "reset", stdout=out, stderr=err, no_color=True)
    assert "1 of 1 process has answered…" in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[K")
    assert "\x1b" not in out.getvalue()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    known = command_line.run.__kwdefaults__
    assert known is not None
    monkeypatch.setitem(known, "pause", interrupt)
    call_command("kombu_pools", "status", "--watch", stdout=out, stderr=err, no_color=True)
    assert "\x1b[2J\x1b[H" in out.getvalue()
    assert f":{os.getpid()} " in out.getvalue()


# -- other processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> dict[str, str]:
    """The environment of a project."""
    (tmp_path / "project_settings.py").write_text(
        f"""
SECRET_KEY = "{uuid.uuid4()}"
INSTALLED_APPS = ["django_app"]
KOMBU_POOLS = {{"good": "memory://", "bad": "amqp://u:{SECRET}@127.0.0.1:1//"}}
""",
        encoding="utf-8",
    )
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DJANGO_SETTINGS_MODULE": "project_settings",
    }


def run(project: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "django", "kombu_pools", *arguments],
        env=project,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert SECRET not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "arguments, code, out, err",
    [
        (["ping", "--using", "good"], 0, "ok in", ""),
        (
            ["ping", "--timeout", "30"],
            1,
            "failed: BrokerUnreachable",
            "CommandError: ping failed in 1 of 1 process: ",
        ),
        (["status"], 0, "no process of this project is running here", ""),
        (["status", "--expect", "1"], 3, "", "no process of this project is running here"),
        (["reset"], 3, "", "CommandError: no process of this project is running here"),
        (["reset", "--allow-none"], 0, "no process of this project is running here", ""),
        (["resume", "--dry-run"], 3, "", "no process of this project is running here"),
        (["reset", "--process", "4711"], 1, "", "no process of this project is there as process '4711'"),
        (["reset", "--using", "god"], 2, "", "did you mean 'good'"),
        (["explode"], 2, "", "invalid choice"),
        (["ping", "--format", "xml"], 2, "", "invalid choice"),
        (["limit", "many"], 2, "", "'many' is neither a number, for limit"),
        ([], 2, "", "required"),
    ],
)  # fmt: skip
def test_exit_codes(
    project: dict[str, str], arguments: list[str], code: int, out: str, err: str
) -> None:
    done = run(project, *arguments)
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr


WORKER = """
import sys
import django
django.setup()
from django_app import publish
from django_app.signals import pools_reset

def tell(reason, **what):
    print(reason, flush=True)

pools_reset.connect(tell)
publish({}, routing_key="anywhere", using="good")
print("ready", flush=True)
sys.stdin.read()
"""


def test_watching_on_a_terminal_ends_at_ctrl_c(project: dict[str, str]) -> None:
    screen, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "django", "kombu_pools", "status", "--watch"],
            env={**project, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
        ) as watching:
            shown = b""
            while b"no process of this project" not in shown:
                assert select.select([screen], [], [], PATIENCE)[0], "nothing is shown"
                shown += os.read(screen, 4096)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(PATIENCE) == 0
    finally:
        os.close(screen)
        os.close(terminal)
    assert b"\x1b[2J\x1b[H" in shown


def test_watching_ends_when_the_pipe_is_closed(project: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "django", "kombu_pools", "status", "--watch"],
        env=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert watching.stdout.readline().startswith("no process of this project")
        watching.stdout.close()
        assert watching.wait(PATIENCE) == 0
        assert watching.stderr.read() == ""


def test_a_running_process_is_reset(project: dict[str, str]) -> None:
    with ready("-c", WORKER, env=project) as worker:
        until(lambda: f":{worker.pid} " in run(project, "status").stdout, PATIENCE)
        short = run(project, "suspend", "--expect", "2")
        assert (short.returncode, short.stdout.count("\n")) == (4, 2)
        assert "2 processes were expected, and 1 answered" in short.stderr
        assert run(project, "resume", "--expect", "1").returncode == 0
        done = run(project, "reset", "--using", "good", "--process", str(worker.pid))
        assert done.returncode == 0
        assert done.stdout.endswith("  good  closed 1 idle connection\n")
        assert said(worker) == "command"
    assert "no process" in run(project, "status").stdout


# -- a secret that is rotated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process, command",
    [
        ({"SECRET_KEY": "old"}, {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": ["old"]}),
        ({"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": ["old"]}, {"SECRET_KEY": "old"}),
    ],
)
def test_commands_reach_processes_across_a_rotation_of_the_secret(
    project: dict[str, str], tmp_path: Path, process: dict[str, Any], command: dict[str, Any]
) -> None:
    """A running process has the settings of its start."""
    settings = tmp_path / "project_settings.py"
    text, number = settings.read_text(), f"{uuid.uuid4()}"

    def write(secrets: dict[str, Any]) -> None:
        # After what stands there.
        lines = [f"{name} = {value!r}" for name, value in secrets.items()]
        settings.write_text("\n".join([text, *lines]).replace("'old'", f"'old{number}'"))

    write(process)
    with ready("-c", WORKER, env=project) as worker:
        write(command)
        until(lambda: f":{worker.pid} " in run(project, "status").stdout, PATIENCE)
        done = run(project, "reset", "--using", "good", "--expect", "1")
        assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
        assert said(worker) == "command"


def test_a_removed_former_secret_is_noticed(listening: Callable[..., None]) -> None:
    with override_settings(SECRET_KEY_FALLBACKS=["a former one"]):
        listening()
        assert len(conf.control().project.former) == 1
    assert conf.control().project.former == ()


def test_a_secret_that_is_too_short_for_other_machines() -> None:
    pools = {"default": "amqp://localhost//"}
    with override_settings(
        KOMBU_POOLS=pools, SECRET_KEY="short", KOMBU_POOLS_CONTROL={"BROADCAST": "default"}
    ):
        with pytest.raises(
            CommandError, match="at least 16 characters, and there is one of 5"
        ) as told:
            command("status")
    assert told.value.returncode == 2
