"""Finds the Pythons that are supported: on PATH, in pyenv, or fetched by `make pythons`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FETCHED", "PYTHONS", "find_python"]

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Where `make pythons` puts what the machine has not, each in a folder of its version.
FETCHED = Path(__file__).resolve().parent.parent / ".venv" / "python"


def candidates(version: str) -> Iterator[list[str]]:
    """Commands that may start this Python, likeliest first."""
    yield [f"python{version}"]
    roots = [os.environ.get("PYENV_ROOT"), "~/.pyenv"]
    if shutil.which("pyenv"):
        roots.insert(
            0, subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        )
    for root in filter(None, roots):
        for path in sorted(
            Path(root).expanduser().glob(f"versions/{version}*/bin/python"), reverse=True
        ):
            yield [str(path)]
    yield [str(FETCHED / version / "usr" / "bin" / f"python{version}")]
    if shutil.which("py"):
        yield ["py", f"-{version}"]
    yield [sys.executable]


def find_python(version: str) -> str | None:
    """The path of an interpreter of this version with venv, or None. A shim that starts another does not count."""
    wanted = tuple(map(int, version.split(".")))
    check = f"import sys, venv; assert sys.version_info[:2] == {wanted}; print(sys.executable)"
    for command in candidates(version):
        try:
            done = subprocess.run(
                [*command, "-c", check], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip()
    return None
