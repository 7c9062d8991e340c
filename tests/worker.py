"""A program of a test's that stands for a worker: it says ``ready``, and ends when its standard input does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["ready", "said"]

#: Seconds for its end.
PATIENCE = 30.0


@contextlib.contextmanager
def ready(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Within, this Python runs with *arguments*, and has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == "ready\n"
            yield worker
            worker.stdin.close()
            worker.wait(PATIENCE)
        finally:
            worker.kill()


def said(worker: subprocess.Popen[str]) -> str:
    """The next line of *worker*, without its end; waits for it."""
    assert worker.stdout is not None
    return worker.stdout.readline().rstrip("\n")
