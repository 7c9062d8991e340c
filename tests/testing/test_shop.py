"""The tests of a Django project run without a broker: several apps, Celery, messages on commit, async views."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = Path(__file__).parent / "shop"
ROOT = SHOP.parents[2]
#: Seconds for all of its tests, on a busy machine.
DEADLINE = 100
#: How many it has.
TESTS = 19


@pytest.mark.parametrize("options", [(), ("--shuffle", "7"), ("--parallel", "2")], ids=" ".join)
def test_the_tests_of_a_project_need_no_broker(options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-Werror::ResourceWarning", "manage.py", "test", *options],
        cwd=SHOP,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    assert found is not None, done.stderr
    assert int(found[1]) == TESTS
