"""What the cases of the outbox make of what they measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.case import OURS, Missing
from tests.benchmarks.outbox import claim_case, drain_case, insert_case, latency_case
from tests.benchmarks.outbox.__main__ import CASES, play
from tests.benchmarks.outbox.bench import leaving_out
from tests.benchmarks.outbox.contenders import CELERY, CONTENDERS, FOUR, PATTERN
from tests.benchmarks.outbox.goals import GOALS
from tests.benchmarks.outbox.insert_case import BARE, BULK, KEYED, Timed, play_round
from tests.benchmarks.outbox.latency_case import OURS_POLLING
from tests.benchmarks.outbox.place import Place
from tests.benchmarks.outbox.relays import RelayFailed, RelayProcess
from tests.benchmarks.report import Played
from tests.databases import Database

FIGURES = {
    "drain": drain_case.FIGURES,
    "latency": latency_case.FIGURES,
    "insert": insert_case.FIGURES,
    "claim": claim_case.FIGURES,
}
PLAYERS = {
    "drain": set(CONTENDERS),
    "latency": {OURS, OURS_POLLING, CELERY, PATTERN},
    "insert": {BARE, OURS, KEYED, BULK, CELERY, PATTERN},
    "claim": {claim_case.waiting(claim_case.FEW), claim_case.waiting(claim_case.MANY)},
}


@pytest.fixture
def nowhere(tmp_path: Path) -> Place:
    database = Database("sqlite", str(tmp_path / "database.sqlite3"))
    return Place("amqp://guest:guest@localhost:1//", None, database)


def test_goals_are_about_what_is_measured() -> None:
    for goal in GOALS:
        for check in goal.checks:
            for name, figure in filter(None, (check.mine, check.other)):
                assert name in PLAYERS[check.case]
                assert figure in FIGURES[check.case]


def test_the_slowest_of_several_relays_counts_and_all_their_processor_time() -> None:
    answers = [
        {"seconds": 1.0, "processor": 0.5, "main": 0.25},
        {"seconds": 2.0, "processor": 0.5, "main": 0.25},
    ]
    assert drain_case.figures_of(1_000, answers, (1.0, 1.0), (1.25, 1.5), 999) == {
        "rate": 500.0,
        "relay": 1_000.0,
        "main": 500.0,
        "postgresql": 250.0,
        "rabbitmq": 500.0,
        "arrived": 99.9,
    }


def test_a_message_that_did_not_arrive_is_counted_and_has_no_time() -> None:
    commits = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    arrivals = {"a": 1.01, "b": 1.999, "c": 3.02, "other": 9.0}
    figures = latency_case.figures_of(commits, arrivals)
    assert figures["arrived"] == [75.0]
    assert figures["p50"] == pytest.approx([10.0])
    assert figures["p99"] == pytest.approx([20.0])
    assert latency_case.figures_of(commits, {}) == {"arrived": [0.0]}


def test_a_message_of_many_has_its_part_of_what_they_add() -> None:
    bare = Timed([0.001, 0.002, 0.003], [0.0, 0.0, 0.0])
    many = Timed([0.102, 0.202, 0.302], [0.05, 0.15, 0.25])
    figures = many.figures(bare, 1_000)
    assert figures == pytest.approx({"added": 200.0, "call": 150.0})


def test_a_round_of_transactions_has_the_figures_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def turn(self: Timed, write: object) -> None:
        order.append(getattr(write, "__name__", "bulk"))
        self.transactions.append(0.001)
        self.calls.append(0.0005)

    def mine() -> None:
        """Writes nothing."""

    monkeypatch.setattr(Timed, "turn", turn)
    found = play_round({OURS: mine}, lambda: None, turns=2, bulks=1)
    # They take turns in going first.
    assert order == ["nothing", "mine", "mine", "nothing", "<lambda>"]
    assert found == {
        BARE: {"transaction": pytest.approx(1_000.0)},
        OURS: {"added": 0.0, "call": pytest.approx(500.0)},
        BULK: {"added": 0.0, "call": pytest.approx(0.5)},
    }
    values: dict[str, dict[str, list[float]]] = {}
    insert_case.note(values, found)
    insert_case.note(values, found)
    assert values[OURS]["added"] == [0.0, 0.0]


def test_who_is_missing_or_fails_is_left_out_with_the_reason() -> None:
    played = Played("", "", {})
    with leaving_out(played, "one"):
        raise Missing("it is not installed")
    with leaving_out(played, "two"):
        raise ZeroDivisionError("no rows")
    assert played.left_out == {
        "one": "it is not installed",
        "two": "failed: ZeroDivisionError: no rows",
    }


def test_a_case_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "drain", lambda bench: 1 / 0)
    played = play("drain", None)  # type: ignore[arg-type]
    assert played.left_out == {"everybody": "failed: ZeroDivisionError: division by zero"}


def test_django_outbox_pattern_needs_the_plugin(
    nowhere: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.benchmarks.outbox.contenders.peer", lambda module: None)
    CONTENDERS[CELERY].check(nowhere)
    with pytest.raises(Missing, match="rabbitmq_stomp is not installed"):
        CONTENDERS[PATTERN].check(nowhere)


def test_four_relays_publish_as_many_rows_as_one() -> None:
    assert CONTENDERS[FOUR].rows == CONTENDERS[OURS].rows
    assert (CONTENDERS[FOUR].processes, CONTENDERS[OURS].processes) == (4, 1)


def test_a_relay_s_process_says_what_it_failed_with(nowhere: Place) -> None:
    with RelayProcess(nowhere, "drain", "ours") as relay:
        relay.ask("drain")
        with pytest.raises(RelayFailed, match="no such table: kombu_pools_outbox"):
            relay.answer()
