"""Runs the tests on what is supported: `make matrix`.

Supported are Python 3.11 to 3.14, Django 5.2 and newest, kombu and Flask from their floors in pyproject.toml to the
newest, RabbitMQ 3.10 to 4.3, and Redis 7 and 8. Each of these values is in a cell of `CELLS` that runs what it can
break; not all of them with all others, which would be 96 cells.

- Whole suites: what `make test` runs on Python 3.11, with Django 5.2 and RabbitMQ 3.10; and the newest of all on the
  newest Python, RabbitMQ and Redis.
- The lowest kombu and Flask on Python 3.12: all but `OF_NEITHER`.
- Python 3.13 and RabbitMQ 4.0, which lie between: `BETWEEN`; of the tests of brokers, those that need RabbitMQ. The
  others speak to Redis, to a peer of the tests or to a broker in memory, which are those of other cells; what Python
  3.13 breaks there, 3.12 or 3.14 break as well.
- Tests on PostgreSQL and MariaDB: where whole suites run, with either Django; in the others SQLite has to do.
- Left out of each: `OF_NO_VERSION`.
- Left out altogether: the lowest kombu on the other Pythons (what it breaks there, it breaks on 3.12), and each Django
  on each Python: Django 5.2 runs on 3.11, the newest on 3.14.

Lowest is the floor in pyproject.toml, with a lock file of its own (`--floors` prints those floors, for `make lock`);
newest is the lock file's that `make test` installs. Where a Python is not found, its cell runs on the newest that is,
for what else it varies; where no newer broker has been fetched (`make brokers`), it runs on the one that is installed.
Either is told, and counted as skipped. Environments stay under .venv/matrix/, and one is made anew when what belongs in
it changes. The tests of a cell are divided into `PARTS`, which run side by side, with those of the other cells.

With BRIEF=1 each cell leaves out `OF_FEW_VERSIONS` as well, and Python 3.13 the engine.

With AFTER_TESTS=1 a cell that `make test` has just been is left out: this Python, the lock file, the installed brokers.

Arguments are passed to pytest. Tests marked `slow` or `timing` are left out: the first for time, the second because
suites share the machine. The last line counts, and names what failed or was skipped.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests import side_by_side
from tests.from_debian import fetched
from tests.installing import install
from tests.interpreters import PYTHONS, find_python

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv" / "matrix"
DJANGO_LTS = "5.2"
#: Processes of tests; most of them wait, most of the time.
AT_ONCE = 6
LEFT_OUT = "not slow and not timing"
OF_DATABASES = " and not postgresql and not mariadb"
#: The lock file of each stack: of kombu and Flask.
LOCKS = {"newest": "test.txt", "lowest": "lowest.txt"}
#: What the lowest stack has at its floor.
AT_FLOOR = ("kombu", "flask")
#: Whose versions the table tells.
TOLD = ("django", "flask", "kombu", "amqp", "redis", "celery")

#: How a run tells which brokers it spoke to: conftest.py.
BROKER = re.compile(r"^on (RabbitMQ|Redis) ([\d.]+)$", re.MULTILINE)

_print = threading.Lock()


def say(text: str) -> None:
    with _print:
        print(text, flush=True)


# -- what is to be run -------------------------------------------------------------------------------------------------


def floors() -> dict[str, str]:
    """The lowest version of each distribution that pyproject.toml names for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    found = {}
    for line in lines:
        if match := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", line):
            found[match[1].lower()] = match[2]
    return found


def locked(stack: str) -> list[str]:
    """The requirements of a stack's lock file, each with its marker and hashes in one line."""
    text = (ROOT / ".requirements" / LOCKS[stack]).read_text(encoding="utf-8")
    return [line for line in text.replace("\\\n", "").split("\n") if line]


def name_of(line: str) -> str:
    return re.split(r"[^\w.-]", line, maxsplit=1)[0].lower()


