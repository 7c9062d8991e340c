"""The register of cases, the goals, and a case that is played."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks import all_cases  # noqa: F401  # fills the register
from tests.benchmarks.__main__ import ask_child, main, run_case
from tests.benchmarks.case import (
    CASES,
    OURS,
    Case,
    Contender,
    Missing,
    Setting,
    chosen,
    peer,
    register,
)
from tests.benchmarks.child import part_of, play, where
from tests.benchmarks.goals import GOALS, Check
from tests.benchmarks.lease_cases import FLOOR, KOMBU
from tests.benchmarks.measure import Round, statement, timed
from tests.benchmarks.places import PLACES, Places
from tests.benchmarks.scale_cases import importing
from tests.brokers import Unavailable
from tests.wanted import without


def test_every_case_has_ours_or_is_of_us_alone() -> None:
    assert CASES
    for name, case in CASES.items():
        assert case.name == name
        assert case.place in PLACES, name
        assert OURS in case.contenders or name == "threads.waiting"
        assert case.figures


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'engine' already"):
        register("engine", "again", "none", {})


def test_cases_are_chosen_by_words_of_their_names() -> None:
    assert [case.name for case in chosen("engine, import")] == ["engine", "import"]
    assert len(chosen("acquire")) == sum("acquire" in name for name in CASES) > 1
    assert chosen("") == list(CASES.values())
    with pytest.raises(ValueError, match="no case has 'aquire' in its name: acquire"):
        chosen("engine aquire")


def test_the_table_of_goals_has_its_rows() -> None:
    assert len(GOALS) == 25
    assert all(goal.checks for goal in GOALS)


@pytest.mark.parametrize("check", [check for goal in GOALS for check in goal.checks])
def test_a_goal_is_of_something_that_is_measured(check: Check) -> None:
    case = CASES[check.case]
    for contender, figure in filter(None, (check.mine, check.other)):
        assert contender in case.contenders
        assert figure in case.figures
    assert (check.least is None) != (check.most is None)


def test_an_import_is_one_of_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; assert os.path.exists(__spec__.cached), __spec__.cached"
    (tmp_path / "weighed.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with importing("weighed", "")(Setting(url="")) as round_:
        assert round_()["time"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["weighed.py"]


def results(ours: float, kombu: float) -> dict[str, dict[str, dict[str, list[float]]]]:
    return {"case": {OURS: {"time": [ours]}, KOMBU: {"time": [kombu]}}}


@pytest.mark.parametrize(
    "ours, kombu, met", [(1.0, 4.0, True), (1.0, 3.9, False), (1.0, 40.0, True)]
)
def test_a_goal_of_so_many_times_faster(ours: float, kombu: float, met: bool) -> None:
    check = Check("case", "", (OURS, "time"), (KOMBU, "time"), turned=True, least=4)
    assert check.look(results(ours, kombu)).met is met


@pytest.mark.parametrize("ours, met", [(3.0, True), (3.1, False)])
def test_a_goal_of_at_most_so_many_times(ours: float, met: bool) -> None:
    check = Check("case", "", (OURS, "time"), (KOMBU, "time"), most=3)
    assert check.look(results(ours, 1.0)).met is met
    plain = Check("case", "", (OURS, "time"), most=3)
    assert plain.look(results(ours, 1.0)).met is met


@pytest.mark.parametrize("case", [{}, {"case": {OURS: {"time": [1.0]}}}])
def test_a_goal_whose_contender_is_missing_is_not_measured(case: dict[str, object]) -> None:
    check = Check("case", "", (OURS, "time"), (KOMBU, "time"), turned=True, least=4)
    verdict = check.look(case)  # type: ignore[arg-type]
    assert verdict.met is None
    assert verdict.word == "not measured"


# -- playing ---------------------------------------------------------------------------------------


@contextmanager
def good(setting: Setting) -> Iterator[Round]:
    yield timed(statement("pass"), setting.seconds)


@contextmanager
def missing(setting: Setting) -> Iterator[Round]:
    peer("no_such_package.at_all")
    yield dict


@contextmanager
def failing(setting: Setting) -> Iterator[Round]:
    raise ConnectionError("nobody there")
    yield dict


def test_who_is_missing_or_fails_is_left_out_by_name() -> None:
    contenders = {OURS: good, "peer": missing, "broken": failing}
    done = play(Case("a case", "", "none", contenders), Setting("", seconds=0.0001), 2)
    assert len(done["values"][OURS]["time"]) == 2
    assert set(done["values"]) == {OURS}
    assert done["left_out"]["peer"].startswith("no-such-package is not installed")
    assert done["left_out"]["broken"] == "failed: ConnectionError: nobody there"


@contextmanager
def failing_later(setting: Setting) -> Iterator[Round]:
    rounds = iter([{"time": 1.0}])

    def round_() -> dict[str, float]:
        for figures in rounds:
            return figures
        raise ConnectionError("gone")

    yield round_


def test_who_fails_in_a_round_is_left_out_by_name() -> None:
    contenders = {OURS: good, "broken": failing_later}
    done = play(Case("a case", "", "none", contenders), Setting("", seconds=0.0001), 2)
    assert len(done["values"][OURS]["time"]) == 2
    assert set(done["values"]) == {OURS}
    assert done["left_out"] == {"broken": "failed in a round: ConnectionError: gone"}


def using(*values: float) -> Contender:
    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        left = iter(values)
        yield lambda: {"processor": next(left)}

    return contender


def test_what_is_above_the_bare_contender_is_told_round_by_round() -> None:
    contenders = {OURS: using(7.0, 9.0), "bare": using(2.0, 3.0), "other": good}
    case = Case("a case", "", "none", contenders, bare="bare")
    values = play(case, Setting("", seconds=0.0001), 2)["values"]
    assert values[OURS] == {"processor": [7.0, 9.0], "above": [5.0, 6.0]}
    assert values["bare"] == {"processor": [2.0, 3.0]}
    assert set(values["other"]) == {"time"}


def test_a_missing_module_says_which_package() -> None:
    with pytest.raises(Missing, match=r"^no-such-package is not installed"):
        peer("no_such_package")


@pytest.mark.slow
def test_a_profile_names_functions_without_folders() -> None:
    # In a process of its own: what profiles or traces may not do so in the tests'.
    order = {"url": "", "seconds": 0.001, "rounds": 1, "profile": True}
    lines = ask_child("engine", order)["lines"]
    assert any(at == "kombu_pools_ext.engine.pool: acquire" for at, _, _ in lines)
    assert not [at for at, _, _ in lines if os.sep in at]
    sums = {at: share for at, share, _ in lines if at.startswith("all of ")}
    assert sums["all of kombu_pools_ext.engine"] > 1
    assert 90 < sum(sums.values()) < 101


def test_a_function_is_told_without_the_machines_folders() -> None:
    assert where("~", 0, "<built-in method time.monotonic>") == "built-in method time.monotonic"
    path = "/somewhere/kombu_pools_ext/lib/kombu_pools_ext/engine/pool.py"
    assert where(path, 1, "acquire") == "kombu_pools_ext.engine.pool: acquire"
    assert where("/somewhere/json/encoder.py", 1, "encode") == "encoder: encode"
    assert part_of(path) == "kombu_pools_ext.engine"
    assert part_of("/somewhere/kombu_pools_ext/aliases.py") == "kombu_pools_ext"
    assert part_of("/lib/amqp/channel.py") == "amqp"
    assert part_of("/lib/json/encoder.py") == "everything else"


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--commit", "--only", "engine"], "COMMIT=1 goes without ONLY"),
        (["--only", "aquire"], "no case has 'aquire'"),
        (["--pythons", "2.7"], "'2.7' is none of"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_case_is_played_in_a_process_of_its_own() -> None:
    before = sys.modules.get("tests.benchmarks.peers")
    played = run_case(CASES["acquire.producer.memory"], {"url": "memory://"}, 3, 0.001, 0.1)
    assert played.left_out == {}
    assert {name: len(figures["time"]) for name, figures in played.values.items()} == {
        OURS: 3,
        KOMBU: 3,
        FLOOR: 3,
    }
    assert sys.modules.get("tests.benchmarks.peers") is before


@pytest.mark.slow
def test_a_case_that_cannot_be_played_fails_alone() -> None:
    played = run_case(CASES["publish.redis"], {"url": "no-url://"}, 1, 0.001, 0.1)
    assert played.values == {}
    assert all(why.startswith("failed: ") for why in played.left_out.values())
    assert OURS in played.left_out or "everybody" in played.left_out


@pytest.mark.slow
@pytest.mark.threads
def test_the_places_are_there_and_can_be_published_to() -> None:
    with Places() as places:
        try:
            rabbit, redis = places["amqps"], places["rediss"]
        except Unavailable as why:
            without("RabbitMQ or Redis", str(why))
        assert set(places.versions) == {"RabbitMQ", "Redis"}
        for name, place in (("batch.amqps", rabbit), ("batch.rediss", redis)):
            ours = Case(name, "", name, {OURS: CASES[name].contenders[OURS]})
            done = play(ours, Setting(**place, seconds=0.001, queue=f"bench-{os.getpid()}"), 1)
            assert done["left_out"] == {}
            assert done["values"][OURS]["time"][0] > 0
        slow = Case("slow", "", "amqp+10ms", {OURS: CASES["confirmed.amqp+10ms"].contenders[OURS]})
        done = play(slow, Setting(**places["amqp+10ms"], seconds=0.001, queue="bench"), 1)
        # What is confirmed has been there and back.
        assert done["values"][OURS]["time"][0] >= 10_000
