"""What a run is written down as, and that the page shows the one that is kept."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.benchmarks import all_cases  # noqa: F401  # fills the register
from tests.benchmarks.case import CASES, OURS
from tests.benchmarks.goals import GOALS
from tests.benchmarks.lease_cases import FLOOR, KOMBU
from tests.benchmarks.pythons import ROOT, versions
from tests.benchmarks.report import Played, Run, chart, goal_table, lines_of, read_runs, write
from tests.benchmarks.svg import Bar, Group, bars

PAGE = ROOT / "docs" / "explanation" / "performance.md"
KEPT = ROOT / "docs" / "explanation" / "performance"


def a_run(python: str = "3.11.7", ours: float = 2.0) -> Run:
    values = {OURS: [ours], KOMBU: [6.0], FLOOR: [1.0]}
    played = Played(
        "take and give back",
        "amqp",
        {"time": "µs"},
        {name: {"time": times} for name, times in values.items()},
        {"pika": "pika is not installed\n(no module)"},
        [("kombu_pools_ext.engine.pool: acquire", 12.5, 1_000)],
    )
    cases = {"acquire.connection.amqp": played}
    return Run(python, "2026-01-31", "a machine", {"kombu": "5.7.0"}, "A short run.", cases)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    a_run().dump(tmp_path / "results-3.11.json")
    (read,) = read_runs(tmp_path)
    read.cases["acquire.connection.amqp"].profile = [
        tuple(line) for line in read.cases["acquire.connection.amqp"].profile
    ]
    assert read == a_run()


def test_each_case_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "results-3.11.json"
    a_run().dump(path)
    (line,) = (line for line in path.read_text().splitlines() if "acquire.connection.amqp" in line)
    assert '"ours": {"time": [2.0]}' in line


def test_the_text_says_what_is_met_what_is_not_and_what_was_not_measured(tmp_path: Path) -> None:
    a_run().dump(tmp_path / "results-3.11.json")
    text = write(tmp_path).read_text()
    assert "Measured on 2026-01-31 with Python 3.11.7 on a machine, with kombu 5.7.0." in text
    assert "**A short run.**" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any("3.00 × (3.00–3.00) | **not met** |" in row for row in rows)
    assert any("2.00 × (2.00–2.00) | met |" in row for row in rows)
    assert any("not measured |" in row for row in rows)
    assert f"0 of {len(GOALS)} goals met, {len(GOALS) - 1} not wholly measured." in text
    assert "Left out: pika: pika is not installed (no module)." in text
    assert "| `kombu_pools_ext.engine.pool: acquire` | 12.5 % | 1,000 |" in text
    assert "![Taking and giving back](acquire.svg)" in text
    ElementTree.parse(tmp_path / "acquire.svg")


def test_other_pythons_have_their_goals(tmp_path: Path) -> None:
    a_run("3.13.0", ours=1.0).dump(tmp_path / "results-3.13.json")
    a_run("3.9.0").dump(tmp_path / "results-3.9.json")
    text = write(tmp_path).read_text()
    assert "with Python 3.9.0 on" in text
    assert "| Python 3.9.0, 2026-01-31 | Python 3.13.0, 2026-01-31 |" in text
    assert "3.00 × (3.00–3.00), **not met** | 6.00 × (6.00–6.00), met |" in text


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run in"):
        write(tmp_path)


def test_old_charts_go(tmp_path: Path) -> None:
    (tmp_path / "gone.svg").write_text("<svg/>")
    a_run().dump(tmp_path / "results-3.11.json")
    write(tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["acquire.svg"]


def test_contenders_are_compared_with_ours() -> None:
    rows = list(lines_of("name", a_run().cases["acquire.connection.amqp"]))
    assert rows == [
        ["name", OURS, "2.00 µs", ""],
        ["name", KOMBU, "6.00 µs", "3.00 × (3.00–3.00)"],
        ["name", FLOOR, "1.00 µs", "0.500 × (0.500–0.500)"],
    ]


def test_a_contender_that_lacks_the_first_figure_is_shown_with_its_others() -> None:
    values = {OURS: {"time": [2.0], "lag": [5.0]}, "no publish": {"lag": [4.0]}}
    played = Played("publish", "amqp", {"time": "µs", "lag": "µs late"}, values)
    assert list(lines_of("name", played)) == [
        ["name", OURS, "2.00 µs; 5.00 µs late", ""],
        ["name", "no publish", "–; 4.00 µs late", ""],
    ]


def test_an_unmet_goal_is_known_by_its_number() -> None:
    assert [(count, len(checks)) for count, checks in a_run().unmet().items()] == [(1, 1)]
    assert goal_table(a_run().verdicts())[0][0] == "1"


# -- charts ----------------------------------------------------------------------------------------


def test_a_chart_has_a_bar_for_each_and_escapes_what_it_is_told() -> None:
    text = bars(
        "A < B", [Group("one & two", [Bar("a<b", 1.0, "1 µs", "ours"), Bar("c", 2.0, "2")])]
    )
    root = ElementTree.fromstring(text)
    kind = "{http://www.w3.org/2000/svg}"
    widths = [float(rect.attrib["width"]) for rect in root.findall(f"{kind}rect")]
    assert widths[2] == 2 * widths[1]
    assert [element.text for element in root.findall(f"{kind}text")] == [
        "one & two",
        *("a<b", "1 µs", "c", "2"),
    ]


def test_a_long_unit_stands_in_the_title() -> None:
    figures = {OURS: {"share": [0.9]}, KOMBU: {"share": [0.5]}}
    played = Played("turns", "memory", {"share": "fewest turns / most"}, figures)
    (group,) = chart({"threads.turns": played})
    assert group.title == "turns – kombu's broker in memory: fewest turns / most"
    assert [bar.text for bar in group.bars] == ["0.900", "0.500"]


def test_a_bar_that_would_dwarf_the_others_is_cut() -> None:
    values = [1.0, 2.0, 3.0, 1_000.0]
    group = Group("", [Bar("", value, "") for value in values])
    assert group.scale == 9.0
    assert bars("", [group]).count("<path") == 1
    assert bars("", [Group("", [Bar("", 0.0, "")])]).count("<path") == 0


# -- the page --------------------------------------------------------------------------------------


def test_the_page_shows_the_run_that_is_kept(tmp_path: Path) -> None:
    for path in KEPT.glob("results-*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in KEPT.iterdir()}
    assert re.search(r"```\{include\} performance/run\.md\n", PAGE.read_text())


def test_the_run_that_is_kept_is_of_every_case() -> None:
    for run in read_runs(KEPT):
        assert set(run.cases) == set(CASES)


def test_the_page_has_a_section_for_each_goal_that_the_run_does_not_reach() -> None:
    text = PAGE.read_text()
    missing = [
        f"{count}. {GOALS[count - 1].work}"
        for run in read_runs(KEPT)
        for count in run.unmet()
        if f"\n### {count}. " not in text
    ]
    assert not missing, f"{PAGE.name} does not say what the rest is spent on, and what was tried"


@pytest.mark.parametrize(
    "asked, found",
    [("", []), ("3.12, 3.13", ["3.12", "3.13"]), ("all", ["3.11", "3.12", "3.13", "3.14"])],
)
def test_pythons_are_asked_for_by_version(asked: str, found: list[str]) -> None:
    assert versions(asked) == found
    with pytest.raises(ValueError, match=r"'2.7' is none of 3.11, 3.12, 3.13"):
        versions(f"{asked} 2.7" if asked != "all" else "2.7")
