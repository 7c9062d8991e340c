"""Runs the tests on every supported combination: `make matrix`.

Python 3.11, 3.12 and 3.13 (those that are found) × Django 5.2 and newest × lowest and newest kombu and Flask. Lowest is
the floor in pyproject.toml, with a lock file of its own; newest is the lock file's that `make test` installs.
`--floors` prints those floors, for `make lock`. Where a Python's newest Django is 5.2, one run stands for both.
Environments stay under .venv/matrix/ and are made anew when what belongs in them changes.

The oldest and the newest Python run all tests with both, the ones between with the newest alone: what an old kombu
breaks on them, it breaks on a neighbour. What another Django changes is all that runs on it: the tests of the Django
app and of the documentation, whose examples use it; once for each Python.

With AFTER_TESTS=1 the run that `make test` has just been is left out: this Python, and the lock file.

Arguments are passed to pytest. Tests marked `slow` or `timing` are left out: the first for time, the second because two
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv" / "matrix"
PYTHONS = ("3.11", "3.12", "3.13")
DJANGO_LTS = "5.2"
AT_ONCE = 2
LEFT_OUT = "not slow and not timing"
#: The tests that another Django may change.
OF_DJANGO = ("tests/with_django", "tests/test_docs.py")
#: The lock file of each stack: of kombu and Flask.
LOCKS = {"newest": "test.txt", "lowest": "lowest.txt"}
#: What the lowest stack has at its floor.
AT_FLOOR = ("kombu", "flask")
#: Whose versions the table tells.
TOLD = ("django", "flask", "kombu", "amqp", "celery")
#: Seconds for one run: several minutes for a whole suite, and more on a busy machine.
LIMIT = 1800

_print = threading.Lock()


def say(text: str) -> None:
    with _print:
        print(text, flush=True)


# -- what is to be run -------------------------------------------------------------------------------------------------


def candidates(version: str) -> Iterator[list[str]]:
    """Commands that may start this Python, likeliest first."""
    yield [f"python{version}"]
    roots = [os.environ.get("PYENV_ROOT"), "~/.pyenv"]
    if shutil.which("pyenv"):
        roots.insert(
            0, subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        )
    for root in filter(None, roots):
        for path in sorted(
            Path(root).expanduser().glob(f"versions/{version}*/bin/python"), reverse=True
        ):
            yield [str(path)]
    if shutil.which("py"):
        yield ["py", f"-{version}"]
    yield [sys.executable]


def find_python(version: str) -> str | None:
    """The path of an interpreter of this version with venv, or None. A shim that starts another does not count."""
    wanted = tuple(map(int, version.split(".")))
    check = f"import sys, venv; assert sys.version_info[:2] == {wanted}; print(sys.executable)"
    for command in candidates(version):
        try:
            done = subprocess.run(
                [*command, "-c", check], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip()
    return None


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


@dataclass
class Run:
    python: str
    interpreter: str
    django: str
    stack: str  # "lowest" or "newest": of kombu and Flask
    outcome: str = "not run"
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"py{self.python}-django{'.'.join(self.django.split('.')[:2])}-{self.stack}"

    @property
    def folder(self) -> Path:
        return HOME / self.name

    def tests(self) -> tuple[str, ...]:
        """What is run: everything, or what another Django may change."""
        return () if self.django == newest_django(self.python) else OF_DJANGO

    def was_make_test(self) -> bool:
        """Whether `make test` has just run the same."""
        mine = ".".join(map(str, sys.version_info[:2]))
        just_ran = os.environ.get("AFTER_TESTS") == "1"
        return just_ran and self.python == mine and self.stack == "newest" and not self.tests()

    def requirements(self) -> list[str]:
        """What pip is asked for: the lock file of the stack; another Django without its marker."""
        wanted = locked(self.stack)
        if self.tests():
            lts = next(v for v in djangos(self.stack) if v.startswith(f"{DJANGO_LTS}."))
            without_marker = re.sub(" *;.*?(?= --hash)", "", djangos(self.stack)[lts])
            wanted = [line for line in wanted if name_of(line) != "django"] + [without_marker]
        return wanted


def plan() -> tuple[list[Run], list[str]]:
    runs: list[Run] = []
    missing = []
    for version in PYTHONS:
        interpreter = find_python(version)
        if interpreter is None:
            missing.append(f"Python {version}")
            continue
        newest = newest_django(version)
        at_an_end = version in (PYTHONS[0], PYTHONS[-1])
        stacks = ("lowest", "newest") if at_an_end else ("newest",)
        runs += [Run(version, interpreter, newest, stack) for stack in stacks]
        if not newest.startswith(f"{DJANGO_LTS}."):
            runs.append(Run(version, interpreter, DJANGO_LTS, "newest" if at_an_end else "lowest"))
    # The long ones first.
    runs.sort(key=lambda run: bool(run.tests()))
    return [run for run in runs if not run.was_make_test()], missing


# -- running it --------------------------------------------------------------------------------------------------------


def set_up(run: Run, wheel: Path, log: Path) -> None:
    wanted = run.requirements()
    stamp = run.folder / ".requirements"
    mark = hashlib.sha256("\n".join([run.interpreter, *wanted]).encode()).hexdigest()
    python = run.folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "-qq",
    ]
    with log.open("ab") as out:

        def call(*command: str) -> None:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

        if not stamp.exists() or stamp.read_text() != mark:
            shutil.rmtree(run.folder, ignore_errors=True)
            call(run.interpreter, "-m", "venv", "--without-pip", str(run.folder))
            asked = HOME / f"{run.name}.txt"
            asked.write_text("\n".join(wanted) + "\n")
            call(*pip, "--require-hashes", "-r", str(asked))
            stamp.write_text(mark)
        call(*pip, "--no-deps", "--no-index", "--force-reinstall", str(wheel))


def carry_out(run: Run, wheel: Path, arguments: list[str]) -> None:
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
        # -B and no cache: two runs share the tests' folder.
        command = [
            python,
            "-P",
            "-B",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            LEFT_OUT,
            *(arguments or run.tests()),
        ]
        with log.open("ab") as out:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "EXPECT_INSTALLED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            )
        run.outcome = "passed" if done.returncode == 0 else "failed"
    except (OSError, subprocess.SubprocessError) as exc:
        run.outcome = "failed"
        with log.open("a") as out:
            out.write(f"\n{exc}\n")
    run.seconds = time.monotonic() - started
    text = log.read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    say(f"{run.name}: {run.outcome} in {run.seconds:.0f} s: {last.strip('= ')}")
    if run.outcome == "failed":
        say(f"--- {log.relative_to(ROOT)}, its end:\n{text[-6000:]}\n---")


def main(arguments: list[str]) -> int:
    if arguments == ["--floors"]:
        print(*(f"{name}=={floors()[name]}" for name in AT_FLOOR), sep="\n")
        return 0
    HOME.mkdir(parents=True, exist_ok=True)
    (wheel,) = (ROOT / ".venv" / "wheel").glob("*.whl")
    runs, missing = plan()
    for what in missing:
        say(f"{what}: not found, so nothing runs on it")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor:
        for future in [executor.submit(carry_out, run, wheel, arguments) for run in runs]:
            future.result()

    say(f"\n{'Python':8}{'Django':9}{'Flask':9}{'kombu':9}{'py-amqp':9}{'Celery':9}{'':8}seconds")
    for run in runs:
        columns = "".join(f"{run.versions.get(name, '?'):9}" for name in TOLD)
        say(f"{run.python:8}{columns}{run.outcome:8}{run.seconds:7.0f}")
    failed = [run.name for run in runs if run.outcome != "passed"]
    names = f" ({', '.join([*failed, *missing])})" if failed or missing else ""
    say(
        f"matrix: {len(runs) - len(failed)} passed, {len(failed)} failed, {len(missing)} skipped{names}"
    )
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
