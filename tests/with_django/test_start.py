"""Wrong settings are logged when a server starts, which sets Django up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECRET = "s3cr3t-word"
WRONG = {"default": {"URL": f"ampq://u:{SECRET}@h//", "LIMT": 3}}

#: Set up as by `get_wsgi_application()`; prints the records that were logged.
PROGRAM = """
import json, logging, socket, sys, threading
records = []
class Kept(logging.Handler):
    def emit(self, record):
        records.append([record.name, record.levelname, record.getMessage()])
logging.getLogger("kombu_pools_ext").addHandler(Kept())
def refuse(*args, **kwargs):
    raise AssertionError("a start opens a socket")
socket.socket.connect = socket.socket.bind = refuse
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_app"], LOGGING_CONFIG=None, **eval(sys.argv[1]))
django.setup()
assert threading.active_count() == 1
print(json.dumps(records))
"""


def started(**settings: Any) -> list[tuple[str, str, str]]:
    """Return logger, level and text of what a start with these settings logs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(settings)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


def test_wrong_settings_are_logged_as_one_error_with_the_page() -> None:
    ((name, level, text),) = started(KOMBU_POOLS=WRONG, KOMBU_POOLS_LIMIT=3)
    assert (name, level) == ("kombu_pools_ext.django", "ERROR")
    head, *lines = text.splitlines()
    assert head == (
        "each use of the pools will fail, because the settings are wrong "
        "(see https://kombu-pools-ext.readthedocs.io/en/stable/reference/settings.html):"
    )
    assert [line.split(":")[0] for line in lines] == [
        "KOMBU_POOLS",
        "KOMBU_POOLS['default']['LIMT']",
        "KOMBU_POOLS['default']['URL']",
    ]


@pytest.mark.parametrize("settings", [{}, {"KOMBU_POOLS": None}])
def test_missing_settings_are_an_error(settings: dict[str, Any]) -> None:
    ((_, level, text),) = started(**settings)
    assert level == "ERROR"
    assert "KOMBU_POOLS: the setting is missing, and DEBUG is off" in text


def test_wrong_settings_of_control_are_an_error() -> None:
    ((name, level, text),) = started(
        KOMBU_POOLS={"default": "memory://"}, KOMBU_POOLS_CONTROLL=False
    )
    assert (name, level) == ("kombu_pools_ext.control", "ERROR")
    assert "cannot be reached by commands: KOMBU_POOLS_CONTROL: 'KOMBU_POOLS_CONTROLL'" in text


@pytest.mark.parametrize(
    "settings",
    [{"DEBUG": True}, {"KOMBU_POOLS": {"default": f"amqp://u:{SECRET}@127.0.0.1:1//"}}],
    ids=["memory", "broker-that-is-not-there"],
)
def test_right_settings_log_nothing(settings: dict[str, Any]) -> None:
    assert started(**settings) == []


def test_a_driver_that_is_missing_is_an_error() -> None:
    settings = {"KOMBU_POOLS": {"default": "memory://", "cache": f"redis://:{SECRET}@h/0"}}
    hiding = PROGRAM.replace(
        "django.setup()",
        "from kombu_pools_ext import PoolSettings\n"
        "PoolSettings.missing_driver = lambda self: f'{self.transport} is not there' * (self.transport == 'redis')\n"
        "django.setup()",
    )
    done = subprocess.run(
        [sys.executable, "-c", hiding, repr(settings)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    ((_, level, text),) = json.loads(done.stdout)
    assert level == "ERROR"
    assert text == "each use of the pool 'cache' will fail: redis is not there"


def test_a_setting_that_raises_when_it_is_read_does_not_stop_the_start() -> None:
    program = PROGRAM.replace(
        "django.setup()",
        "from django.utils.functional import SimpleLazyObject\n"
        "settings.KOMBU_POOLS = SimpleLazyObject(lambda: 1 / 0)\ndjango.setup()",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "{}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    ((_, level, text),) = json.loads(done.stdout)
    assert (level, text) == (
        "ERROR",
        "KOMBU_POOLS cannot be read; each use of the pools will fail",
    )


@pytest.mark.parametrize("source", ["lambda: 1 / 0", "'this.pools'"])
def test_a_function_that_settings_come_from_is_not_called(source: str) -> None:
    told = f"{{'KOMBU_POOLS': {source}, 'KOMBU_POOLS_LIMIT': 3}}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, told], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    ((_, _, text),) = json.loads(done.stdout)
    assert text.splitlines()[1:] == [
        "KOMBU_POOLS: 'KOMBU_POOLS_LIMIT' is not a setting; "
        'did you mean KOMBU_POOLS = {"default": {"LIMIT": …}}?'
    ]


@pytest.mark.parametrize("path", ["no_such_module.pools", "json.no_such_module:Vault.pools"])
def test_a_path_to_a_module_that_does_not_exist_is_an_error(path: str) -> None:
    ((_, level, text),) = started(KOMBU_POOLS=path)
    assert level == "ERROR"
    assert text.splitlines()[1:] == [
        f"KOMBU_POOLS: {path!r}: the module in the path does not exist; is it misspelt, or not on sys.path? "
        "a method is 'module:Class.method'"
    ]


def test_a_file_that_settings_come_from_is_read() -> None:
    ((_, level, text),) = started(KOMBU_POOLS="no-such-file.toml")
    assert level == "ERROR"
    assert "the file 'no-such-file.toml' cannot be read: No such file or directory" in text


def test_a_management_command_reports_it_only_by_its_check(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(
        f"SECRET_KEY = 'for tests'\nINSTALLED_APPS = ['django_app']\nKOMBU_POOLS = {WRONG!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "django", "check", "--settings", "project", "--pythonpath", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("'LIMT' is not a setting") == 1, done.stderr
    assert "each use of the pools" not in done.stderr
