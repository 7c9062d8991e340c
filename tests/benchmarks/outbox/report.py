"""A run, written down: JSON, and of it a Markdown text for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.benchmarks.case import OURS
from tests.benchmarks.goals import Goal
from tests.benchmarks.measure import median, number
from tests.benchmarks.report import Played, Run, goal_table, lines_of, table

from .goals import GOALS

__all__ = ["RESULTS", "OutboxRun", "read_run", "write"]

RESULTS = "results.json"
NAMES = {
    "drain": "Relays",
    "latency": "From the commit to the broker",
    "insert": "What a message adds to a transaction",
    "claim": "Claims where many rows wait",
}
#: Of a relay's row, who works for it.
SHARES = {
    "main": "the relay's main thread: statements, rows, answers",
    "publisher": "the relay's other threads: the connection to the broker",
    "postgresql": "PostgreSQL",
    "rabbitmq": "RabbitMQ",
}


@dataclass
class OutboxRun(Run):
    """A run of `make bench-outbox`."""

    goals: ClassVar[Sequence[Goal]] = GOALS


def read_run(folder: Path) -> OutboxRun | None:
    """The run in *folder*, if there is one."""
    path = folder / RESULTS
    return OutboxRun.load(path) if path.exists() else None


def write(folder: Path) -> Path:
    """Write ``run.md`` of the run in *folder*; where there is none, it says that nothing is measured."""
    run = read_run(folder)
    if run is None:
        text = ["No run is kept yet.", ""]
        run = OutboxRun("", "", "", {})
    else:
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        text = [
            f"Measured on {run.date} with Python {run.python} on {run.machine}, with {versions}.",
            "",
        ]
    if run.remark:
        text += [f"**{run.remark}**", ""]
    header = ["", "work", "against", "goal", "found", ""]
    text += [
        "### The goals",
        "",
        f"{run.summary()}. A ratio is the median of its rounds, with their quartiles.",
        "",
        table(header, goal_table(run.verdicts(), run.goals)),
        "",
    ]
    for name, played in run.cases.items():
        text += [f"### {NAMES[name]}", "", *_case(name, played)]
    path = folder / "run.md"
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return path


def _case(name: str, played: Played) -> Iterator[str]:
    yield f"`{name}`: {played.title}. *{played.place}.*"
    yield ""
    rows = [row[1:] for row in lines_of(name, played)]
    if rows:
        yield table(
            ["contender", "median", "× ours" if OURS in played.values else "× the first"], rows
        )
        yield ""
    for who, why in played.left_out.items():
        yield f"Left out: {who}: {' '.join(why.split())}.\n"
    shares = shares_of(played)
    if shares:
        yield "Where the time of one row of ours goes, in processor time:"
        yield ""
        yield table(["where", "µs a row", "of all"], shares)
        yield ""
    if played.profile:
        yield "The relay's main thread, by a profiler that makes much of short functions:"
        yield ""
        lines = [[f"`{at}`", f"{share:.1f} %", f"{calls:,}"] for at, share, calls in played.profile]
        yield table(["function", "in itself", "calls"], lines)
        yield ""


def shares_of(played: Played) -> list[list[str]]:
    """Who works for a row of ours: where, microseconds, and percent of all; nothing where it was not measured."""
    figures = {name: median(values) for name, values in played.values.get(OURS, {}).items()}
    if not {"relay", "main", "postgresql", "rabbitmq"} <= figures.keys():
        return []
    figures["publisher"] = figures["relay"] - figures["main"]
    total = sum(figures[name] for name in SHARES) or 1e-9
    return [
        [words, number(figures[name]), f"{100 * figures[name] / total:.0f} %"]
        for name, words in SHARES.items()
    ]
