"""Runs the tests of kombu and Celery that concern pools, on ours: `make test-kombus`.

Each suite of `expected.toml` runs on the newest and on the lowest kombu and Celery, all of them side by side, with the
installed wheel. What a suite says is shown when it has ended.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.side_by_side import Part, side_by_side

from .foreign_suites import EXPECTED, Suite
from .sources import STACKS, folder_of, version_in

ROOT = Path(__file__).resolve().parent.parent.parent


def parts() -> list[Part]:
    """One run for each suite and stack; those that take longest begin."""
    found = []
    for name, suite in Suite.read(EXPECTED).items():
        for environment, stack in STACKS.items():
            version = version_in(suite.project, stack)
            python = ROOT / ".venv" / environment / "bin" / "python"
            plugins = ["-p", "no:cacheprovider", "-p", "swapped_pools"]
            if suite.project == "celery":
                plugins += ["-p", "celery.contrib.pytest"]  # its marker
            found.append(
                Part(
                    f"{name}, {version}",
                    (
                        *(str(python), "-P", "-m", "pytest", "-q", "--tb=short", "--timeout=60"),
                        *plugins,
                        *("--suite", name, "--suite-version", version),
                        *suite.files,
                    ),
                    folder=folder_of(suite.project, version),
                    environment={"PYTHONPATH": str(Path(__file__).resolve().parent)},
                )
            )
    return found


def main() -> int:
    began = time.monotonic()
    passed = side_by_side(parts())
    result = "passed" if passed else "FAILED"
    print(f"the tests of kombu and Celery: {result} in {time.monotonic() - began:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
