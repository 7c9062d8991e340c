"""The count itself: what it takes for lost, doubled, denied and stuck."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.scenarios.common import PACE
from tests.scenarios.plays import SCENARIOS
from tests.scenarios.stage import (
    OURS,
    PROMISING,
    Call,
    Journals,
    Record,
    Stage,
)

PLAYED = replace(PACE, threads=2)


def stage(contender: str = OURS) -> Stage:
    made = Stage(contender, "test", PLAYED, urls=["memory://"], plain_url=lambda: "memory://")
    made.healed_at = 10.0
    return made


def count(
    calls: dict[str, Call],
    *messages: tuple[str, str | None],
    ended: float = 13.0,
    contender: str = OURS,
) -> Record:
    made = stage(contender)
    made.journals.calls = calls
    return made.count(calls, list(messages), ended)


def ok(began: float = 11.0, ended: float = 12.0) -> Call:
    return Call(began, ended, "ok")


def test_all_is_well() -> None:
    record = count({"p0.0.0": ok(), "p0.1.0": ok(9.0, 10.5)}, ("p0.0.0", "a"), ("p0.1.0", "b"))
    assert record.broken_promises(PLAYED) == []
    assert (record.attempted, record.ok, record.found, record.duplicates) == (2, 2, 2, 0)
    assert (record.longest, record.recovered) == (1.5, 2.0)


def test_reported_and_not_there_is_lost() -> None:
    record = count({"p0.0.0": ok(), "p0.1.0": ok()}, ("p0.0.0", "a"))
    assert record.lost == ["p0.1.0"]
    # And what is lost is no proof that its thread has recovered.
    assert record.recovered is None
    assert len(record.broken_promises(PLAYED)) == 2


def test_copies_are_told_apart_by_their_ids() -> None:
    calls = {"p0.0.0": ok(), "p0.1.0": ok()}
    same = count(calls, ("p0.0.0", "a"), ("p0.0.0", "a"), ("p0.1.0", "b"))
    assert (same.duplicates, same.indistinct, same.found) == (1, 0, 2)
    for other in ("c", None):
        different = count(calls, ("p0.0.0", "a"), ("p0.0.0", other), ("p0.1.0", "b"))
        assert (different.duplicates, different.indistinct) == (1, 1)
        assert different.broken_promises(PLAYED) == ["1 with copies of different message_ids"]


def test_an_error_that_says_no_must_be_right() -> None:
    calls = {"p0.0.0": ok(), "p0.1.0": ok(), "p0.1.1": Call(11.0, 12.0, "BrokerBlocked")}
    there = (("p0.0.0", "a"), ("p0.1.0", "b"), ("p0.1.1", "c"))
    assert count(calls, *there).denied == ["p0.1.1"]
    assert count(calls, *there[:2]).denied == []
    calls["p0.1.1"].outcome = "PublishUnknown"
    record = count(calls, *there)
    assert (record.denied, record.errors) == ([], {"PublishUnknown": 1})


def test_a_call_without_an_end_is_stuck_and_lasts() -> None:
    record = count({"p0.0.0": ok(), "p0.1.0": ok(), "p0.1.1": Call(11.0)},
                   ("p0.0.0", "a"), ("p0.1.0", "b"), ended=71.0)  # fmt: skip
    assert (record.stuck, record.longest) == (1, 60.0)
    assert record.broken_promises(PLAYED) == ["1 calls never ended", "a call of 60.0 s, over 8 s"]


def test_a_process_that_was_killed_is_not_stuck_but_its_word_counts() -> None:
    calls = {"p0.0.0": ok(), "p0.1.0": ok(), "p1.0.0": ok(), "p1.0.1": Call(11.0)}
    record = count(calls, ("p0.0.0", "a"), ("p0.1.0", "b"))
    assert (record.stuck, record.lost) == (0, ["p1.0.0"])


def test_time_in_which_the_processes_were_stopped_is_not_theirs() -> None:
    made = stage()
    made.frozen = (20.0, 30.0)
    assert made.seconds(15.0, 18.0) == 3.0
    assert made.seconds(15.0, 31.0) == 6.0
    assert made.seconds(22.0, 31.0) == 1.0
    assert made.seconds(40.0, 41.0) == 1.0


def test_a_second_outcome_is_noticed(tmp_path: Path) -> None:
    made = stage()
    made.journals = Journals(tmp_path)
    (tmp_path / "p0.journal").write_text(
        "11.0 begin p0.0.0\n12.0 ok p0.0.0\n12.5 error p0.0.0 PublishUnknown late\n"
        "11.0 begin p0.1.0\n12.0 ok p0.1.0\n"
    )
    record = made.count(made.journals.read(), [("p0.0.0", "a"), ("p0.1.0", "b")], 13.0)
    assert record.broken_promises(PLAYED) == ["1 with two outcomes"]


@pytest.mark.parametrize("contender", PROMISING)
def test_errors_of_all_who_promise_must_be_right(contender: str) -> None:
    calls = {"p0.0.0": ok(), "p0.1.0": ok(), "p0.1.1": Call(11.0, 12.0, "PoolTimeout")}
    messages = [(message, message) for message in calls]
    assert count(calls, *messages, contender=contender).denied == ["p0.1.1"]
    assert count(calls, *messages, contender="kombu.pools, careful").denied == []


def test_a_longer_time_for_the_confirm_counts() -> None:
    calls = {"p0.0.0": ok(), "p0.1.0": ok(3.0, 13.0)}
    record = count(calls, ("p0.0.0", "a"), ("p0.1.0", "b"))
    assert record.broken_promises(PLAYED) == ["a call of 10.0 s, over 8 s"]
    assert record.broken_promises(replace(PLAYED, confirm=10.0)) == []


def test_an_error_where_none_is_promised_is_noticed() -> None:
    nacked = Call(11.0, 12.0, "PublishNacked", "no leader")
    calls = {"p0.0.0": ok(), "p0.1.0": ok(), "p0.1.1": nacked}
    for name, broken in (("node", 1), ("majority", 0)):
        record = count(calls, ("p0.0.0", "a"), ("p0.1.0", "b"))
        assert len(SCENARIOS[name].broken_promises(record, PLAYED)) == broken


def test_redis_has_one_road() -> None:
    assert SCENARIOS["redis"].contenders(PROMISING) == [OURS]
    assert SCENARIOS["restart"].contenders(PROMISING) == [*PROMISING]


def test_journals_are_read_as_they_grow(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    assert journals.read() == {}
    with (tmp_path / "p0.journal").open("w") as journal:
        journal.write("1.5 begin p0.0.0\n2.0 ok p0.0.0\n2.5 begin p0.0.1\n3.0 err")
        journal.flush()
        assert journals.read() == {"p0.0.0": Call(1.5, 2.0, "ok"), "p0.0.1": Call(2.5)}
        journal.write("or p0.0.1 OperationalError it is gone\n")
        journal.flush()
        assert journals.read()["p0.0.1"] == Call(2.5, 3.0, "OperationalError", "it is gone")
