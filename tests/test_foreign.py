"""How the tests of kombu and Celery run on our pools: what is listed as an expected failure, and what fails the run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = Path(__file__).parent / "foreign"
TESTS = """
import kombu
import kombu.pools
from kombu import Connection

def test_of_the_swap():
    from kombu import pools
    assert pools is kombu.pools and pools.__name__ == "kombu_pools_ext.pools"
    assert pools.connections[Connection("memory://")].__class__.__module__.startswith("kombu_pools_ext")
    assert isinstance(Connection("memory://").Pool(1), pools.ConnectionPool)
    assert kombu.producers is pools.producers and kombu.connections is pools.connections

def test_of_a_lease():
    connection = Connection("memory://")
    assert isinstance(connection, Connection)
    connection.release()
    assert "released" in repr(connection)

def test_of_a_private_name():
    kombu.pools._groups

def test_that_passes():
    pass
"""
LEASE = "test_it.py::test_of_a_lease"
PRIVATE = "test_it.py::test_of_a_private_name"
PASSES = "test_it.py::test_that_passes"


def entry(test: str, says: str, more: str = "") -> str:
    return (
        f'[[it.expected]]\nkind = "private name"\nreason = "the reason"\nsays = "{says}"\n'
        f'tests = ["{test}"]\n{more}\n'
    )


#: What is true of the tests above where connections are not leased.
AS_IT_IS = entry(LEASE, "assert 'released' in") + entry(PRIVATE, "no attribute '_groups'")


def run(folder: Path, entries: str, settings: str = "") -> tuple[int, str]:
    """The exit code of pytest with these expected failures, and what it says."""
    (folder / "test_it.py").write_text(TESTS)
    listed = folder / "expected.toml"
    listed.write_text(f'[it]\nproject = "kombu"\nfiles = ["test_it.py"]\n{settings}\n{entries}')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider"),
            *("-p", "swapped_pools", "--expected", str(listed)),
            *("--suite", "it", "--suite-version", "5.7.0", "test_it.py"),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(FOREIGN), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_our_pools_stand_where_kombus_stood_and_what_is_listed_may_fail(tmp_path: Path) -> None:
    code, said = run(tmp_path, AS_IT_IS)
    assert code == 0, said
    assert "2 passed, 2 xfailed" in said
    assert "private name: the reason" in said


def test_connections_of_a_suite_on_leases_are_lent_by_a_pool(tmp_path: Path) -> None:
    code, said = run(tmp_path, entry(PRIVATE, "no attribute '_groups'"), "leased = true")
    assert code == 0, said
    assert "3 passed, 1 xfailed" in said


@pytest.mark.parametrize(
    "entries, complaint",
    [
        (entry(LEASE, "assert 'released' in"), rf"FAILED {PRIVATE}"),
        (AS_IT_IS + entry(PASSES, "anything"), r"listed as an expected failure, and passed"),
        (
            entry(LEASE, "assert 'released' in") + entry(PRIVATE, "no attribute '_resource'"),
            r"listed to fail with another error: no attribute '_resource'",
        ),
        (AS_IT_IS + entry("test_it.py::test_gone", "x"), r"not there: test_it\.py::test_gone"),
        (
            entry(LEASE, "assert 'released' in")
            + entry(PRIVATE, "no attribute '_groups'", 'before = "5.7"'),
            rf"FAILED {PRIVATE}",
        ),
        (
            entry(PRIVATE, "no attribute '_groups'").replace("private name", "too hard"),
            r"no kinds of failure: too hard",
        ),
    ],
    ids=["not listed", "passes", "another error", "not there", "of another version", "no kind"],
)
def test_a_failure_that_is_not_as_listed_fails_the_run(
    tmp_path: Path, entries: str, complaint: str
) -> None:
    code, said = run(tmp_path, entries)
    assert code != 0, said
    assert re.search(complaint, said), said
