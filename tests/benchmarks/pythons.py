"""Environments of other Pythons, under .venv/, for `make bench PYTHONS=…` and `make instructions PYTHONS=…`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.installing import install
from tests.interpreters import PYTHONS, find_python

__all__ = ["ROOT", "environment", "in_each", "versions"]

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / ".requirements" / "bench.txt"


def versions(asked: str) -> list[str]:
    """The versions in *asked*: with commas or blanks between them, or ``all``.

    :raises ValueError: for one that is not supported.
    """
    words = list(PYTHONS) if asked.strip() == "all" else asked.replace(",", " ").split()
    for word in words:
        if word not in PYTHONS:
            raise ValueError(f"PYTHONS={asked!r}: {word!r} is none of {', '.join(PYTHONS)}")
    return words


def environment(version: str) -> Path | None:
    """The interpreter of an environment of that Python, made anew when the lock file changed; ``None`` without one."""
    found = find_python(version)
    if found is None:
        return None
    folder = ROOT / ".venv" / f"bench-{version}"
    python, stamp = folder / "bin" / "python", folder / ".requirements"
    mark = hashlib.sha256(found.encode() + LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != mark:
        print(f"setting up {folder.relative_to(ROOT)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        # A Python of Debian's has no pip of its own.
        subprocess.run([found, "-m", "venv", "--without-pip", str(folder)], check=True)
        install(python, "--require-hashes", "-r", str(LOCK))
        stamp.write_text(mark)
    return python


def in_each(asked: str, module: str, arguments: list[str]) -> int:
    """Run a module of ours in each of these Pythons; how many of them failed or were not found."""
    failed = 0
    for version in versions(asked):
        python = environment(version)
        if python is None:
            print(f"Python {version}: not found, so nothing runs on it", flush=True)
            failed += 1
            continue
        done = subprocess.run([str(python), "-m", module, *arguments], cwd=ROOT, check=False)
        failed += done.returncode != 0
    return failed