def applies(line: str, version: str) -> bool:
    """Whether a lock file's line is for this Python, as far as its marker speaks of Python's version."""
    number = tuple(map(int, version.split(".")))
    tests = re.findall(r"python_full_version (<|>=) '([\d.]+)'", line)
    return all((number < tuple(map(int, v.split(".")))) == (sign == "<") for sign, v in tests)


def djangos(stack: str = "newest") -> dict[str, str]:
    """The lock file's requirements of Django, by their versions."""
    lines = [line for line in locked(stack) if name_of(line) == "django"]
    return {line.split()[0].partition("==")[2].rstrip(";"): line for line in lines}


def newest_django(version: str) -> str:
    (newest,) = (found for found, line in djangos().items() if applies(line, version))
    return newest


@dataclass(frozen=True)
class Cell:
    """What one run varies; *stack* is of kombu and Flask."""

    python: str
    django: str
    stack: str
    rabbitmq: str
    redis: str
    tests: tuple[str, ...] = ()  # everything
    left_out: tuple[str, ...] = ()
    #: Whether, of the tests of brokers, only those are run that need RabbitMQ.
    of_rabbitmq: bool = False
    #: Whether it runs tests on servers of databases.
    databases: bool = False


NEWEST, LTS, LOWEST = "newest", "lts", "lowest"
INSTALLED, FIRST, LAST = "installed", "the lowest that was fetched", "the newest that was fetched"
#: What Python 3.13 or a broker can break that neither 3.12 nor 3.14 shows.
BETWEEN = ("tests/engine", "tests/broker", "tests/publisher", "tests/integration")
#: What the lowest kombu and Flask cannot break, and Python 3.12, which lies between 3.11 and 3.14, not without one of
#: them: Django, whose newest runs on 3.14; commands over the socket of a process, which is Python's (those by way of a
#: broker run); what the documentation shows, with the names that all the other tests call.
OF_NEITHER = (
    "tests/with_django",
    *(
        f"tests/control/test_{name}.py"
        for name in ("costs", "diagnosis", "first_use", "signing", "sockets", "untrusted")
    ),
    "tests/test_docs.py",
    "tests/test_readme.py",
)
#: What no cell runs: how we measure, lay out and build, and what the tests themselves are made with.
OF_NO_VERSION = (
    "tests/benchmarks",
    "tests/scenarios",
    "tests/test_foreign.py",
    "tests/test_how_tests_run.py",
    "tests/test_layering.py",
    "tests/test_packaging.py",
    "tests/test_proxy.py",
)
#: What a version seldom breaks without breaking what the others test.
OF_FEW_VERSIONS = (
    "tests/control",
    "tests/health",
    "tests/integration",
    "tests/test_docs.py",
    "tests/test_readme.py",
    "tests/test_settings_fuzz.py",
    "tests/testing",
)
BRIEF = os.environ.get("BRIEF") == "1"
#: What is run as one, in about the same time as each of the others. Few: each starts brokers of its own.
PARTS: dict[str, tuple[str, ...]] = {
    "broker, a to l": ("tests/broker/test_[a-l]*",),
    "broker, m to z": ("tests/broker/*",),
    "engine and control": ("tests/engine/*", "tests/control/*"),
    "the rest": ("tests/*",),
}
#: The long ones first.
CELLS = (
    Cell("3.14", NEWEST, NEWEST, LAST, LAST, databases=True),
    Cell("3.12", NEWEST, LOWEST, INSTALLED, INSTALLED, left_out=OF_NEITHER),
    Cell("3.11", LTS, NEWEST, INSTALLED, INSTALLED, databases=True),
    Cell("3.13", NEWEST, NEWEST, FIRST, INSTALLED, BETWEEN, of_rabbitmq=True),
)


