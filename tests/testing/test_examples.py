"""The example projects have tests of what they publish, and these need no broker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.test_plugin import PLUGIN

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
#: Else pytest takes the configuration of this repository.
WITHOUT_OURS = ("-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider")
#: Seconds for the tests of an example, on a busy machine.
DEADLINE = 100


@pytest.mark.parametrize(
    "project, command, said",
    [
        ("django_project", ("manage.py", "test"), "Ran 5 tests"),
        ("flask_app", ("-m", "pytest", "-q", *WITHOUT_OURS, "-p", PLUGIN), "3 passed"),
    ],
)
def test_its_tests_pass(project: str, command: tuple[str, ...], said: str) -> None:
    environment = {
        name: one
        for name, one in os.environ.items()
        if name not in ("BROKER_URL", "ORDERS_QUEUE", "DJANGO_SETTINGS_MODULE")
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLES / project,
        # Where the package is installed, pytest finds the plugin a second time.
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
