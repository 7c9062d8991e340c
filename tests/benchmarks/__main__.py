"""Runs the cases, and writes down what came of them: `make bench`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kombu_pools_ext
from tests.brokers import Unavailable

from .case import Case, chosen
from .places import PLACES, Places
from .pythons import ROOT, in_each
from .report import Played, Run, goal_table, lines_of, write

KEPT = ROOT / "docs" / "explanation" / "performance"
SHOWN = ROOT / ".venv" / "bench" / "results"
#: Whose versions are told.
TOLD = (
    "kombu", "amqp", "redis", "pika", "amqpstorm", "aio-pika", "psycopg-pool", "sqlalchemy",
    "celery", "django", "gunicorn",
)  # fmt: skip
#: The cases whose rounds are one thread's work, so that a profiler can tell.
PROFILED = ("acquire", "engine", "look-up", "publish", "confirmed", "batch")
#: Seconds for one case, brokers and threads included.
LIMIT = 900
ROUNDS, SECONDS, WATCH = 21, 0.05, 3.0
#: A look at whether it works, and no measurement.
SHORT = (5, 0.02, 1.0)


def versions(told: Iterable[str] = TOLD) -> dict[str, str]:
    """Ours, and of each of these packages that is installed."""
    found = {"kombu-pools-ext": kombu_pools_ext.__version__}
    for name in told:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def machine() -> str:
    """Processor, cores and system, as far as the system tells."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    load = ""
    if hasattr(os, "getloadavg"):
        load = f", load {os.getloadavg()[0]:.1f} when it began"
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}{load}"


def ask_child(name: str, order: dict[str, Any]) -> Any:
    """What `child` answers.

    :raises subprocess.SubprocessError: if it fails, or takes longer than `LIMIT`.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.child", name],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    return json.loads(done.stdout)


def run_case(
    case: Case, place: dict[str, Any], rounds: int, seconds: float, watch: float
) -> Played:
    """Play *case* in a process of its own, or in one for each round."""
    # A round that wants a process takes half a minute; one is enough for a look.
    rounds = 1 if case.fresh and rounds == SHORT[0] else min(rounds, case.rounds)
    played = Played(case.title, case.place, dict(case.figures))
    for _ in range(rounds if case.fresh else 1):
        order = {
            **place,
            "seconds": seconds,
            "watch": watch,
            "rounds": 1 if case.fresh else rounds,
        }
        try:
            answer = ask_child(case.name, order)
        except subprocess.SubprocessError as error:
            played.left_out["everybody"] = f"failed: {error}"
            continue
        played.left_out |= answer["left_out"]
        for contender, figures in answer["values"].items():
            for figure, values in figures.items():
                known = played.values.setdefault(contender, {})
                known.setdefault(figure, []).extend(values)
    return played


def profile(run: Run, places: Places, seconds: float) -> None:
    """Have it told what the time goes into, where a goal is not met."""
    for verdicts in run.unmet().values():
        for name in dict.fromkeys(one.check.case for one in verdicts):
            played = run.cases[name]
            if played.profile or not name.startswith(PROFILED):
                continue
            order = {**places[played.place], "seconds": seconds, "rounds": 1, "profile": True}
            try:
                played.profile = ask_child(name, order)["lines"]
            except subprocess.SubprocessError as error:
                print(f"{name}: could not be profiled: {error}")
                continue
            print(f"\n{name}: where ours spends its time")
            show([[at, f"{share:.1f} %", f"{calls:,}"] for at, share, calls in played.profile])


def show(rows: list[list[str]]) -> None:
    """In columns."""
    widths = (
        [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    )
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help="words in the names of the cases to run")
    parser.add_argument("--commit", action="store_true", help="keep the run for the page")
    parser.add_argument("--short", action="store_true", help="few and short rounds")
    parser.add_argument(
        "--pythons", default="", help="3.12 3.13, or all: in an environment of each"
    )
    parser.add_argument(
        "--render", action="store_true", help="write the kept run's text and charts anew"
    )
    asked = parser.parse_args()
    if asked.render:
        print(write(KEPT).relative_to(ROOT))
        return 0
    if asked.commit and asked.only:
        parser.error("the page shows all cases: COMMIT=1 goes without ONLY")
    try:
        cases = chosen(asked.only)
        if asked.pythons:
            arguments = ["--commit"] * asked.commit + ["--short"] * asked.short
            return in_each(asked.pythons, "tests.benchmarks", [*arguments, "--only", asked.only])
    except ValueError as error:
        parser.error(str(error))
    rounds, seconds, watch = SHORT if asked.short else (ROUNDS, SECONDS, WATCH)
    remark = (
        f"A short run, of {rounds} rounds of {seconds * 1e3:g} ms: it shows that everything works, and not "
        "what it costs."
        if asked.short
        else ""
    )
    run = Run(platform.python_version(), time.strftime("%Y-%m-%d"), machine(), versions(), remark)
    with Places() as places:
        for case in cases:
            try:
                place = places[case.place]
            except Unavailable as why:
                left_out = {"everybody": f"{PLACES[case.place]}: {' '.join(str(why).split())}"}
                run.cases[case.name] = Played(
                    case.title, case.place, dict(case.figures), left_out=left_out
                )
            else:
                run.cases[case.name] = run_case(case, place, rounds, seconds, watch)
            played = run.cases[case.name]
            print(f"\n{case.name}: {case.title}; {PLACES[case.place]}")
            show([row[1:] for row in lines_of(case.name, played)])
            for who, why in played.left_out.items():
                print(f"{who}: left out: {why}")
            sys.stdout.flush()
        run.versions |= places.versions
        profile(run, places, seconds)
    if not asked.only:
        print(f"\nThe goals, on Python {run.python}:")
        show(goal_table(run.verdicts()))
        print(run.summary())
    folder = KEPT if asked.commit else SHOWN
    folder.mkdir(parents=True, exist_ok=True)
    run.dump(folder / f"results-{run.minor}.json")
    print(f"\n{write(folder).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