@dataclass
class Run:
    python: str
    interpreter: str
    django: str
    stack: str
    brokers: dict[str, str]  # the fetched ones
    tests: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    of_rabbitmq: bool = False
    databases: bool = False
    outcome: str = "not run"
    #: What pytest has counted.
    told: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        django = ".".join(self.django.split(".")[:2])
        brokers = "".join(f"-{broker}{release}" for broker, release in self.brokers.items())
        return f"py{self.python}-django{django}-{self.stack}{brokers}"

    @property
    def folder(self) -> Path:
        return HOME / self.name

    def parts(self) -> dict[str, list[str]]:
        """The files of tests that it runs, by the title of their part."""
        found = side_by_side.files_of(self.tests or ("tests",), PARTS)
        left_out = OF_NO_VERSION + self.left_out
        if BRIEF:
            left_out += OF_FEW_VERSIONS
            if self.of_rabbitmq:
                left_out += ("tests/engine",)
        parts = {
            title: [file for file in files if not file.startswith(left_out)]
            for title, files in found.items()
        }
        # pytest without a file would run all of them.
        return {title: files for title, files in parts.items() if files}

    def markers(self, title: str) -> str:
        """Which tests of a part it runs."""
        only = " and broker" if self.of_rabbitmq and title.startswith("broker") else ""
        without = "" if self.databases else OF_DATABASES
        return LEFT_OUT + without + only

    def environment(self) -> dict[str, str]:
        brokers = {broker.upper(): release for broker, release in self.brokers.items()}
        return {"EXPECT_INSTALLED": "1", "RABBITMQ": "", "REDIS": "", **brokers}

    def was_make_test(self) -> bool:
        """Whether `make test` has just run the same."""
        mine = ".".join(map(str, sys.version_info[:2]))
        return os.environ.get("AFTER_TESTS") == "1" and (
            self.python,
            self.stack,
            self.django,
            self.brokers,
        ) == (mine, NEWEST, newest_django(mine), {})

    def requirements(self) -> list[str]:
        """What is to be installed: the lock file of the stack; another Django without its marker."""
        wanted = locked(self.stack)
        if self.django != newest_django(self.python):
            without_marker = re.sub(" *;.*?(?= --hash)", "", djangos(self.stack)[self.django])
            wanted = [line for line in wanted if name_of(line) != "django"] + [without_marker]
        return wanted


def plan() -> tuple[list[Run], list[str]]:
    """The runs, and what of the supported is not to be had here."""
    interpreters = {version: find_python(version) for version in PYTHONS}
    missing = [f"Python {version}" for version, found in interpreters.items() if found is None]
    there = [version for version, found in interpreters.items() if found is not None]
    releases = {broker: fetched(broker) for broker in ("rabbitmq", "redis")}
    missing += [f"a newer {broker}" for broker, found in releases.items() if not found]
    lts = next(version for version in djangos() if version.startswith(f"{DJANGO_LTS}."))
    runs: list[Run] = []
    for cell in CELLS:
        version = cell.python if cell.python in there else there[-1]
        run = Run(
            version,
            interpreters[version] or "",
            lts if cell.django == LTS else newest_django(version),
            cell.stack,
            {
                broker: releases[broker][-1 if which == LAST else 0]
                for broker, which in (("rabbitmq", cell.rabbitmq), ("redis", cell.redis))
                if which != INSTALLED and releases[broker]
            },
            cell.tests,
            cell.left_out,
            cell.of_rabbitmq,
            cell.databases,
        )
        if run.name not in {other.name for other in runs}:
            runs.append(run)
    return [run for run in runs if not run.was_make_test()], missing


# -- running it --------------------------------------------------------------------------------------------------------


