"""What runs the tests: none is left out, and what is fetched for them is what was asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import kombu
import pytest

from tests import from_debian, installing, interpreters, matrix, side_by_side
from tests.brokers import PrivateRabbitMQ, PrivateRedis, Unavailable, asked_for

ROOT = Path(__file__).parent.parent


def every_file() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))


def test_side_by_side_each_file_is_in_one_part() -> None:
    divided = [file for files in side_by_side.files_of().values() for file in files]
    assert sorted(divided) == every_file()


def test_the_parts_that_are_not_counted_exist() -> None:
    assert side_by_side.files_of().keys() >= side_by_side.UNCOUNTED


def test_the_greenlets_get_each_file_of_their_folders() -> None:
    folders = ("tests/engine", "tests/broker", "tests/publisher")
    divided = side_by_side.files_of(folders).values()
    wanted = [file for file in every_file() if file.startswith(folders)]
    assert sorted(file for files in divided for file in files) == wanted


def test_a_part_that_fails_fails_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    good = side_by_side.Part("good", [*side_by_side.PYTHON, "-c", "print('3 passed')"])
    bad = side_by_side.Part("bad", [*side_by_side.PYTHON, "-c", "raise SystemExit('1 failed')"])
    assert side_by_side.side_by_side([good])
    assert not side_by_side.side_by_side([good, bad])
    told = capsys.readouterr().out
    assert re.search(r"--- good: passed in \d+ s \(\d+ s of processor time\)\n3 passed\n", told)
    assert re.search(
        r"--- bad: FAILED \(1\) in \d+ s \(\d+ s of processor time\)\n1 failed\n", told
    )


def steps_of_ci() -> list[str]:
    text = (ROOT / ".ci" / "run").read_text()
    return re.findall(r'^(?:step|beside) "([a-z]+)"', text, re.MULTILINE)


def made(output: str) -> list[str]:
    """What make was asked for, but for environments."""
    return [one for one in re.findall(r"^made (\S+)", output, re.MULTILINE) if one[0] != "."]


def test_the_workflow_runs_each_step_of_ci() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (block,) = re.findall(r"^        step:\n((?: {10}- [a-z]+\n)+)", workflow, re.MULTILINE)
    assert sorted(re.findall(r"- (\w+)", block)) == sorted(steps_of_ci())


def ci(*steps: str, make: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", ".ci/run", *steps], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def make(tmp_path: Path) -> Path:
    """A make that writes what it is asked for, and fails at the types."""
    program = tmp_path / "make"
    program.write_text('#!/bin/sh\necho "made $*"\n[ "$1" != types ]\n')
    program.chmod(0o755)
    return program


def test_ci_goes_on_after_a_step_that_failed(make: Path) -> None:
    done = ci(make=make)
    assert done.returncode == 1
    output, table = done.stdout.split("=== all in ")
    assert len(made(output)) == len(steps_of_ci())
    assert re.search(r"^types +FAILED \(1\) in \d+ s$", table, re.MULTILINE)


def test_ci_tells_at_the_end_what_failed(make: Path) -> None:
    make.write_text(
        '#!/bin/sh\necho "made $*"\nseq 100\n'
        'case $* in *" test") echo "FAILED tests/test_x.py::test_y - AssertionError"; exit 1;; esac\n'
    )
    last = ci("style", "tests", make=make).stdout.split("=== what failed in ")[1:]
    assert last == ["tests\nFAILED tests/test_x.py::test_y - AssertionError\n"]


def test_ci_shows_the_end_of_a_step_that_does_not_say_what_failed(make: Path) -> None:
    (last,) = ci("types", make=make).stdout.split("=== what failed in ")[1:]
    assert last == "types\nmade types\n"


def test_ci_shows_what_ran_at_the_same_time_one_after_the_other(make: Path) -> None:
    make.write_text('#!/bin/sh\nfor i in 1 2 3; do echo "$1 $i"; sleep 0.05; done\n')
    shown = ci("style", "types", "documentation", make=make).stdout
    for what in ("types", "style", "docs"):
        assert f"{what} 1\n{what} 2\n{what} 3\n=== " in shown


def test_ci_runs_the_steps_that_are_named_and_no_others(make: Path) -> None:
    done = ci("style", "demo", make=make)
    assert done.returncode == 0
    assert made(done.stdout) == ["style", "demo"]


def test_ci_refuses_a_step_that_it_does_not_have(make: Path) -> None:
    done = ci("style", "stlye", make=make)
    assert done.returncode == 1
    assert "not every one of these is a step: style stlye" in done.stdout


def test_a_part_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "LIMIT", 0.5)
    part = side_by_side.Part(
        "hangs", [*side_by_side.PYTHON, "-c", "import time\nprint(1, flush=True)\ntime.sleep(60)"]
    )
    part.run()
    assert part.outcome == -signal.SIGKILL
    assert "killed, perhaps because it took more than 0.5 s" in part.text


# -- what installs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uv", ["installs", "fails", "is missing"])
def test_what_uv_does_not_install_pip_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: str
) -> None:
    told = tmp_path / "told"
    for name, outcome in (("UV", int(uv == "fails")), ("WITH_PIP", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{told}"\nexit {outcome}\n')
        program.chmod(0o755)
        monkeypatch.setattr(installing, name, program)
    if uv == "is missing":
        (tmp_path / "UV").unlink()
    installing.install("here/python", "-r", "lock.txt")
    by_uv = "UV pip install --quiet --compile-bytecode --python here/python -r lock.txt"
    by_pip = (
        "WITH_PIP -m pip --disable-pip-version-check --python here/python install -qq -r lock.txt"
    )
    expected = {"installs": [by_uv], "fails": [by_uv, by_pip], "is missing": [by_pip]}
    assert told.read_text().splitlines() == expected[uv]


def test_what_neither_can_install_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "UV", tmp_path / "none")
    monkeypatch.setattr(installing, "WITH_PIP", "false")
    with pytest.raises(subprocess.CalledProcessError):
        installing.install("here/python", "-r", "lock.txt")


# -- the matrix --------------------------------------------------------------------------------------------------------


@pytest.fixture
def everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFTER_TESTS", raising=False)
    monkeypatch.setattr(matrix, "BRIEF", False)
    monkeypatch.setattr(matrix, "find_python", lambda version: f"/usr/bin/python{version}")
    monkeypatch.setattr(matrix, "fetched", {"rabbitmq": ["4.0", "4.3"], "redis": ["8.0"]}.get)


@pytest.mark.usefixtures("everything_there")
def test_each_version_that_is_supported_is_in_a_cell() -> None:
    runs, missing = matrix.plan()
    assert not missing
    assert {run.python for run in runs} == set(interpreters.PYTHONS)
    assert {run.brokers.get("rabbitmq") for run in runs} == {None, "4.0", "4.3"}
    assert {run.brokers.get("redis") for run in runs} == {None, "8.0"}
    assert {run.stack for run in runs} == {"lowest", "newest"}
    assert {run.django for run in runs} == set(matrix.djangos())


def test_each_python_that_the_project_names_is_tested_and_no_other() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    named = [line.split(" :: ")[-1] for line in text.splitlines() if ":: Python :: 3." in line]
    assert [name.rstrip('",') for name in named] == list(interpreters.PYTHONS)


@pytest.mark.usefixtures("everything_there")
def test_a_cell_runs_each_file_once_but_those_that_no_version_breaks() -> None:
    runs, _ = matrix.plan()
    for run in runs:
        divided = sorted(file for files in run.parts().values() for file in files)
        folders = tuple(f"{folder}/" for folder in run.tests or ("tests",))
        wanted = [file for file in every_file() if file.startswith(folders)]
        left_out = matrix.OF_NO_VERSION + run.left_out
        assert divided == [file for file in wanted if not file.startswith(left_out)]


@pytest.mark.usefixtures("everything_there")
def test_a_brief_matrix_runs_some_of_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = matrix.plan()
    whole = [run.parts() for run in runs]
    monkeypatch.setattr(matrix, "BRIEF", True)
    for run, parts in zip(runs, whole, strict=True):
        brief = run.parts()
        # pytest without a file would run all of them.
        assert brief
        assert all(brief.values())
        assert sum(map(len, brief.values())) < sum(map(len, parts.values()))


@pytest.mark.usefixtures("everything_there")
def test_the_folders_that_a_cell_names_are_there() -> None:
    for cell in matrix.CELLS:
        named = (
            *(*cell.tests, *cell.left_out),
            *(*matrix.OF_NO_VERSION, *matrix.OF_FEW_VERSIONS),
        )
        assert all((ROOT / name).exists() for name in named)


@pytest.mark.usefixtures("everything_there")
def test_the_engine_is_tested_on_each_python() -> None:
    runs, _ = matrix.plan()
    with_it = {run.python for run in runs if not run.tests or "tests/engine" in run.tests}
    assert with_it == set(interpreters.PYTHONS)


@pytest.mark.usefixtures("everything_there")
def test_the_oldest_and_the_newest_are_tested_whole() -> None:
    runs, _ = matrix.plan()
    whole = [run for run in runs if not (run.tests or run.left_out or run.of_rabbitmq)]
    ends = {(run.python, run.stack) for run in whole}
    assert {("3.11", "newest"), (interpreters.PYTHONS[-1], "newest")} == ends
    assert {run.brokers.get("rabbitmq") for run in whole} == {None, "4.3"}
    assert {run.brokers.get("rabbitmq") for run in runs} == {None, "4.0", "4.3"}


@pytest.mark.usefixtures("everything_there")
def test_what_uses_kombu_or_flask_runs_on_their_lowest() -> None:
    (lowest,) = (run for run in matrix.plan()[0] if run.stack == "lowest")
    run = {file for files in lowest.parts().values() for file in files}
    uses = tuple(f"tests/{one}/" for one in ("broker", "publisher", "with_flask", "with_celery"))
    assert {file for file in every_file() if file.startswith(uses)} <= run
    assert {"tests/control/test_remote.py", "tests/control/test_remote_brokers.py"} <= run
    without_databases = matrix.LEFT_OUT + matrix.OF_DATABASES
    assert {lowest.markers(title) for title in lowest.parts()} == {without_databases}


@pytest.mark.usefixtures("everything_there")
def test_databases_are_tested_with_each_django() -> None:
    with_them = [run for run in matrix.plan()[0] if run.databases]
    assert {run.django for run in with_them} == {run.django for run in matrix.plan()[0]}
    assert all(matrix.OF_DATABASES not in run.markers("the rest") for run in with_them)
    assert not any(run.tests or run.left_out for run in with_them)


@pytest.mark.usefixtures("everything_there")
def test_what_needs_rabbitmq_runs_on_each_release_of_it() -> None:
    for run in matrix.plan()[0]:
        tests = {
            title: run.markers(title).replace(matrix.OF_DATABASES, "") for title in run.parts()
        }
        assert all(
            f"{markers} and broker".startswith(matrix.LEFT_OUT) for markers in tests.values()
        )
        narrow = {title for title, markers in tests.items() if markers != matrix.LEFT_OUT}
        files = [file for title in narrow for file in run.parts()[title]]
        assert all(file.startswith("tests/broker/") for file in files)
        assert bool(narrow) == (run.brokers.get("rabbitmq") == "4.0")


@pytest.mark.usefixtures("everything_there")
def test_where_a_python_is_missing_what_else_its_cell_varies_is_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"3.11": "/usr/bin/python3.11", "3.12": "/usr/bin/python3.12"}
    monkeypatch.setattr(matrix, "find_python", found.get)
    runs, missing = matrix.plan()
    assert missing == ["Python 3.13", "Python 3.14"]
    assert {run.brokers.get("rabbitmq") for run in runs} == {None, "4.0", "4.3"}
    assert {run.python for run in runs} == {"3.11", "3.12"}


@pytest.mark.usefixtures("everything_there")
def test_without_newer_brokers_the_matrix_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "fetched", lambda broker: [])
    runs, missing = matrix.plan()
    assert missing == ["a newer rabbitmq", "a newer redis"]
    assert not any(run.brokers for run in runs)
    assert {run.python for run in runs} == set(interpreters.PYTHONS)


# -- what is fetched ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "sources.list",
            "# deb http://other.example/debian x\ndeb http://m.example/debian/ x main\n",
        ),
        ("sources.list", "deb [arch=amd64 signed-by=/a/b.gpg] http://m.example/debian x main\n"),
        ("sources.list.d/d.sources", "Types: deb\nURIs: http://m.example/debian\nSuites: x\n"),
        (
            "sources.list.d/d.sources",
            "URIs: http://n.example/debian-security http://m.example/debian\n",
        ),
    ],
    ids=["a line", "with options", "a stanza", "two in a stanza"],
)
def test_the_archive_is_the_one_of_this_machine(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_debian, "SOURCES", tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert from_debian.archive() == "http://m.example/debian"


@pytest.mark.parametrize("what", from_debian.FETCHES)
def test_where_nothing_can_be_fetched_it_says_why_and_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(from_debian, "BROKERS", tmp_path / "brokers")
    monkeypatch.setattr(from_debian, "WRK", tmp_path / "wrk")
    monkeypatch.setattr(interpreters, "FETCHED", tmp_path / "python")
    monkeypatch.setattr(interpreters, "find_python", lambda version: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert from_debian.main(what) == 0
    told = capsys.readouterr().err
    without = from_debian.FETCHES[what][1]
    assert told.startswith(f"{what}: not fetched, so {without}: there is no apt-get")
    assert not list(tmp_path.rglob(".fetched"))


@pytest.mark.slow
@pytest.mark.parametrize("release", from_debian.fetched("rabbitmq"))
def test_a_private_node_is_of_the_release_that_was_asked_for(release: str) -> None:
    with PrivateRabbitMQ(release=release) as node, kombu.Connection(node.url) as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.connection.server_properties["version"].startswith(f"{release}.")
        assert len(node.list_connections()) == 1


@pytest.mark.parametrize("release", from_debian.fetched("redis"))
def test_a_private_redis_is_of_the_release_that_was_asked_for(release: str) -> None:
    with PrivateRedis(release=release) as server, kombu.Connection(server.url) as connection:
        told = connection.default_channel.client.info("server")
        assert told["redis_version"].startswith(f"{release}.")


def test_the_shared_rabbitmq_is_of_the_release_that_was_asked_for(amqp_url: str) -> None:
    with kombu.Connection(amqp_url) as connection:
        connection.ensure_connection(max_retries=1)
        version = connection.connection.server_properties["version"]
    assert f"{version}.".startswith(f"{asked_for('rabbitmq') or version}.")


def test_the_shared_redis_is_of_the_release_that_was_asked_for(redis_url: str) -> None:
    with kombu.Connection(redis_url) as connection:
        version = connection.default_channel.client.info("server")["redis_version"]
    assert f"{version}.".startswith(f"{asked_for('redis') or version}.")


@pytest.mark.parametrize("server", [PrivateRabbitMQ, PrivateRedis])
def test_a_release_that_was_not_fetched_is_told_with_the_remedy(
    server: type[PrivateRabbitMQ] | type[PrivateRedis],
) -> None:
    with pytest.raises(Unavailable, match=r" 1\.0 is not there: `make brokers`"):
        server(release="1.0").__enter__()
