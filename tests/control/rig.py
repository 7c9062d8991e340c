"""Processes that listen in a short directory of one test, and what is in the directory."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import Control, ControlSettings, Project, attach, detach, serve

__all__ = [
    "CHILD",
    "NOBODY",
    "PATIENCE",
    "SECRET",
    "WAIT",
    "Base",
    "Child",
    "memory",
    "needs_root",
    "until",
]

#: The number of a user who has nothing to do with this.
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")

#: Seconds that a test waits for what must come, on a busy machine.
PATIENCE = 60.0
SECRET = "not-to-be-guessed-nor-shown"
_numbers = itertools.count(1)


def memory() -> str:
    """A broker in memory whose pools only one test uses."""
    return f"memory://steered{next(_numbers)}"


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return what *what* returns, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


CHILD = """
import sys, threading
from kombu_pools_ext import Pools
from kombu_pools_ext.control import attach, serve

directory, secret, broker = sys.argv[1:4]
pools = Pools(default=broker, other={"url": broker, "limit": 3})
control = attach(pools, {"DIRECTORY": directory}, secret=secret or None, name="test")
serve(control.project)
print("ready", flush=True)
"""
#: The end of a child that does nothing more.
WAIT = "sys.stdin.read()\n"


class Child:
    """A process that listens until it is killed or its input ends.

    :param more: what it runs besides, in place of waiting.
    """

    def __init__(self, base: Path, secret: str = SECRET, more: str = WAIT, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD + more, str(base), secret, memory()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, and wait for its end."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def leave(self) -> int:
        """Let it end by itself, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        assert self.line() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Base:
    """A directory with a path short enough for sockets, and pools of this process that listen in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pools: list[Pools] = []

    def control(self, secret: str | None = SECRET) -> Control:
        """Return a Control for the processes of a project. This process is none of them."""
        return Control(Project(ControlSettings(directory=str(self.path)), secret, "test"))

    def attach(
        self, secret: str | None = SECRET, *, directory: Path | None = None, **aliases: Any
    ) -> tuple[Pools, Control]:
        """Return pools of this process that begin to listen at their first use."""
        pools = Pools(**(aliases or {"default": memory()}))
        self.pools.append(pools)
        settings = {"DIRECTORY": str(directory or self.path)}
        return pools, attach(pools, settings, secret=secret, name="test")

    def serve(self, secret: str | None = SECRET, **aliases: Any) -> tuple[Pools, Control]:
        """Return pools of this process that listen."""
        pools, control = self.attach(secret, **aliases)
        assert serve(control.project)
        return pools, control

    def files(self) -> list[str]:
        """Return the files in the directories of projects."""
        return sorted(path.name for path in self.path.glob("kombu-pools-*/*/*"))

    def sockets(self) -> list[Path]:
        """Return the visible sockets."""
        found = self.path.glob("kombu-pools-*/*/[0-9]*")
        return sorted(path for path in found if stat.S_ISSOCK(path.lstat().st_mode))

    @property
    def project(self) -> Path:
        """Return the only directory of a project."""
        [path] = self.path.glob("kombu-pools-*/*")
        return path


@pytest.fixture
def base() -> Iterator[Base]:
    # Not pytest's, whose paths are longer than those of sockets may be.
    path = Path(tempfile.mkdtemp(prefix="kp-", dir="/tmp"))
    one = Base(path)
    try:
        yield one
    finally:
        for pools in one.pools:
            detach(pools)
        # Who still asks the sockets of a test removes those of the dead at the same time.
        while path.exists():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
