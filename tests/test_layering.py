"""Who may import whom, how long a module may grow, and what lies at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kombu_pools_ext", "django_app", "flask_ext")
FOLDERS = {*PACKAGES, "tests", "docs"}
#: Past it a module holds two ideas; a class is never cut to fit.
LONGEST = 800

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module of `package` imports, wherever in it.

    Of `from a import b`, both `a` and `a.b` are named: b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden(source: str, package: str) -> list[tuple[int, str]]:
    """The imports in `source`, a module of `package`, that go up or sideways."""
    found = []
    for line, name in imports(source, package):
        if within(package, "kombu_pools_ext.engine"):
            # `from .. import x` names the package above as well; its names are what counts, and they are listed too.
            up = within(name, "kombu_pools_ext") and not within(name, "kombu_pools_ext.engine")
            bad = up or within(
                name, "kombu", "amqp", "vine", "django", "flask", "django_app", "flask_ext"
            )
        elif within(package, "kombu_pools_ext"):
            bad = within(name, "django", "flask", "django_app", "flask_ext")
        elif within(package, "django_app"):
            bad = within(name, "flask", "flask_ext")
        else:
            bad = within(name, "django", "django_app")
        if bad:
            found.append((line, name))
    return found


@pytest.mark.parametrize(
    "package, source, bad",
    [
        ("kombu_pools_ext.engine", "import kombu", ["kombu"]),
        (
            "kombu_pools_ext.engine",
            "def f():\n    from kombu.pools import x",
            ["kombu.pools", "kombu.pools.x"],
        ),
        ("kombu_pools_ext.engine", "from . import waiting\nfrom .waiting import Waiter", []),
        (
            "kombu_pools_ext.engine",
            "from ..errors import E",
            ["kombu_pools_ext.errors", "kombu_pools_ext.errors.E"],
        ),
        ("kombu_pools_ext.engine", "from kombu_pools_ext.engine.pool import Pool", []),
        ("kombu_pools_ext.broker", "from ..engine import Pool\nimport kombu", []),
        (
            "kombu_pools_ext",
            "from django.conf import settings",
            ["django.conf", "django.conf.settings"],
        ),
        ("kombu_pools_ext", "import flask_ext.context", ["flask_ext.context"]),
        ("kombu_pools_ext", "import flaskish", []),
        ("django_app.management", "from flask import g", ["flask", "flask.g"]),
        ("django_app.management", "from ..conf import x\nfrom kombu_pools_ext import pools", []),
        ("flask_ext", "import django_app", ["django_app"]),
    ],
)
def test_the_rule(package: str, source: str, bad: list[str]) -> None:
    assert [name for _, name in forbidden(source, package)] == bad


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    wrong = forbidden(path.read_text(encoding="utf-8"), package)
    assert not wrong, [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in wrong]


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


def test_no_module_holds_two_ideas() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    over = [
        f"{path.relative_to(ROOT)}: {length} lines"
        for path, length in lengths.items()
        if length > LONGEST
    ]
    assert not over


def test_five_folders_at_the_top() -> None:
    assert {
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    } - {
        "build",
        "dist",
        "__pycache__",
    } == FOLDERS
