from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_app import connections

SECRET = "s3cr3t-word"


def command(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("kombu_pools", *arguments, stdout=out, **options)
    return out.getvalue()


def test_status(configure: Callable[..., None], memory_url: str) -> None:
    configure({"default": memory_url, "audit": f"amqp://u:{SECRET}@h//"})
    with connections["default"].acquire():
        head, default, audit = command("status").splitlines()
        [row] = json.loads(command("status", "--using", "default", "--format", "json"))["rows"]
    assert head.split()[:4] == ["ALIAS", "LIMIT", "IDLE", "LENT"]
    assert default.split()[:4] == ["default", "10", "0", "1"]
    assert audit.endswith("amqp://u:**@h//")
    assert (row["alias"], row["lent"], row["pid"]) == ("default", 1, os.getpid())


def test_reset(configure: Callable[..., None]) -> None:
    configure()
    connections["default"].acquire().release()
    with connections["default"].acquire(), connections["default"].acquire():
        pass
    assert command("reset") == "default: closed 2 idle connections\n"
    assert connections["default"].stats().size == 0


def test_ping(configure: Callable[..., None], memory_url: str) -> None:
    configure({"good": memory_url, "bad": f"amqp://u:{SECRET}@127.0.0.1:1//"})
    assert " ok in " in command("ping", "--using", "good")
    out = io.StringIO()
    for format in ("table", "json"):
        with pytest.raises(CommandError, match=r"^ping failed for 1 of 2: bad$") as told:
            call_command("kombu_pools", "ping", "--format", format, "--timeout", "30", stdout=out)
        assert told.value.returncode == 1
    assert SECRET not in out.getvalue()
    document = json.loads(out.getvalue()[out.getvalue().index("{\n") :])
    assert [row["ok"] for row in document["rows"]] == [True, False]


def test_ping_of_the_real_brokers(
    configure: Callable[..., None], amqp_url: str, redis_url: str
) -> None:
    configure({"rabbit": amqp_url, "redis": redis_url})
    assert [line.split()[0] for line in command("ping").splitlines()] == ["rabbit", "redis"]
    assert [one.stats().idle for one in (connections["rabbit"], connections["redis"])] == [1, 1]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["status", "--using", "nope"], "no broker pool is configured under 'nope'"),
        (["ping", "--timeout", "0"], "timeout must be a number of seconds above 0"),
    ],
)
def test_wrong_use(configure: Callable[..., None], arguments: list[str], complaint: str) -> None:
    configure()
    with pytest.raises(CommandError, match=complaint) as told:
        command(*arguments)
    assert told.value.returncode == 2


def test_wrong_settings() -> None:
    with override_settings(KOMBU_POOLS={"default": {"URL": "memory://", "LIMIT": -1, "X": 1}}):
        with pytest.raises(CommandError, match=r"'LIMIT'(.|\n)*'X'") as told:
            command("status")
    assert told.value.returncode == 2


def test_colours_are_djangos(
    configure: Callable[..., None], memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DJANGO_COLORS", raising=False)
    configure({"good": memory_url, "bad": "amqp://127.0.0.1:1//"})
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


@pytest.mark.parametrize(
    "arguments, code, out, err",
    [
        (["ping", "--using", "good"], 0, "ok in", ""),
        (
            ["ping", "--timeout", "30"],
            1,
            "failed: BrokerUnreachable",
            "CommandError: ping failed for 1 of 2: bad",
        ),
        (["reset", "--using", "god"], 2, "", "did you mean 'good'"),
        (["explode"], 2, "", "invalid choice"),
        (["ping", "--format", "xml"], 2, "", "invalid choice"),
        ([], 2, "", "required"),
    ],
)
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, out: str, err: str) -> None:
    (tmp_path / "project_settings.py").write_text(
        f"""
INSTALLED_APPS = ["django_app"]
KOMBU_POOLS = {{"good": "memory://", "bad": "amqp://u:{SECRET}@127.0.0.1:1//"}}
""",
        encoding="utf-8",
    )
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "django", "kombu_pools", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "DJANGO_SETTINGS_MODULE": "project_settings",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert time.monotonic() - began < 30
