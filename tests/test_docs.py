"""The documentation says what is so: its examples run, and everything public has its entry."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

import kombu_pools_ext
from kombu_pools_ext import control, errors, events, pools, settings, stats
from kombu_pools_ext.control import command_line, local, options
from kombu_pools_ext.control.answer import Answer, Answers, Process
from kombu_pools_ext.control.request import Request

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "tests" / "docs_runner.py"
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "_build" not in page.parts and "```python\n" in page.read_text()
)
REFERENCE = ROOT / "docs" / "reference"
#: Seconds for the examples of one page; they take a few on a busy machine.
DEADLINE = 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_every_example_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", RUNNER, page],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_hold_examples_at_all() -> None:
    assert len(PAGES) >= 8


def _names_in(page: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)", (REFERENCE / page).read_text()))


@pytest.mark.parametrize(
    "module, page", [(kombu_pools_ext, "api.md"), (pools, "api.md"), (errors, "errors.md")]
)
def test_every_public_name_has_an_entry(module: object, page: str) -> None:
    assert set(module.__all__) - _names_in(page) == set()  # type: ignore[attr-defined]


def test_every_event_has_an_entry() -> None:
    named = {name for name in events.__all__ if name != "Event"}
    assert named - _names_in("events.md") == set()


def test_every_reason_to_close_a_connection_has_an_entry() -> None:
    text = (REFERENCE / "stats.md").read_text()
    assert [reason for reason in stats.CLOSE_REASONS if f'`"{reason}"`' not in text] == []


def test_every_statistic_has_an_entry() -> None:
    assert set(stats.PoolStats.__dataclass_fields__) - _names_in("stats.md") == set()


def test_every_setting_has_an_entry() -> None:
    known = {name.upper() for name in settings.CHECKS}
    assert known - _names_in("settings.md") == set()


def test_every_command_and_option_has_an_entry() -> None:
    text = (REFERENCE / "commands.md").read_text()
    assert [one for one in command_line.COMMANDS if f"| `{one}" not in text] == []
    assert [one.name for one in command_line.OPTIONS if f"| `--{one.name}" not in text] == []


def test_every_setting_of_control_and_every_key_of_its_answers_has_an_entry() -> None:
    named = _names_in("control.md")
    text = (REFERENCE / "control.md").read_text()
    assert set(options.KEYS) - named == set()
    kinds = (local.StatusRow, local.ResetRow, local.PingRow, local.LimitRow, local.ResumeRow)
    for kind in (*kinds, Answer, Process):
        assert {one.name for one in fields(kind)} - named == set(), kind
    made = Answers(Request(command="status")).as_dict()
    assert [key for key in made if f'"{key}": ' not in text] == []
    assert set(control.__all__) - {"attach_to", *named} == set()


def test_every_check_has_an_entry() -> None:
    from django_app import checks

    used = set(re.findall(r"[EW]\d{3}", Path(checks.__file__).read_text()))
    assert used
    text = (REFERENCE / "checks.md").read_text()
    assert [one for one in sorted(used) if f"kombu_pools.{one}" not in text] == []


@lru_cache
def _tests_in(path: str) -> set[str]:
    """The names of tests on a file's top level: functions, and classes that are assigned to a name."""
    text = (ROOT / path).read_text()
    return set(re.findall(r"^(?:def )?(test_\w+|Test\w+)(?= = |\()", text, re.MULTILINE))


def test_each_check_and_each_defect_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "explanation" / "acceptance.md").read_text()
    checks, defects = text.split("## The 20 defects")
    named = 0
    for part, count in ((checks, 30), (defects, 20)):
        rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", part, re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(1, count + 1))
        for number, shown in rows:
            found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown)
            assert found, f"{number} names none"
            for path, name in found:
                assert (ROOT / path).is_file(), path
                assert not name or name in _tests_in(path), f"{path}::{name}"
                named += bool(name)
    assert named > 70
