"""The soak's own logic: what it is told, what chance brings, and that it notices what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.proxy import Proxy
from tests.scenarios.plays import DurableRedis
from tests.scenarios.soak import PACE, Health, Held, Soak, report, seconds, violations
from tests.scenarios.soak_faults import GROUP_OF, KINDS, schedule
from tests.scenarios.stage import Call, Record

CALM = """\
baseline 10.0 40000 6 2 50000 3
sample 11.0 41000 9 3
sample 45.0 42000 12 4
sample 99.0 43000 12 4
end 110.0 42500 6 2 50080 3
"""


@pytest.fixture
def soak() -> Soak:
    """One that has been played to its end, without servers and processes: the count is to be made."""
    with Proxy() as first, Proxy() as second:
        made = Soak(7, PrivateRabbitMQ(), DurableRedis(), {"rabbitmq": first, "redis": second})
    made.threads = {"p0.0"}
    made.healed_at = 10.0
    return made


def ok() -> Call:
    return Call(11.0, 12.0, "ok")


def count(soak: Soak, calls: dict[str, Call], *found: str) -> Record:
    soak.journals.calls = calls
    return soak.count(calls, [(body, body) for body in found], 30.0)


def health(text: str, folder: Path) -> Health:
    path = folder / "p0.health"
    path.write_text(text)
    return Health.read(path)


@pytest.mark.parametrize(
    "text,expected",
    [("60m", 3600.0), ("90s", 90.0), ("2h", 7200.0), ("1.5h", 5400.0), (" 45 ", 45.0)],
)
def test_how_long(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "an hour", "5d", "-3s", "0s", "1m30s"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="SOAK is a time like 90s, 60m or 2h"):
        seconds(text)


def test_one_seed_one_schedule() -> None:
    def first(seed: int) -> list[object]:
        return list(islice(schedule(seed), 3 * len(KINDS)))

    assert first(7) == first(7)
    assert first(7) != first(8)


def test_every_kind_comes_as_often_as_the_others() -> None:
    strikes = list(islice(schedule(7), 2 * len(KINDS)))
    assert Counter(strike.kind for strike in strikes) == dict.fromkeys(KINDS, 2)
    assert {strike.server for strike in strikes} == {"rabbitmq", "redis"}
    # Some have another one beside them, which does not get into their way.
    pairs = [(one.kind, one.beside.kind) for one in strikes if one.beside is not None]
    assert 0 < len(pairs) < len(strikes)
    assert all(GROUP_OF[one] != GROUP_OF[other] for one, other in pairs)


def test_all_is_well(soak: Soak, tmp_path: Path) -> None:
    record = count(soak, {"p0.0.1": ok(), "p0.0.r2": ok()}, "p0.0.1", "p0.0.r2")
    well = health(CALM, tmp_path)
    assert violations(record, [well], set(), PACE) == []
    told = report(record, [well], Counter({"RabbitMQ killed": 2}))
    assert "2 RabbitMQ killed" in told
    assert " 42000   43000   42500 " in told


def test_a_lost_message_is_noticed(soak: Soak) -> None:
    record = count(soak, {"p0.0.1": ok(), "p0.0.2": ok()}, "p0.0.1")
    assert violations(record, [], set(), PACE) == [
        "1 reported as published and not in the broker: p0.0.2"
    ]


def test_one_that_was_lost_past_the_pool_too(soak: Soak) -> None:
    record = count(soak, {"p0.0.1": ok(), "p0.0.r2": ok()}, "p0.0.1")
    assert record.lost == ["p0.0.r2"]


def test_nothing_else_was_promised_past_the_pool(soak: Soak) -> None:
    calls = {"p0.0.1": ok(), "p0.0.r2": Call(11.0, 60.0, "ConnectionResetError", "gone")}
    record = count(soak, calls, "p0.0.1", "p0.0.r2")
    assert violations(record, [], set(), PACE) == []
    assert record.errors == {"raw ConnectionResetError": 1}
    calls["p0.0.r2"].outcome = None
    assert count(soak, calls, "p0.0.1").stuck == 1


def test_an_error_that_said_no_and_a_call_that_took_too_long(soak: Soak) -> None:
    calls = {"p0.0.1": ok(), "p0.0.2": Call(11.0, 29.0, "BrokerBlocked", "no")}
    wrong = violations(count(soak, calls, "p0.0.1", "p0.0.2"), [], set(), PACE)
    assert wrong == [
        "1 in the broker though the error said no: p0.0.2",
        "a call of 18.0 s, over 16 s",
    ]
    # A coroutine that was cancelled is told which of the two it is.
    calls["p0.0.2"] = Call(11.0, 12.0, "CancelledMidway", "may be in the broker, or not")
    assert count(soak, calls, "p0.0.1", "p0.0.2").denied == []
    calls["p0.0.2"].outcome = "CancelledBefore"
    assert count(soak, calls, "p0.0.1", "p0.0.2").denied == ["p0.0.2"]
    calls["p0.0.2"] = Call(11.0, 29.0, "BrokerBlocked", "no")
    # The process was stopped for most of the time, twice.
    soak.stops = [(12.0, 15.0), (20.0, 26.0)]
    assert count(soak, calls, "p0.0.1").longest == 9.0


@pytest.mark.parametrize(
    "line,word",
    [
        ("end 110.0 42500 7 2 50080 3", "7 descriptors when all was closed, 6 before"),
        ("end 110.0 42500 6 3 50080 3", "3 threads when all was closed, 2 before"),
        ("end 110.0 42500 6 2 58000 3", "58000 objects when all was closed, 50000 before"),
        ("end 110.0 42500 6 2 50080 4", "4 connections when all was closed, 3 before"),
        ("end 110.0 60000 6 2 50080 3", "60000 KiB of memory when all was closed, 42000 before"),
        ("trouble redis: the numbers are wrong", "redis: the numbers are wrong"),
        ("strange KeyError Traceback | KeyError: 1", "no caller should see KeyError: Traceback"),
    ],
)
def test_a_leak_is_noticed(soak: Soak, tmp_path: Path, line: str, word: str) -> None:
    record = count(soak, {"p0.0.1": ok()}, "p0.0.1")
    (wrong,) = violations(record, [health(CALM + line, tmp_path)], set(), PACE)
    assert wrong.startswith("p0: ")
    assert word in wrong


def test_a_process_without_an_end_is_noticed_unless_it_was_killed(
    soak: Soak, tmp_path: Path
) -> None:
    record = count(soak, {"p0.0.1": ok()}, "p0.0.1")
    cut_short = health("".join(CALM.splitlines(keepends=True)[:3]), tmp_path)
    assert violations(record, [cut_short], set(), PACE) == ["p0: it never came to its end"]
    assert violations(record, [cut_short], {"p0"}, PACE) == []


def test_memory_may_grow_until_the_process_is_warm() -> None:
    grown = Held(200.0, 90000, 6, 2)
    one = Health("p0", baseline=Held(9.0, 30000, 6, 2), end=grown)
    one.samples = [Held(10.0, 30000, 6, 2), Held(41.0, 85000, 6, 2), grown]
    assert one.violations(lived=True) == []
    one.samples[1] = replace(one.samples[1], memory=50000)
    assert len(one.violations(lived=True)) == 1
