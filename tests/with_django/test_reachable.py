"""Commands reach a process even if a pool was used before ``django_app`` was ready."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.worker import ready

from .conftest import until

#: Seconds for a child to begin, or to end.
PATIENCE = 60.0

PUBLISHES = 'from django_app import publish\npublish({}, routing_key="anywhere")\n'
WAITS = "from django_app import conf\nconf.pools.wait_ready(30)\n"

#: By what uses a pool first: modules of the application ``early``, and the order of the applications.
FIRST_USES = {
    "a publish at the import of the settings' application": (
        {"early/__init__.py": PUBLISHES},
        ["early", "django_app"],
    ),
    "a publish at the import of models": (
        {"early/__init__.py": "", "early/models.py": PUBLISHES},
        ["early", "django_app"],
    ),
    "wait_ready in a ready() before": (
        {"early/__init__.py": "", "early/apps.py": None},
        ["early", "django_app"],
    ),
    "wait_ready in a ready() after": (
        {"early/__init__.py": "", "early/apps.py": None},
        ["django_app", "early"],
    ),
}

APPS = f"""
from django.apps import AppConfig

class EarlyConfig(AppConfig):
    name = "early"

    def ready(self):
        {WAITS.splitlines()[0]}
        {WAITS.splitlines()[1]}
"""

WORKER = """
import sys
import django
django.setup()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=FIRST_USES)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a project."""
    files, applications = FIRST_USES[request.param]
    (tmp_path / "early").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(APPS if text is None else text, encoding="utf-8")
    (tmp_path / "early_settings.py").write_text(
        f"""
SECRET_KEY = "{uuid.uuid4()}"
INSTALLED_APPS = {applications!r}
KOMBU_POOLS = {{"default": "memory://"}}
""",
        encoding="utf-8",
    )
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DJANGO_SETTINGS_MODULE": "early_settings",
    }


def run(project: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "django", "kombu_pools", *arguments],
        env=project,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_pool_that_was_used_first_is_reset(project: dict[str, str]) -> None:
    with ready("-c", WORKER, env=project) as worker:
        until(lambda: f":{worker.pid} " in run(project, "status").stdout, PATIENCE)
        done = run(project, "reset")
        assert done.stdout.endswith("  default  closed 1 idle connection\n"), done.stderr
        # The command has used a pool as well, and is none of those that it is for.
        assert len(done.stdout.splitlines()) == 1
