"""Servers that serve ``served.py``, each with two workers."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.brokers import free_port
from tests.integration.rig import Served

__all__ = ["WORKERS", "gunicorn", "under_uvicorn", "under_uwsgi"]

WORKERS = 2
#: Requests that may wait for a worker.
BACKLOG = 60


@contextmanager
def gunicorn(
    environment: dict[str, str],
    folder: Path,
    *options: str,
    within: Sequence[str] = (),
    application: str = "served:application",
) -> Iterator[Served]:
    """:param within: what the command is run by."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        command = [
            *within,
            *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"),
            *("--workers", str(WORKERS), "--no-control-socket", "--graceful-timeout", "8"),
            *(*options, application),
        ]
        port = listener.getsockname()[1]
        served = Served(command, environment, folder, port, (listener.fileno(),))
    with served:
        yield served


@contextmanager
def under_uwsgi(
    program: list[str],
    environment: dict[str, str],
    folder: Path,
    *options: str,
    module: str = "served",
) -> Iterator[Served]:
    port = free_port()
    command = [
        *program,
        *("--http-socket", f"127.0.0.1:{port}", "--listen", str(BACKLOG)),
        *("--master", "--processes", str(WORKERS), "--need-app", "--disable-logging"),
        *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all"),
        *(*options, "--module", f"{module}:application"),
    ]
    with Served(command, environment, folder, port) as served:
        # One that still loads the application is deaf to signals.
        served.wait_for_workers(WORKERS)
        yield served


@contextmanager
def under_uvicorn(
    environment: dict[str, str], folder: Path, *options: str, application: str = "served:asgi"
) -> Iterator[Served]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "--port", str(port), "--backlog", str(BACKLOG)),
        *("--workers", str(WORKERS), "--no-access-log", *options, application),
    ]
    with Served(command, environment, folder, port) as served:
        yield served
