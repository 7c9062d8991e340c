"""Run mypy and pyright on the files beside this one, with a kombu that has types and with one that has none.

``python -m tests.typed``, in the environment of the type checkers. A line that ends with ``# wrong`` must have an
error, and no other line may have one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: The environments, and whether kombu has types there.
KOMBUS = {"lint": False, "test": True}
WRONG = re.compile(r"  # wrong( \(typed kombu\))?$")
TOLD = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+): error: (?P<words>.*)$", re.MULTILINE)

#: File and line.
Place = tuple[str, int]


def run(checker: str, *options: str | Path) -> str:
    """What *checker* prints."""
    done = subprocess.run(
        [sys.executable, "-m", checker, *options], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        sys.exit(f"{checker} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def mypy(python: Path) -> dict[Place, str]:
    """What mypy reports, by place."""
    cache = ROOT / ".mypy_cache" / f"typing-{python.parts[-3]}"
    options = [
        "--config-file",
        HERE / "mypy.ini",
        "--python-executable",
        python,
        "--cache-dir",
        cache,
    ]
    done = run("mypy", *options, *files())
    return {
        (Path(told["file"]).name, int(told["line"])): told["words"] for told in TOLD.finditer(done)
    }


def pyright(python: Path) -> dict[Place, str]:
    """What pyright reports, by place."""
    done = run("pyright", "--project", HERE, "--pythonpath", python, "--outputjson")
    return {
        (Path(told["file"]).name, told["range"]["start"]["line"] + 1): told["message"]
        for told in json.loads(done)["generalDiagnostics"]
        if told["severity"] == "error"
    }


#: A type checker, and whether it knows an untyped kombu: pyright reads its code.
CHECKERS: dict[str, tuple[Callable[[Path], dict[Place, str]], bool]] = {
    "mypy": (mypy, False),
    "pyright": (pyright, True),
}


def files() -> list[Path]:
    return sorted(one for one in HERE.glob("*.py") if not one.name.startswith("_"))


def wrong_places(*, typed: bool) -> set[Place]:
    """The lines that must have an error; with *typed*, those too that need kombu's types."""
    return {
        (file.name, number)
        for file in files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if (found := WRONG.search(line)) and (typed or not found[1])
    }


def differences(told: dict[Place, str], expected: set[Place]) -> Iterator[str]:
    for name, line in sorted(told.keys() | expected):
        if (name, line) not in expected:
            yield f"{name}:{line}: {told[name, line]}"
        elif (name, line) not in told:
            yield f"{name}:{line}: no error is found here"


def main() -> int:
    failed = False
    for name, (check, knows) in CHECKERS.items():
        for environment, typed in KOMBUS.items():
            python = ROOT / ".venv" / environment / "bin" / "python"
            told = check(python)
            wrong = list(differences(told, wrong_places(typed=typed or knows)))
            failed = failed or bool(wrong)
            print(
                f"{name}, kombu of .venv/{environment}: {len(told)} errors, {len(wrong)} unexpected"
            )
            print("".join(f"  {one}\n" for one in wrong), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
