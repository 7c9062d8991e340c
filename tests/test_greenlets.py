"""The suite is the same on threads, gevent and eventlet: `make test-greenlets` runs all of it, this a part."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import side_by_side

TESTS = Path(__file__).parent
#: Those that wait, hand over, and find that the library has replaced the threads: else they skip.
SAME = ("test_waiting.py", "test_greenlets.py")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_the_same_tests_pass_on_greenlets(library: str) -> None:
    # Not imported: eventlet warns of every fork from then on.
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = subprocess.run(
        [
            *(
                sys.executable,
                TESTS / "under_greenlets.py",
                library,
                "-q",
                "-p",
                "no:cacheprovider",
            ),
            *(TESTS / "engine" / name for name in SAME),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"on {library}:" in done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30
    assert "skipped" not in done.stdout


def test_the_whole_suite_is_run_by_make_and_by_the_checks() -> None:
    makefile = (TESTS.parent / "Makefile").read_text()
    assert "$(wildcard tests/engine tests/broker tests/publisher)" in makefile
    assert "side_by_side.py greenlets $(GREENLET_TESTS)" in makefile
    assert side_by_side.LIBRARIES == ("gevent", "eventlet")
    checks = TESTS.parent / ".ci" / "run"
    if checks.exists():  # the source distribution is without
        assert "make test-greenlets" in checks.read_text()
