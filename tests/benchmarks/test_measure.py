"""How rounds are played, and what is made of them."""

from __future__ import annotations

import gc
import time

import pytest

from tests.benchmarks.measure import (
    Ratio,
    calibrate,
    interleave,
    number,
    percentile,
    processing,
    ratio,
    statement,
    timed,
)


def test_a_round_lasts_as_long_as_it_is_to() -> None:
    asked: list[int] = []

    def play(turns: int) -> float:
        asked.append(turns)
        # The first turn opens a connection, and takes long.
        return 1.0 if len(asked) == 1 else turns * 0.0001

    assert calibrate(play, 0.05) == 500
    assert max(asked) < 500


def test_what_is_slow_has_one_turn() -> None:
    assert calibrate(lambda turns: turns * 3.0, 0.05) == 1


def test_what_takes_no_time_ends() -> None:
    assert calibrate(lambda turns: 0.0, 0.05) == 1_000_000


def test_a_figure_is_microseconds_a_message() -> None:
    round_ = timed(lambda turns: turns * 0.002, 0.05, per=1_000)
    assert round_() == {"time": pytest.approx(2.0)}


def test_a_statement_is_timed() -> None:
    done: list[int] = []
    assert statement("done.append(1)", done=done)(100) > 0
    assert processing("done.append(1)", done=done)(100) >= 0
    assert len(done) == 200


def test_waiting_is_no_processing() -> None:
    def play(turns: int) -> float:
        return processing("sleep(0.05)", sleep=time.sleep)(turns)

    assert play(2) < 0.1


def test_rounds_are_interleaved_and_each_begins_with_another() -> None:
    order: list[str] = []

    def contender(name: str) -> dict[str, float]:
        order.append(name)
        return {"time": float(len(order))}

    values = interleave(
        {"a": lambda: contender("a"), "b": lambda: contender("b")},
        3,
        lambda: order.append("before"),
    )
    assert [name for name in order if name != "before"] == ["a", "b", "b", "a", "a", "b"]
    assert order[::2] == ["before"] * 6
    assert values == {"a": {"time": [2.0, 8.0, 10.0]}, "b": {"time": [4.0, 6.0, 12.0]}}


def test_the_collector_runs_before_a_round_and_not_in_it() -> None:
    collected: list[str] = []
    within: list[bool] = []

    def told(phase: str, info: object) -> None:
        collected.append(phase)

    def round_() -> dict[str, float]:
        within.append(gc.isenabled())
        assert collected
        collected.clear()
        return {}

    gc.callbacks.append(told)
    try:
        interleave({"a": round_, "b": round_}, 2)
    finally:
        gc.callbacks.remove(told)
    assert within == [False] * 4
    assert gc.isenabled()


def test_the_collector_is_back_after_a_failure() -> None:
    def round_() -> dict[str, float]:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleave({"a": round_}, 1)
    assert gc.isenabled()


def test_a_contender_that_fails_is_out_and_the_others_play_on() -> None:
    failed: dict[str, Exception] = {}
    rounds = iter([{"time": 1.0}])
    contenders = {"good": lambda: {"time": 2.0}, "bad": lambda: next(rounds)}
    assert interleave(contenders, 3, None, failed) == {"good": {"time": [2.0, 2.0, 2.0]}}
    assert {name: type(error) for name, error in failed.items()} == {"bad": StopIteration}
    assert gc.isenabled()


def test_no_contenders_no_values() -> None:
    assert interleave({}, 3) == {}


def test_a_ratio_is_the_median_of_the_rounds_own_with_their_quartiles() -> None:
    # The last round was a busy one, for both.
    found = ratio([10.0, 20.0, 30.0, 40.0, 500.0], [10.0, 10.0, 10.0, 10.0, 100.0])
    assert found == Ratio(3.0, 2.0, 4.0)
    assert str(found) == "3.00 × (2.00–4.00)"


def test_a_ratio_of_one_round_has_no_spread() -> None:
    assert ratio([6.0], [3.0]) == Ratio(2.0, 2.0, 2.0)


def test_a_ratio_to_nothing_is_large() -> None:
    assert ratio([1.0], [0.0]).value > 1e6


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0.000"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12_345.0, "12,300"),
    ],
)
def test_three_digits_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 99) == 100.0
    assert percentile(values, 50) == 51.0
    assert percentile([7.0], 99) == 7.0
