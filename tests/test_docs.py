"""The documentation is right: its examples run, and everything public has an entry."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

import kombu_pools_ext
from kombu_pools_ext import (
    control,
    documentation,
    errors,
    events,
    pools,
    settings,
    stats,
    testing,
)
from kombu_pools_ext.control import command_line, local, options
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.request import Request
from tests.brokers import PrivateRabbitMQ
from tests.docs_runner import examples, vhost_of

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


@pytest.fixture(scope="module")
def broker(_own_rabbitmq: PrivateRabbitMQ) -> PrivateRabbitMQ:
    """A RabbitMQ with an empty virtual host for each example."""
    _own_rabbitmq.add_vhosts([vhost_of(page, line) for page in PAGES for line, _ in examples(page)])
    return _own_rabbitmq


@pytest.mark.broker
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_every_example_of_the_page_runs_as_copied_on_an_empty_broker(
    page: Path, broker: PrivateRabbitMQ, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", RUNNER, page, broker.url_of(vhost="")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    # The last line names an example; it comes first, because a summary shows one line.
    named = "".join(done.stderr.splitlines()[-1:])
    assert done.returncode == 0, f"{named}\n{done.stdout}{done.stderr}"


def test_the_pages_contain_examples() -> None:
    assert len(PAGES) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_every_example_that_publishes_declares_a_queue(page: Path) -> None:
    """A pool of a URL publishes as kombu does: a message that no queue takes is lost without an error."""
    lost = [
        line
        for line, code in examples(page)
        if "publish(" in code and "declare" not in code and "except TypeError" not in code
    ]
    assert lost == []


def _names_in(page: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)", (REFERENCE / page).read_text()))


@pytest.mark.parametrize(
    "module, page",
    [
        (kombu_pools_ext, "api.md"),
        (pools, "api.md"),
        (errors, "errors.md"),
        (testing, "testing.md"),
    ],
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


def test_every_control_setting_and_every_key_of_answers_has_an_entry() -> None:
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
    for part, numbers in ((checks, [*range(1, 36)]), (defects, [*range(1, 21)])):
        rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", part, re.MULTILINE)
        assert [int(number) for number, _ in rows] == numbers
        for number, shown in rows:
            found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown)
            assert found, f"{number} names none"
            for path, name in found:
                assert (ROOT / path).is_file(), path
                assert not name or name in _tests_in(path), f"{path}::{name}"
                named += bool(name)
    assert named > 70


def _sections_of(address: str) -> set[str] | None:
    """Return the anchors of the sections of a page, as the built pages have them; `None` if the page does not exist."""
    name = address.removeprefix(documentation.BASE) or "index.html"
    source = ROOT / "docs" / Path(name).with_suffix(".md")
    if not name.endswith(".html") or not source.is_file():
        return None
    titles = re.findall(r"^#+ (.+)$", source.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}


def _is_there(address: str) -> bool:
    page, hash, section = address.partition("#")
    sections = _sections_of(page)
    return sections is not None and (not hash or section in sections)


def test_each_page_that_a_message_points_to_is_there() -> None:
    """`make docs` checks this as well, on the pages that it has built."""
    assert [page for page in documentation.Page if not _is_there(page)] == []
    assert not _is_there(f"{documentation.BASE}reference/no-such-page.html")
    assert not _is_there(f"{documentation.Page.SETTINGS}#no-such-section")


def test_each_page_that_the_readme_points_to_is_there_for_those_who_have_no_repository() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    pages = [link for link in links if link.startswith(documentation.BASE)]
    assert len(pages) >= 5
    assert [page for page in pages if not _is_there(page)] == []
    assert [link for link in links if link.startswith("docs/")] == []


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of each text in a module, without the docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node.body[0] if node.body else None, ast.Expr)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings:
            yield node.lineno, text


def test_no_message_names_a_file_of_the_repository_or_an_address_of_its_own() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for package in ("kombu_pools_ext", "django_app", "flask_ext")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "documentation.py"
        for line, text in _texts(path)
        if re.search(r"docs/|\.md\b|readthedocs", text)
    ]
    assert found == []


def test_the_package_names_the_address_of_the_documentation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Documentation"] == documentation.BASE
