"""Counting instructions, and telling of changes. What counts runs in a process of its own, never in the tests'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import instructions
from tests.benchmarks.counting import FLOOR, MARKS, SUBJECTS, TURNS
from tests.benchmarks.instructions import BYTECODE, MACHINE, child, differences, read_dumps, say

KEPT = Path(instructions.__file__).parent / "instructions"


def dump(folder: Path, number: int, total: int) -> None:
    (folder / f"counts.{number}").write_text(f"desc: Trigger\nsummary: {total}\ntotals: {total}\n")


def test_the_counts_between_the_marks_are_read(tmp_path: Path) -> None:
    dump(tmp_path, 1, 839_078_181)  # until the first mark
    for place in range(len(SUBJECTS)):
        for mark in range(MARKS):
            number = 2 + place * MARKS + mark
            last = mark == MARKS - 1
            dump(tmp_path, number, 77 if last else (place + 1) * 1_000 * TURNS + mark)
    counts = read_dumps(tmp_path)
    assert list(counts) == list(SUBJECTS)
    assert list(counts.values()) == [1_000.0 * (place + 1) for place in range(len(SUBJECTS))]


def test_too_few_counts_are_refused(tmp_path: Path) -> None:
    dump(tmp_path, 2, 5)
    with pytest.raises(ValueError, match="callgrind wrote 1 counts"):
        read_dumps(tmp_path)


def test_more_than_5_percent_either_way_is_told() -> None:
    kept = {"same": 100.0, "little": 100.0, "more": 100.0, "less": 100.0}
    now = {"same": 100.0, "little": 104.9, "more": 105.1, "less": 94.0, "new": 7.0}
    rows, changed = differences(now, kept)
    assert changed == ["more", "less"]
    assert [row[3] for row in rows] == ["+0.0%", "+4.9%", "+5.1%  MORE", "-6.0%  less", "new"]


def test_another_build_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    now = {"python": "3.11.9", "kombu": "5.7.0"}
    kept = {
        "build": {"python": "3.11.7", "kombu": "5.7.0"},
        "counts": {BYTECODE: {"a": 1.0}, MACHINE: {"a": 10.0}},
    }
    say({BYTECODE: {"a": 1.0}, MACHINE: {"a": 12.0}}, kept, now)
    told = capsys.readouterr().out
    assert told.count("(what is kept was counted with python 3.11.7)") == 1
    assert told.count("CHANGED by more than 5%: a") == 1


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_kept_is_of_every_subject(path: Path) -> None:
    kept = json.loads(path.read_text())
    assert kept["build"]["python"].startswith(path.stem)
    for counts in kept["counts"].values():
        assert set(counts) == set(SUBJECTS)
        assert all(counts[name] > 0 for name in SUBJECTS)
    assert BYTECODE in kept["counts"]


@pytest.mark.slow
def test_pythons_instructions_are_counted() -> None:
    counts = json.loads(child("bytecode"))
    assert set(counts) == set(SUBJECTS)
    # Two critical sections are a part of a lease.
    assert 10 < counts[FLOOR] < counts["engine: acquire and release"]
    assert counts["engine: acquire and release"] < counts["connection: acquire and release"]
