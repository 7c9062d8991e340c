"""Who may import whom, how long a module may grow, and what lies at the top."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
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
            if not within(package, "kombu_pools_ext.contrib"):
                # Each part of it needs a library that the core does not need.
                bad = bad or within(name, "celery", "sqlalchemy", "kombu_pools_ext.contrib")
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
        ("kombu_pools_ext.broker", "import celery.signals", ["celery.signals"]),
        (
            "kombu_pools_ext.control",
            "def f():\n    from ..contrib import celery",
            ["kombu_pools_ext.contrib", "kombu_pools_ext.contrib.celery"],
        ),
        ("kombu_pools_ext.contrib.celery", "import celery\nfrom ...aliases import Pools", []),
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


# -- who may ask what kind of transport there is --------------------------------------------------------------------

#: The sessions and what is below them, and the place that chooses one.
OF_ONE_KIND = (
    "kombu_pools_ext/broker/amqp/",
    *(
        f"kombu_pools_ext/broker/{name}.py"
        for name in ("foreign", "kinds", "plain", "redis", "redis_sockets", "virtual_leftovers")
    ),
)
#: What asks for the kind of a connection, or of a pool. What settings say of a URL is another matter.
ASKS_FOR_THE_KIND = re.compile(
    r"\bsession\.transport is (not )?None|getattr\([^()]*[\"'](transport|bounds)[\"']|\.bounds\b"
    r"|(?<!settings)(?<!self)\.is_amqp\b|\w\.foreign\b"
    r"|\bdriver_(name|type)\b|isinstance\([^()]*\b(\w+Session|TransportBase|ForeignConnections|OwnConnections)\b"
)


def asking_for_the_kind(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if ASKS_FOR_THE_KIND.search(line)]


def test_asking_for_the_kind_of_transport_is_found() -> None:
    asking = (
        "if session.transport is None:",
        'below = getattr(session, "transport", None)',
        "if pool.foreign or item.bounds:",
        "if isinstance(item.pooled_session, AmqpSession):",
        'if transport.driver_type == "redis":',
    )
    for line in asking:
        assert asking_for_the_kind(line) == [line]
    assert asking_for_the_kind("from .foreign import x\nif settings.is_amqp:") == []


def test_only_sessions_ask_what_kind_of_transport_there_is() -> None:
    found = {}
    for path in MODULES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(OF_ONE_KIND):
            found[name] = asking_for_the_kind(path.read_text(encoding="utf-8"))
    assert {name: lines for name, lines in found.items() if lines} == {}


# -- inside a folder: no circle, no private name of another file, whole classes, short functions -----------------------

#: The folders in which these rules hold.
ORDERED = (
    *("django_app", "flask_ext", "kombu_pools_ext/settings"),
    *("kombu_pools_ext/control", "kombu_pools_ext/broker"),
    *("kombu_pools_ext/engine", "kombu_pools_ext/submitting", "kombu_pools_ext/publisher"),
    *("kombu_pools_ext/contrib", "kombu_pools_ext/testing"),
)
#: Lines of a function.
LONGEST_FUNCTION = 60
#: Private names of Python's own modules, redis-py, kombu and py-amqp, which have no public ones for it, or public ones
#: that dial anew.
LIBRARIES_OWN = {
    *("_sock", "_transport", "_AbstractTransport", "_callbacks", "_confirm_selected", "_pending"),
    *("_serialize_properties", "_close", "_delivery_details", "_prepare", "_publish"),
    *("_default_content_encoding", "_default_content_type", "_default_encode", "_encoders"),
    *("_reraise_errors", "_aliases", "_used_channel_ids"),
    # Of kombu's connections, producers and virtual transports.
    *("_info", "_connection", "_default_channel", "_channel", "_initial_params"),
    *("_failover_strategy", "_connection_factory", "_avail_channels", "_consumers", "_qos"),
    *("_flush", "_delivered", "_chan_to_sock", "_fd_to_chan"),
    # Of Celery: where an application keeps its pool, the hook that empties it in a child, and the module that has the
    # default application.
    *("_pool", "_ensure_after_fork", "_state"),
    # Python's own: sys._getframe().
    "_getframe",
    *("_current_frames", "_getframe", "_is_owned", "_parent_pid"),
}


def in_folder(folder: str) -> dict[str, str]:
    """The sources in *folder*, by the names of their modules."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def circle(sources: dict[str, str], packages: set[str]) -> list[str]:
    """Modules that import each other in a circle, or import one that does; type-only and lazy imports count."""
    needs = {
        name: {
            target
            for _, target in imports(source, name if name in packages else name.rpartition(".")[0])
            if target in sources and target != name and target not in packages
        }
        for name, source in sources.items()
    }
    while free := [name for name, targets in needs.items() if not targets]:
        for name in free:
            del needs[name]
        for targets in needs.values():
            targets.difference_update(free)
    return sorted(needs)


def own_private_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of_others(source: str) -> list[str]:
    """The private names that a module takes from another one, or from its objects."""
    tree = ast.parse(source)
    own = {*own_private_names(tree), *LIBRARIES_OWN}
    taken = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            taken += [alias.name for alias in node.names if private(alias.name)]
        elif (
            isinstance(node, ast.Attribute)
            and private(node.attr)
            and node.attr not in own
            and ast.unparse(node.value) not in ("self", "cls")
        ):
            taken.append(node.attr)
    return taken