def set_up(run: Run, wheel: Path, log: Path) -> None:
    wanted = run.requirements()
    stamp = run.folder / ".requirements"
    mark = hashlib.sha256("\n".join([run.interpreter, *wanted]).encode()).hexdigest()
    python = run.folder / "bin" / "python"
    with log.open("ab") as out:
        if not stamp.exists() or stamp.read_text() != mark:
            shutil.rmtree(run.folder, ignore_errors=True)
            subprocess.run(
                [run.interpreter, "-m", "venv", "--without-pip", str(run.folder)],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            asked = HOME / f"{run.name}.txt"
            asked.write_text("\n".join(wanted) + "\n")
            install(python, "--require-hashes", "-r", str(asked), out=out)
            stamp.write_text(mark)
        install(python, "--no-deps", "--no-index", "--force-reinstall", str(wheel), out=out)


def carry_out(
    run: Run, wheel: Path, arguments: list[str], executor: concurrent.futures.Executor
) -> None:
    log = HOME / f"{run.name}.log"
    log.write_bytes(b"")
    started = time.monotonic()
    try:
        set_up(run, wheel, log)
        ask = f"from importlib.metadata import version; print(*map(version, {TOLD}))"
        python = str(run.folder / "bin" / "python")
        told = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=True
        ).stdout.split()
        run.versions = dict(zip(TOLD, told, strict=True))
        command = (python, "-P", "-m", "pytest", *side_by_side.QUIETLY, "-m")
        divided = {"what was asked for": arguments} if arguments else run.parts()
        parts = [
            side_by_side.Part(
                title, (*command, run.markers(title), *wanted), environment=run.environment()
            )
            for title, wanted in divided.items()
        ]
        for _ in executor.map(side_by_side.Part.run, parts):
            pass
        # What failed is at the end, which is shown.
        parts.sort(key=lambda part: part.outcome != 0)
        text = "".join(f"--- {part.title}: {part.seconds:.0f} s\n{part.text}" for part in parts)
        with log.open("a") as out:
            out.write(text)
        brokers = BROKER.findall(text)
        run.versions |= dict(brokers)
        run.outcome = "failed" if any(part.outcome for part in parts) else "passed"
        run.told = summary(parts)
        for broker, version in brokers:
            release = run.brokers.get(broker.lower(), version)
            if not f"{version}.".startswith(f"{release}."):
                raise OSError(f"this was {broker} {version}, and not {release}")
    except (OSError, subprocess.SubprocessError) as exc:
        run.outcome = "failed"
        with log.open("a") as out:
            out.write(f"\n{exc}\n")
    run.seconds = time.monotonic() - started
    say(f"{run.name}: {run.outcome} in {run.seconds:.0f} s: {run.told}")
    if run.outcome == "failed":
        text = log.read_text(errors="replace")
        say(f"--- {log.relative_to(ROOT)}, its end:\n{text[-6000:]}\n---")


def summary(parts: list[side_by_side.Part]) -> str:
    """What pytest has counted in all *parts* together."""
    counted: Counter[str] = Counter()
    for part in parts:
        last = next((line for line in reversed(part.text.splitlines()) if line.strip()), "")
        for number, what in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0]):
            counted[what] += int(number)
    return ", ".join(f"{number} {what}" for what, number in counted.items())


def main(arguments: list[str]) -> int:
    if arguments == ["--floors"]:
        print(*(f"{name}=={floors()[name]}" for name in AT_FLOOR), sep="\n")
        return 0
    HOME.mkdir(parents=True, exist_ok=True)
    (wheel,) = (ROOT / ".venv" / "wheel").glob("*.whl")
    runs, missing = plan()
    for what in missing:
        say(f"{what}: not found, so nothing runs on it")
    with (
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as tests,
        concurrent.futures.ThreadPoolExecutor(max(1, len(runs))) as executor,
    ):
        for future in [executor.submit(carry_out, run, wheel, arguments, tests) for run in runs]:
            future.result()

    names = ("Django", "Flask", "kombu", "py-amqp", "redis-py", "Celery", "RabbitMQ", "Redis")
    say(f"\n{'Python':8}{''.join(f'{name:10}' for name in names)}{'':8}seconds")
    for run in runs:
        columns = "".join(
            f"{run.versions.get(name, '?'):10}" for name in (*TOLD, "RabbitMQ", "Redis")
        )
        say(f"{run.python:8}{columns}{run.outcome:8}{run.seconds:7.0f}")
    failed = [run.name for run in runs if run.outcome != "passed"]
    names = f" ({', '.join([*failed, *missing])})" if failed or missing else ""
    say(
        f"matrix: {len(runs) - len(failed)} passed, {len(failed)} failed, {len(missing)} skipped{names}"
    )
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
