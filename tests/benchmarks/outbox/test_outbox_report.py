"""What a run of the outbox is written down as, and that the page shows the one that is kept."""

from __future__ import annotations

import re
from pathlib import Path

from tests.benchmarks.case import OURS
from tests.benchmarks.outbox.__main__ import CASES, KEPT
from tests.benchmarks.outbox.bench import WHERE
from tests.benchmarks.outbox.claim_case import FEW, MANY, waiting
from tests.benchmarks.outbox.contenders import CELERY, PATTERN
from tests.benchmarks.outbox.goals import GOALS
from tests.benchmarks.outbox.report import NAMES, RESULTS, OutboxRun, read_run, write
from tests.benchmarks.pythons import ROOT
from tests.benchmarks.report import Played

PAGE = ROOT / "docs" / "explanation" / "outbox-performance.md"


def a_run(**cases: Played) -> OutboxRun:
    return OutboxRun("3.11.7", "2026-01-31", "a machine", {"django": "5.2"}, "Short.", cases)


def drained(**rates: float) -> Played:
    figures = {"rate": "rows/s", "relay": "µs", "main": "µs", "postgresql": "µs", "rabbitmq": "µs"}
    more = {"relay": [100.0], "main": [60.0], "postgresql": [50.0], "rabbitmq": [50.0]}
    values = {name: {"rate": [rate], **more} for name, rate in rates.items()}
    left_out = {PATTERN: "django-outbox-pattern is not installed"}
    profile = [("kombu_pools_ext.outbox.store: claim", 12.5, 40)]
    return Played("relays drain a table", WHERE, figures, values, left_out, profile)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    run = a_run(claim=Played("claim", WHERE, {"claim": "ms"}, {waiting(FEW): {"claim": [2.0]}}))
    run.dump(tmp_path / RESULTS)
    assert read_run(tmp_path) == run


def test_the_text_says_what_is_met_what_is_not_and_what_was_not_measured(tmp_path: Path) -> None:
    a_run(drain=drained(**{OURS: 5_000.0, CELERY: 1_000.0})).dump(tmp_path / RESULTS)
    text = write(tmp_path).read_text()
    assert "Measured on 2026-01-31 with Python 3.11.7 on a machine, with django 5.2." in text
    assert "**Short.**" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any("≥ 4,000 rows/s | 5,000 | met |" in row for row in rows)
    assert any("5.00 × (5.00–5.00) | **not met** |" in row for row in rows)
    assert any("with NOTIFY p50 ≤ 30 ms | – | not measured |" in row for row in rows)
    assert f"1 of {len(GOALS)} goals met, 4 not wholly measured." in text
    assert f"Left out: {PATTERN}: django-outbox-pattern is not installed." in text


def test_the_text_says_where_the_time_of_a_row_goes(tmp_path: Path) -> None:
    a_run(drain=drained(**{OURS: 5_000.0})).dump(tmp_path / RESULTS)
    text = write(tmp_path).read_text()
    assert "| the relay's main thread: statements, rows, answers | 60.0 | 30 % |" in text
    assert "| the relay's other threads: the connection to the broker | 40.0 | 20 % |" in text
    assert "| RabbitMQ | 50.0 | 25 % |" in text
    assert "| `kombu_pools_ext.outbox.store: claim` | 12.5 % | 40 |" in text


def test_without_a_run_no_goal_is_measured(tmp_path: Path) -> None:
    text = write(tmp_path).read_text()
    assert text.startswith("No run is kept yet.")
    assert f"0 of {len(GOALS)} goals met, {len(GOALS)} not wholly measured." in text


def test_fewer_than_ten_million_rows_measure_no_goal() -> None:
    def verdict(rows: int) -> bool | None:
        values = {waiting(FEW): {"claim": [2.0]}, waiting(rows): {"claim": [2.0]}}
        played = Played("claim", WHERE, {"claim": "ms"}, values)
        return a_run(claim=played).verdicts()[-1][0].met

    assert verdict(MANY) is True
    assert verdict(1_000_000) is None


def test_the_page_shows_the_run_that_is_kept(tmp_path: Path) -> None:
    run = read_run(KEPT)
    if run is not None:
        (tmp_path / RESULTS).write_bytes((KEPT / RESULTS).read_bytes())
        assert set(run.cases) == set(CASES)
    assert write(tmp_path).read_text() == (KEPT / "run.md").read_text()
    assert re.search(r"```\{include\} outbox-performance/run\.md\n", PAGE.read_text())


def test_each_case_has_a_heading() -> None:
    assert list(NAMES) == list(CASES)
