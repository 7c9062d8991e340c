"""Runs the tests in several processes side by side: `make test` and `make test-greenlets`.

    side_by_side.py tests                # all of them, with coverage; those that measure time come last, and alone
    side_by_side.py greenlets [FOLDER…]  # these folders on gevent and on eventlet

Most tests wait: for a broker, for another process, for time to pass. A part is one pytest with the files of one line of
`PARTS`; a file that no line names belongs to the last part. What a part says is shown when it has ended.

With BRIEF=1 nothing is counted for the coverage, and greenlets are gevent's alone.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What is run as one; those that take longest begin.
PARTS: dict[str, tuple[str, ...]] = {
    "engine": ("tests/engine/*",),
    "Django's outbox": ("tests/with_django/outbox/*",),
    "Django": ("tests/with_django/*",),
    "Celery's workers": ("tests/with_celery/test_[op-z]*",),
    "many tasks of Celery": ("tests/with_celery/test_many*",),
    "broker, f to h": ("tests/broker/test_[f-h]*",),
    "documentation": ("tests/test_docs.py", "tests/test_readme.py"),
    "scenarios": ("tests/scenarios/*",),
    "broker, s to z": ("tests/broker/test_[s-z]*",),
    "Celery": ("tests/with_celery/*",),
    "the examples": ("tests/integration/test_demo*",),
    "control, across machines": ("tests/control/test_remote*",),
    "control, q to z": ("tests/control/test_[q-z]*",),
    "broker, l to o": ("tests/broker/test_[l-o]*",),
    "outbox": ("tests/outbox/*",),
    "Flask": ("tests/with_flask/*",),
    "broker, a to e": ("tests/broker/test_[a-e]*",),
    "publisher": ("tests/publisher/*",),
    "broker, p and q": ("tests/broker/test_[pq]*",),
    "control, a to p": ("tests/control/*",),
    "integration": ("tests/integration/test_[d-z]*",),
    "databases": ("tests/test_databases.py",),
    "the rest": ("tests/test_*", "tests/benchmarks/*"),
    "integration of control": ("tests/integration/*",),
    "broker, r": ("tests/broker/test_r*",),
    "broker, i to k": ("tests/broker/*",),
    "what no other part has": ("tests/*",),
}
#: Parts that are not counted, which costs as much as they do: they play what others have tested piece by piece.
UNCOUNTED = {"many tasks of Celery", "scenarios"}
#: Most of them wait, most of the time.
AT_ONCE = 6
#: Seconds for one part, on a busy machine.
LIMIT = 1800
PYTHON = (sys.executable, "-P")
#: They share a folder.
QUIETLY = ("-q", "-p", "no:cacheprovider")
LIBRARIES = ("gevent", "eventlet")
#: Whether all steps are run on one machine: without what takes longest, and finds least.
BRIEF = os.environ.get("BRIEF") == "1"


@dataclass
class Part:
    title: str
    command: Sequence[str]
    folder: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)
    outcome: int = 1
    text: str = ""
    seconds: float = 0.0
    #: Seconds of processor time, with those of the processes that it has started and waited for.
    busy: float = 0.0

    def run(self) -> None:
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            limit = threading.Timer(LIMIT, process.kill)
            limit.start()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = self.outcome = os.waitstatus_to_exitcode(status)
            limit.cancel()
            self.busy = used.ru_utime + used.ru_stime
            if self.outcome == -signal.SIGKILL:
                out.seek(0, os.SEEK_END)
                out.write(f"\nkilled, perhaps because it took more than {LIMIT} s\n")
            out.seek(0)
            self.text = out.read()
        self.seconds = time.monotonic() - began


def files_of(
    folders: Iterable[str] = ("tests",), parts: Mapping[str, tuple[str, ...]] = PARTS
) -> dict[str, list[str]]:
    """The files of tests in *folders*, each in one of *parts*."""
    found = sorted(
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("test_*.py")
    )
    divided: dict[str, list[str]] = {}
    for file in found:
        title = next(t for t, patterns in parts.items() if any(fnmatch(file, p) for p in patterns))
        divided.setdefault(title, []).append(file)
    return {title: divided[title] for title in parts if title in divided}


def side_by_side(parts: Sequence[Part]) -> bool:
    """Run them, and tell of each when it ends; whether all passed."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor:
        running = {executor.submit(part.run): part for part in parts}
        for future in concurrent.futures.as_completed(running):
            future.result()
            part = running[future]
            result = "passed" if part.outcome == 0 else f"FAILED ({part.outcome})"
            took = f"{part.seconds:.0f} s ({part.busy:.0f} s of processor time)"
            print(f"--- {part.title}: {result} in {took}\n{part.text}", flush=True)
    return all(part.outcome == 0 for part in parts)


def tests() -> bool:
    pytest = ("-m", "pytest", *QUIETLY, "-m")
    counted = (*PYTHON, "-m", "coverage", "run", *pytest)
    passed = side_by_side(
        [
            Part(
                title,
                ((*PYTHON, *pytest) if BRIEF or title in UNCOUNTED else counted)
                + ("not timing", *files),
            )
            for title, files in files_of().items()
        ]
    )
    alone = (*PYTHON, *pytest) if BRIEF else counted
    return side_by_side([Part("what measures time, alone", (*alone, "timing"))]) and passed


def greenlets(folders: Sequence[str]) -> bool:
    on = ROOT / "tests" / "under_greenlets.py"
    return side_by_side(
        [
            Part(f"{title}, on {library}", (*PYTHON, str(on), library, *QUIETLY, *files))
            for title, files in files_of(folders).items()
            for library in (LIBRARIES[:1] if BRIEF else LIBRARIES)
        ]
    )


def main(what: str, *folders: str) -> int:
    began = time.monotonic()
    passed = greenlets(folders) if what == "greenlets" else tests()
    print(f"{what}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] not in (["tests"], ["greenlets"]):
        raise SystemExit(__doc__)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(*sys.argv[1:]))
