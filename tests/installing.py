"""Installs packages into an environment: `python -m tests.installing .venv/test/bin/python --require-hashes -r FILE`.

uv, which `make lock` needs anyway, installs in three seconds what takes pip twenty. It does not read pip's
configuration, so where it cannot install something, pip does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, Any

__all__ = ["install"]

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".venv" / "lock" / "bin" / "uv"
#: Who has pip: the environments themselves have none.
WITH_PIP = ROOT / ".venv" / "build" / "bin" / "python"


def install(python: str | Path, *arguments: str, out: IO[Any] | None = None) -> None:
    """Install with pip's *arguments* into the environment of *python*, which needs no pip of its own.

    :param out: where the installers write what they have to say.
    :raises subprocess.CalledProcessError: if neither can.
    """
    into = ("--python", str(python))
    pip = ("-m", "pip", "--disable-pip-version-check", *into, "install", "-qq")
    try:
        _run([str(UV), "pip", "install", "--quiet", "--compile-bytecode", *into, *arguments], out)
    except (OSError, subprocess.CalledProcessError):
        _run([str(WITH_PIP), *pip, *arguments], out)


def _run(command: list[str], out: IO[Any] | None) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


if __name__ == "__main__":
    try:
        install(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
