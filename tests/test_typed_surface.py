"""Every public call has an ``assert_type`` in ``tests/typed``, which ``make types`` has mypy and pyright check."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
CHECKED = sorted((ROOT / "tests" / "typed").glob("[a-z]*.py"))
#: What the packages offer besides what the reference pages list.
PACKAGES = ("kombu_pools_ext", "kombu_pools_ext.control", "django_app", "flask_ext")
DIRECTIVE = re.compile(r"^\.\. auto(class|function):: (\S+)\n((?:   .*\n)*)", re.MULTILINE)
MEMBERS = re.compile(r":members:((?: [\w, ]+\n?)+)", re.MULTILINE)


def documented() -> Iterator[str]:
    """Each function, and each member of a class, that the reference pages list: ``reset``, ``Pools.reset``."""
    for page in REFERENCE:
        for kind, path, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            name = path.rpartition(".")[2]
            if kind == "function":
                yield name
                continue
            members = MEMBERS.search(options)
            for member in re.findall(r"\w+", members[1]) if members else ():
                yield f"{name}.{member}"


def offered() -> Iterator[str]:
    """Each function that a package offers."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield from (one for one in package.__all__ if inspect.isfunction(getattr(package, one)))


def asserted(source: str) -> Iterator[str]:
    """What stands in an ``assert_type`` or begins a block, or goes to a function that names its type, ``takes_…``."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        classes = {
            one.arg: ast.unparse(one.annotation).partition("[")[0]
            for one in function.args.args
            if one.annotation is not None
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and re.match(
                "assert_type|takes_", ast.unparse(node.func)
            ):
                yield from names_in(node.args[0], classes)
            elif isinstance(node, ast.withitem):
                yield from names_in(node.context_expr, classes)


def names_in(expression: ast.AST, classes: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            yield f"{classes.get(of, of)}.{node.attr}"


def decorated(source: str) -> set[str]:
    """The decorators: what they make of a function is asserted by its call."""
    return {
        ast.unparse(one.func if isinstance(one, ast.Call) else one)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        for one in node.decorator_list
    }


def test_what_is_found_in_a_file() -> None:
    source = """
def f(pools: Pools[int], other):
    assert_type(pools.reset().closed, int)
    takes_connection(other.new())
    with pools.lent() as lent:
        pools.drain()
"""
    names = {name for name in asserted(source) if name.startswith("Pools.")}
    assert names == {"Pools.reset", "Pools.lent"}
    assert "other.new" in asserted(source)


def test_something_is_documented_and_offered() -> None:
    assert {"reset", "Pools.reset", "PoolSettings.identity", "ProducerPool.acquire"} <= {
        *documented()
    }
    assert {"publish", "with_producer", "attach"} <= {*offered()}


def test_every_public_call_has_an_assert_type() -> None:
    sources = [path.read_text(encoding="utf-8") for path in CHECKED]
    found = {name for source in sources for name in (*asserted(source), *decorated(source))}
    assert {*documented(), *offered()} - found == set()


@pytest.mark.parametrize("name", PACKAGES[:2] + PACKAGES[3:])
def test_each_class_that_is_offered_is_in_a_file(name: str) -> None:
    package = importlib.import_module(name)
    text = "\n".join(path.read_text(encoding="utf-8") for path in CHECKED)
    classes = [one for one in package.__all__ if inspect.isclass(getattr(package, one))]
    assert [one for one in classes if not re.search(rf"\b{one}\b", text)] == []