def members_for_checkers_alone(source: str) -> list[str]:
    """The classes that declare members for type checkers only: a part of them stands in another file."""
    return [
        each.name
        for each in ast.walk(ast.parse(source))
        if isinstance(each, ast.ClassDef)
        and any(
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for node in each.body
        )
    ]


def long_functions(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]


def test_the_rules_of_a_folder_find_what_breaks_them() -> None:
    lazy = {
        "p.a": "def f():\n    from .b import x",
        "p.b": "if TYPE_CHECKING:\n    from . import a",
    }
    assert circle(lazy, {"p"}) == ["p.a", "p.b"]
    assert circle({"p": "from .a import x", "p.a": "from .b import x", "p.b": ""}, {"p"}) == []
    assert private_names_of_others("from .a import _b, c\nd = c._e\nf = c.g") == ["_b", "_e"]
    assert private_names_of_others("class A:\n    def f(self, o): self._x = o._x") == []
    assert members_for_checkers_alone("class A:\n    if TYPE_CHECKING:\n        x: int") == ["A"]
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    assert long_functions(f"def f():\n{body}") == []
    assert long_functions(f"def f():\n{body}    pass\n") == ["f"]


@pytest.mark.parametrize("folder", ORDERED)
def test_no_modules_of_a_folder_import_each_other_in_a_circle(folder: str) -> None:
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert circle(in_folder(folder), packages) == []


@pytest.mark.parametrize("folder", ORDERED)
@pytest.mark.parametrize(
    "find", [private_names_of_others, members_for_checkers_alone, long_functions]
)
def test_each_module_of_a_folder(folder: str, find: Callable[[str], list[str]]) -> None:
    found = {name: find(source) for name, source in in_folder(folder).items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


# -- broker/amqp: what it stands on; and nobody else reaches into kombu and py-amqp --------------------------

AMQP = "kombu_pools_ext.broker.amqp"
#: The modules of `broker` that `broker/amqp` may import.
ABOVE_AMQP = {
    *("addresses", "arguments", "batch_state", "failed_openings", "left", "own_errors", "sender"),
    *("message_id", "session", "sockets", "soundness", "tls"),
}
#: The packages besides the standard library.
BELOW_AMQP = {"amqp", "kombu", "vine", "kombu_pools_ext"}
#: What instances of kombu's and py-amqp's classes are called in the code.
INSTANCES = {"channel", "established", "transport", "_qos", "_connection", "_transport"}
#: By file, what is assigned there all the same: transports of which there is no subclass of ours, and attributes of
#: py-amqp that are there to be assigned to.
ASSIGNED = {
    "kombu_pools_ext/broker/sockets.py": {"transport.connected", "transport.sock"},
    "kombu_pools_ext/broker/virtual_leftovers.py": {
        "channel._qos.prefetch_count",
        "transport.Channel",
    },
    "kombu_pools_ext/control/remote/rabbitmq_mailbox.py": {
        "established.on_blocked",
        "established.on_unblocked",
    },
}


def assigned_into_instances(source: str) -> set[str]:
    """What a module assigns into instances of kombu and py-amqp, by the names that it has for them."""
    return {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store | ast.Del)
        and ast.unparse(node.value).rpartition(".")[2] in INSTANCES
    }


def test_the_rule_for_instances_finds_what_breaks_it() -> None:
    source = "established.x = 1\na.b._transport.y, z = 1, 2\nself.transport = 3\ndel channel.w"
    assert assigned_into_instances(source) == {
        "established.x",
        "a.b._transport.y",
        "channel.w",
    }


def test_nothing_else_assigns_into_instances_of_kombu_and_py_amqp() -> None:
    found = {}
    for path in MODULES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("kombu_pools_ext/broker/amqp/", "kombu_pools_ext/broker/redis")):
            found[name] = assigned_into_instances(path.read_text(encoding="utf-8"))
    assert {name: wrong for name, wrong in found.items() if wrong} == ASSIGNED


def test_what_the_amqp_folder_imports() -> None:
    broker = in_folder("kombu_pools_ext/broker")
    packages = {AMQP, "kombu_pools_ext.broker"}
    needs = {
        module: {
            name
            for _, name in imports(
                source, module if module in packages else module.rpartition(".")[0]
            )
        }
        for module, source in broker.items()
    }
    above = {f"kombu_pools_ext.broker.{name}" for name in ABOVE_AMQP}
    for module, names in needs.items():
        if within(module, AMQP):
            top = {name.partition(".")[0] for name in names}
            assert top <= BELOW_AMQP | sys.stdlib_module_names, module
            assert {name for name in names if name in broker} - packages <= {
                *above,
                *(name for name in broker if within(name, AMQP)),
            }, module
    # Nothing of that leads back into the folder.
    reached, rest = set(above), list(above)
    while rest:
        more = {name for name in needs[rest.pop()] if name in broker} - packages - reached
        reached |= more
        rest += more
    assert not {name for name in reached if within(name, AMQP)}
