"""A run, written down: JSON for each Python, and of all of them one Markdown text with charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from .case import OURS
from .goals import GOALS, Goal, Verdict
from .lease_cases import FLOOR
from .measure import median, number, ratio
from .places import PLACES
from .svg import Bar, Group, bars

__all__ = ["Played", "Run", "chart", "goal_table", "lines_of", "read_runs", "write"]

#: Letters of a unit that has no room beside a bar.
LONG = 8
#: What the first word of a case's name stands for.
CHAPTERS = {
    "acquire": "Taking and giving back",
    "engine": "The bare engine",
    "look-up": "Finding a pool",
    "publish": "Publishing, one acquire a message",
    "confirmed": "Publishing with confirms, one acquire a message",
    "batch": "Batches",
    "threads": "Threads",
    "shared": "Many who publish at once",
    "scale": "Many pools, many connections",
    "restart": "After a restart",
    "import": "Import",
}


@dataclass
class Played:
    """A case that was played."""

    title: str
    place: str
    #: The unit of each figure.
    figures: dict[str, str]
    #: By contender and figure.
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    #: By contender: why.
    left_out: dict[str, str] = field(default_factory=dict)
    #: Where a goal is not met: function, percent of our time, calls.
    profile: list[tuple[str, float, int]] = field(default_factory=list)


@dataclass
class Run:
    """Everything of one Python."""

    #: What is to be reached.
    goals: ClassVar[Sequence[Goal]] = GOALS

    python: str
    date: str
    machine: str
    versions: dict[str, str]
    #: What makes it less than a run to go by; empty for one that is.
    remark: str = ""
    cases: dict[str, Played] = field(default_factory=dict)

    @property
    def minor(self) -> str:
        """3.11, say."""
        return ".".join(self.python.split(".")[:2])

    @property
    def results(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        """As goals look at them."""
        return {name: played.values for name, played in self.cases.items()}

    def verdicts(self) -> list[list[Verdict]]:
        """One list for each goal."""
        return [list(goal.look(self.results)) for goal in self.goals]

    def unmet(self) -> dict[int, list[Verdict]]:
        """By the goal's number in the table, what is not met of it."""
        every = enumerate(self.verdicts(), 1)
        missed = {count: [one for one in goal if one.met is False] for count, goal in every}
        return {count: goal for count, goal in missed.items() if goal}

    def summary(self) -> str:
        """How many goals are met."""
        verdicts = self.verdicts()
        met = sum(all(one.met for one in goal) for goal in verdicts)
        unmeasured = sum(any(one.met is None for one in goal) for goal in verdicts)
        more = f", {unmeasured} not wholly measured" if unmeasured else ""
        return f"{met} of {len(self.goals)} goals met{more}"

    # -- JSON ------------------------------------------------------------------------------------

    def dump(self, path: Path) -> None:
        """One line for each case: so that two runs can be compared."""
        about = {name: value for name, value in asdict(self).items() if name != "cases"}
        cases = [
            f"  {json.dumps(name)}: {json.dumps(_rounded(asdict(played)), ensure_ascii=False)}"
            for name, played in self.cases.items()
        ]
        text = json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}")
        body = ",\n".join(cases)
        path.write_text(f'{text},\n "cases": {{\n{body}\n }}\n}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`dump` wrote."""
        read = json.loads(path.read_text(encoding="utf-8"))
        read["cases"] = {name: Played(**played) for name, played in read["cases"].items()}
        return cls(**read)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def read_runs(folder: Path) -> list[Run]:
    """The runs in *folder*, the oldest Python's first."""
    runs = [Run.load(path) for path in folder.glob("results-*.json")]
    return sorted(runs, key=lambda run: [int(part) for part in run.minor.split(".")])


# -- rows ------------------------------------------------------------------------------------------


def lines_of(name: str, played: Played) -> Iterator[list[str]]:
    """For each contender: case, contender, its figures, and how its first one compares with ours.

    Where there is no contender of that name, it is compared with the first one.
    """
    figure, unit = next(iter(played.figures.items()))
    base = OURS if OURS in played.values else next(iter(played.values), "")
    for contender, figures in played.values.items():
        cells = [f"{number(median(figures[figure]))} {unit}"] if figure in figures else ["–"]
        cells += [
            f"{number(median(figures[one]))} {played.figures[one]}"
            for one in figures
            if one != figure and one in played.figures
        ]
        compared = ""
        if contender != base and base in played.values and figure in figures:
            compared = str(ratio(figures[figure], played.values[base][figure]))
        yield [name, contender, "; ".join(cells), compared]


def goal_table(verdicts: Iterable[list[Verdict]], goals: Sequence[Goal] = GOALS) -> list[list[str]]:
    """A row for each check; what belongs to its goal stands in the first of them."""
    rows = []
    for count, (goal, checks) in enumerate(zip(goals, verdicts, strict=True), 1):
        for place, one in enumerate(checks):
            about = [str(count), goal.work, goal.against] if place == 0 else ["", "", ""]
            rows.append([*about, one.check.wanted, one.found, one.word])
    return rows


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


# -- the page --------------------------------------------------------------------------------------


def chart(played: dict[str, Played]) -> list[Group]:
    """A block of bars for each case, of its first figure."""
    groups = []
    for one in played.values():
        figure, unit = next(iter(one.figures.items()))
        aside = f": {unit}" if len(unit) > LONG else ""
        found = [
            Bar(
                name,
                median(figures[figure]),
                f"{number(median(figures[figure]))}{'' if aside else f' {unit}'}",
                "ours" if name.startswith(OURS) else "floor" if name == FLOOR else "other",
            )
            for name, figures in one.values.items()
            if figure in figures
        ]
        if len(found) > 1:
            groups.append(Group(f"{one.title} – {PLACES[one.place]}{aside}", found))
    return groups


def by_chapter(run: Run) -> Iterator[tuple[str, dict[str, Played]]]:
    """The cases of each chapter that has any."""
    for word in CHAPTERS:
        found = {name: one for name, one in run.cases.items() if name.split(".")[0] == word}
        if found:
            yield word, found


def write(folder: Path) -> Path:
    """Write ``run.md`` and its charts, of the runs in *folder*: one in full, and the goals of the others.

    :raises ValueError: if there is none.
    """
    runs = read_runs(folder)
    if not runs:
        raise ValueError(f"no run in {folder}")
    run = runs[0]
    for old in folder.glob("*.svg"):
        old.unlink()
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
        table(header, goal_table(run.verdicts())),
        "",
    ]
    if len(runs) > 1:
        text += ["### On each Python", "", _each_python(runs), ""]
    for word, played in by_chapter(run):
        text += [f"### {CHAPTERS[word]}", ""]
        groups = chart(played)
        if groups:
            (folder / f"{word}.svg").write_text(bars(CHAPTERS[word], groups), encoding="utf-8")
            text += [f"![{CHAPTERS[word]}]({word}.svg)", ""]
        for name, one in played.items():
            rows = [row[1:] for row in lines_of(name, one)]
            text += [f"`{name}`: {one.title}. *{PLACES[one.place]}.*", ""]
            if rows:
                text += [table(["contender", "median", "× ours"], rows), ""]
            text += [
                f"Left out: {who}: {' '.join(why.split())}.\n" for who, why in one.left_out.items()
            ]
            if one.profile:
                about = (
                    "Where ours spends its time, by a profiler that makes much of short functions:"
                )
                lines = [
                    [f"`{at}`", f"{share:.1f} %", f"{calls:,}"] for at, share, calls in one.profile
                ]
                text += [about, "", table(["function", "in itself", "calls"], lines), ""]
    path = folder / "run.md"
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return path


def _each_python(runs: list[Run]) -> str:
    every = [goal_table(run.verdicts()) for run in runs]
    rows = [
        [*lines[0][:4], *(f"{line[4]}, {line[5]}" for line in lines)]
        for lines in zip(*every, strict=True)
    ]
    header = ["", "work", "against", "goal"]
    return table([*header, *(f"Python {run.python}, {run.date}" for run in runs)], rows)
