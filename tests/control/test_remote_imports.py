"""Modules for commands across machines are imported only if the settings ask for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.control.rig import PATIENCE, Base

#: The end of each program: prints what it has imported for other machines.
PRINTS = """
print(json.dumps([one for one in sys.modules if one.startswith("kombu_pools_ext.control.remote")]))
"""
#: Before it: uses a pool, and asks all processes.
USES_AND_ASKS = """
from kombu_pools_ext.control import serve
serve(control.project)
with connections["default"].acquire():
    pass
answers = control.ask("status", timeout=30)
assert answers.ok, answers
control.who()
"""
IN_DJANGO = """
import json, sys
import django
from django.conf import settings
options = json.loads(sys.argv[1])
settings.configure(
    INSTALLED_APPS=["django_app"],
    SECRET_KEY="a key of more than sixteen characters",
    KOMBU_POOLS={"default": {"URL": options.pop("URL")}},
    KOMBU_POOLS_CONTROL=options,
)
django.setup()
from django_app import conf, connections
control = conf.control()
"""
IN_FLASK = """
import json, sys
from flask import Flask
from flask_ext import KombuPools
options = json.loads(sys.argv[1])
app = Flask("app")
app.config.update(
    SECRET_KEY="a key of more than sixteen characters",
    KOMBU_POOLS={"default": {"URL": options.pop("URL")}},
    KOMBU_POOLS_CONTROL=options,
)
pools = KombuPools(app)
control = app.extensions["kombu_pools"].control
app.app_context().push()
connections = pools.connections
"""
IN_PLAIN_PYTHON = """
import json, sys
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach
options = json.loads(sys.argv[1])
pools = Pools(default=options.pop("URL"))
connections = pools.connections
control = attach(pools, options, secret="a key of more than sixteen characters")
"""
PROGRAMS = pytest.mark.parametrize(
    "program", [IN_DJANGO, IN_FLASK, IN_PLAIN_PYTHON], ids=["django", "flask", "plain"]
)


def imported(program: str, directory: Path, url: str, **options: str) -> list[str]:
    """Return what *program* imports of `kombu_pools_ext.control.remote` in a fresh interpreter."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program + PRINTS,
            json.dumps({"URL": url, "DIRECTORY": str(directory), **options}),
        ],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


@PROGRAMS
def test_without_broadcast_remote_is_not_imported(base: Base, program: str) -> None:
    assert imported(program + USES_AND_ASKS, base.path, "memory://") == []


@PROGRAMS
def test_with_broadcast_remote_is_imported_before_the_first_use_of_a_pool(
    base: Base, program: str, amqp_url: str
) -> None:
    """At the first use there may be no file descriptor to read a module with."""
    found = imported(program, base.path, amqp_url, BROADCAST="default")
    assert {f"kombu_pools_ext.control.remote.{name}" for name in ("client", "listener")} <= {*found}
