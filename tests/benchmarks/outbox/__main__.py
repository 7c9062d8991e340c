"""Measures the outbox beside others, and writes down what came of it: `make bench-outbox`."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from tests.benchmarks.__main__ import machine, show, versions
from tests.benchmarks.pythons import ROOT
from tests.benchmarks.report import Played, goal_table, lines_of
from tests.brokers import Unavailable

from . import claim_case, drain_case, insert_case, latency_case
from .bench import WHERE, Bench
from .report import RESULTS, OutboxRun, write
from .rows import make_tables
from .servers import Servers
from .sizes import FULL, SHORT

KEPT = ROOT / "docs" / "explanation" / "outbox-performance"
SHOWN = ROOT / ".venv" / "bench" / "results" / "outbox"
#: Whose versions are told.
TOLD = (
    *("django", "psycopg", "kombu", "amqp", "celery"),
    *("django-celery-outbox", "django-outbox-pattern", "stomp-py"),
)
#: Every case, in the order in which they run.
CASES: dict[str, Callable[[Bench], Played]] = {
    "drain": drain_case.play,
    "latency": latency_case.play,
    "insert": insert_case.play,
    "claim": claim_case.play,
}


def play(name: str, bench: Bench) -> Played:
    """Play one case; what it fails with is noted."""
    try:
        return CASES[name](bench)
    except Exception as error:
        why = f"failed: {type(error).__name__}: {error}"
        return Played(name, WHERE, {}, left_out={"everybody": why})


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-outbox", description=__doc__)
    parser.add_argument("--only", default="", help=f"some of the cases {', '.join(CASES)}")
    parser.add_argument("--commit", action="store_true", help="keep the run for the page")
    parser.add_argument("--short", action="store_true", help="few rows and short rounds")
    parser.add_argument("--rows", type=int, help="rows that wait while others are claimed")
    parser.add_argument("--render", action="store_true", help="write the kept run's text anew")
    asked = parser.parse_args()
    if asked.render:
        print(write(KEPT).relative_to(ROOT))
        return 0
    only = asked.only.replace(",", " ").split()
    if unknown := set(only) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}: {', '.join(CASES)}")
    if asked.commit and only:
        parser.error("the page shows all cases: COMMIT=1 goes without ONLY")
    sizes = SHORT if asked.short else FULL
    if asked.rows is not None:
        if asked.rows <= claim_case.FEW:
            parser.error(f"ROWS has to be more than {claim_case.FEW:,}")
        sizes = replace(sizes, waiting=asked.rows)
    remark = (
        "A short run: it shows that everything works, and not what it costs." if asked.short else ""
    )
    run = OutboxRun(
        platform.python_version(), time.strftime("%Y-%m-%d"), machine(), versions(TOLD), remark
    )
    try:
        with Servers() as servers:
            servers.place.set_up_django()
            make_tables()
            run.versions |= servers.versions()
            for name in only or CASES:
                bench = Bench(servers, sizes, lambda line: print(line, file=sys.stderr, flush=True))
                run.cases[name] = played = play(name, bench)
                print(f"\n{name}: {played.title}")
                show([row[1:] for row in lines_of(name, played)] if played.figures else [])
                for who, why in played.left_out.items():
                    print(f"{who}: left out: {why}")
                sys.stdout.flush()
    except Unavailable as why:
        print(f"nothing can be measured: {why}", file=sys.stderr)
        return 1
    print("\nThe goals:")
    show(goal_table(run.verdicts(), run.goals))
    print(run.summary())
    folder = KEPT if asked.commit else SHOWN
    folder.mkdir(parents=True, exist_ok=True)
    run.dump(folder / RESULTS)
    print(f"\n{write(folder).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
