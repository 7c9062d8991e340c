"""How many instructions the acquire path takes, and whether that changed: `make instructions`.

Two counts that repeat where seconds don't: Python's own instructions, the same on every machine with this Python and
this kombu; and the processor's, by callgrind where valgrind is installed, the same to some tenths of a percent for one
build of Python. `KEEP=1` keeps them in `tests/benchmarks/instructions/`, for each Python. Nothing fails here: what
changed by more than 5 % is said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .counting import MARKS, SUBJECTS, TURNS
from .pythons import ROOT, in_each

__all__ = ["BYTECODE", "MACHINE", "count", "differences", "read_dumps"]

KEPT = Path(__file__).parent / "instructions"
BYTECODE, MACHINE = "of Python", "of the processor"
#: Of a change that is worth a word.
WORTH = 0.05
#: Seconds under callgrind, which is some fifty times as slow as no callgrind.
LIMIT = 900

Counts = dict[str, float]


def build() -> dict[str, str]:
    """What the processor's counts depend on besides our code."""
    return {
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "kombu": version("kombu"),
    }


def child(how: str, *before: str) -> str:
    """Run `counting` in a process of its own; what it prints."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.benchmarks.counting", how],
        cwd=ROOT,
        # Sets and dicts of texts have the same order in each run.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    return done.stdout


def read_dumps(folder: Path) -> Counts:
    """The medians of callgrind's counts between the marks, for one turn of each subject.

    :raises ValueError: if there are fewer than there should be.
    """
    totals = []
    # The first one ends at the first mark, and holds all that was before.
    for number in range(2, len(SUBJECTS) * MARKS + 2):
        path = folder / f"counts.{number}"
        found = (
            re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE) if path.exists() else None
        )
        if found is None:
            raise ValueError(
                f"callgrind wrote {len(totals)} counts, and not {len(SUBJECTS) * MARKS}"
            )
        totals.append(int(found[1]))
    # Of each subject's, the last one holds what is between it and the next.
    return {
        name: round(statistics.median(totals[place * MARKS : place * MARKS + MARKS - 1]) / TURNS, 1)
        for place, name in enumerate(SUBJECTS)
    }


def count() -> dict[str, Counts]:
    """Both counts; only the first where there is no valgrind, or it does not do."""
    counts: dict[str, Counts] = {BYTECODE: json.loads(child("bytecode"))}
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: the processor's instructions are not counted")
        return counts
    with tempfile.TemporaryDirectory(prefix="callgrind-") as folder:
        try:
            child(
                "marks",
                *("valgrind", "-q", "--tool=callgrind", "--dump-before=getsid"),
                f"--callgrind-out-file={folder}/counts",
            )
            counts[MACHINE] = read_dumps(Path(folder))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"the processor's instructions could not be counted: {error}")
    return counts


def differences(now: Counts, kept: Counts) -> tuple[list[list[str]], list[str]]:
    """A row for each subject, and the names of those that changed by more than `WORTH`."""
    rows, changed = [], []
    for name, value in now.items():
        before = kept.get(name)
        row = [name, f"{value:,.1f}", "" if before is None else f"{before:,.1f}"]
        share = 0.0 if not before else value / before - 1
        if abs(share) > WORTH:
            changed.append(name)
            row.append(f"{share:+.1%}  {'MORE' if share > 0 else 'less'}")
        else:
            row.append(f"{share:+.1%}" if before else "new")
        rows.append(row)
    return rows, changed


def say(counts: dict[str, Counts], kept: dict[str, Any], about: dict[str, str]) -> None:
    """What is counted, beside what was kept, as far as the two can be compared."""
    for kind, now in counts.items():
        before = kept.get("counts", {}).get(kind, {})
        was = kept.get("build", {})
        # Python's own are the same wherever its minor version and kombu are.
        telling = ("kombu",) if kind == BYTECODE else tuple(about)
        other = [
            f"{part} {was[part]}" for part in telling if part in was and was[part] != about[part]
        ]
        print(f"\ninstructions {kind}, a turn, on Python {about['python']}:")
        if other:
            print(f"(what is kept was counted with {', '.join(other)})")
        rows, changed = differences(now, before)
        for name, *cells in [["", "now", "kept", "change"], *rows]:
            print(f"{name:34}" + "".join(f"{cell:>12}" for cell in cells[:2]) + f"  {cells[2]}")
        for name in changed:
            print(f"CHANGED by more than {WORTH:.0%}: {name}")
        if changed:
            print("If that is meant: make instructions KEEP=1")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make instructions", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep these counts")
    parser.add_argument(
        "--pythons", default="", help="3.12 3.13, or all: in an environment of each"
    )
    asked = parser.parse_args()
    if asked.pythons:
        try:
            return in_each(asked.pythons, __spec__.name, ["--keep"] * asked.keep)
        except ValueError as error:
            parser.error(str(error))
    about = build()
    path = KEPT / f"{'.'.join(about['python'].split('.')[:2])}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counts = count()
    say(counts, kept, about)
    if asked.keep:
        # Where there is no valgrind, what was kept of it stays.
        all_counts = {**kept.get("counts", {}), **counts} if kept.get("build") == about else counts
        path.parent.mkdir(exist_ok=True)
        text = json.dumps({"build": about, "counts": all_counts}, indent=1)
        path.write_text(f"{text}\n", encoding="utf-8")
        print(f"\n{path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
