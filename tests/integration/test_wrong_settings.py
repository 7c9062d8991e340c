"""Wrong settings are in a server's log when it starts; a Django site that never publishes is served all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.rig import Served, eventually
from tests.integration.servers import WORKERS, gunicorn, under_uvicorn, under_uwsgi

pytestmark = pytest.mark.slow

TOLD = "KOMBU_POOLS['default']['LIMT']: 'LIMT' is not a setting; did you mean 'LIMIT'?"


def assert_told(served: Served, times: int) -> None:
    eventually(lambda: served.log.count(TOLD) >= times, lambda: served.log)
    assert served.log.count(TOLD) == times, served.log
    assert "Traceback" not in served.log


@pytest.mark.parametrize("options, times", [(["--preload"], 1), ([], WORKERS)])
def test_gunicorn(tmp_path: Path, options: list[str], times: int) -> None:
    with gunicorn({}, tmp_path, *options, application="misconfigured:application") as served:
        served.wait_for_workers(WORKERS)
        assert_told(served, times)


def test_uwsgi(tmp_path: Path, uwsgi: list[str]) -> None:
    with under_uwsgi(uwsgi, {}, tmp_path, module="misconfigured") as served:
        assert_told(served, 1)


def test_uvicorn(tmp_path: Path) -> None:
    with under_uvicorn({}, tmp_path, application="misconfigured:asgi") as served:
        assert_told(served, WORKERS)


def test_a_celery_worker_with_two_children(tmp_path: Path) -> None:
    (tmp_path / "tasks" / "control").mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "celery", "-A", "misconfigured", "worker", "--concurrency", "2"),
        *("--pool", "prefork", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--loglevel", "INFO"),
    ]
    with Served(command, {"TASKS": str(tmp_path / "tasks")}, tmp_path, 0) as served:
        # With its children.
        eventually(lambda: " ready." in served.log, lambda: served.log)
        assert_told(served, 1)
        assert served.process.poll() is None


def test_flask_does_not_start(tmp_path: Path) -> None:
    with gunicorn({}, tmp_path, application="misconfigured_flask:application") as served:
        assert served.ends() != 0
    assert f"PoolsImproperlyConfigured: {TOLD}" in served.log
