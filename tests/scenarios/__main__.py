"""Plays every scenario with kombu.pools and with ours, beside each other.

Writes the table into docs/explanation/reliability.md.

`make reliability`, or `python -m tests.scenarios [NAME ...]` for some of them, which writes no table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.brokers import PrivateCluster, PrivateRabbitMQ

from .plays import CLUSTER, RABBITMQ, REDIS, SCENARIOS, DurableRedis, play
from .publisher import CONTENDERS
from .stage import PROMISING, Pace, Record

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

PACE = Pace(before=1.0, outage=8.0, after=4.0, recovery=15.0, patience=5.0, pause=0.02, heartbeat=2)

HEADER = (
    "scenario", "pool", "calls", "reported ok", "errors", "found", "**lost**", "duplicates",
    "longest call", "all publish again",
)  # fmt: skip


def row(title: str, record: Record) -> list[str]:
    errors = ", ".join(f"{count} {name}" for name, count in record.errors.items())
    stuck = f"{record.stuck} stuck" if record.stuck else ""
    duplicates = str(record.duplicates)
    if record.duplicates and not record.indistinct:
        duplicates += " (same id)"
    return [
        title,
        record.contender,
        str(record.attempted),
        str(record.ok),
        "; ".join(filter(None, (errors, stuck))) or "0",
        str(record.found),
        f"**{len(record.lost)}**",
        duplicates,
        f"{'> ' if record.stuck else ''}{record.longest:.1f} s",
        "never" if record.recovered is None else f"{max(0.0, record.recovered):.1f} s",
    ]


def table(records: list[Record]) -> str:
    rows = [list(HEADER), ["---"] * len(HEADER)]
    last = ""
    for record in records:
        title = SCENARIOS[record.scenario].title
        rows.append(row("" if title == last else title, record))
        last = title
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def write(records: list[Record], about: str) -> None:
    text = PAGE.read_text()
    between = f"{BEGIN}\n{about}\n\n{table(records)}\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: between, text, flags=re.DOTALL))


def about(node: PrivateRabbitMQ | None) -> str:
    versions = [f"kombu {version('kombu')}", f"py-amqp {version('amqp')}"]
    versions.append(f"redis-py {version('redis')}")
    if node is not None:
        versions.append(f"RabbitMQ {node.ctl('version').strip()}")
    redis = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"v=(\S+)", redis.stdout)
    versions.append(f"Redis {found.group(1) if found else '?'}")
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} with {', '.join(versions)}, Python "
        f"{platform.python_version()}, {platform.system()}, {os.cpu_count()} cores shared by publishers and broker."
    )


@contextlib.contextmanager
def brokers(kind: str) -> Iterator[Any]:
    """One at a time: the machine is shared."""
    servers: dict[str, Any] = {
        RABBITMQ: PrivateRabbitMQ,
        CLUSTER: PrivateCluster,
        REDIS: DurableRedis,
    }
    with servers[kind]() as broker:
        yield broker


def main(names: list[str], contenders: list[str]) -> int:
    records: dict[tuple[str, str], Record] = {}
    setting = about(None)
    for kind in (RABBITMQ, CLUSTER, REDIS):
        scenarios = [SCENARIOS[name] for name in names if SCENARIOS[name].broker == kind]
        if not scenarios:
            continue
        with brokers(kind) as broker:
            if kind == RABBITMQ:
                setting = about(broker)
            for scenario in scenarios:
                broker.start()
                began = time.monotonic()
                played = play(scenario, scenario.contenders(contenders), broker, PACE)
                for contender, record in played.items():
                    records[scenario.name, contender] = record
                    told = vars(record) | {"lost": record.lost[:5], "denied": record.denied[:5]}
                    print(json.dumps(told))
                print(f"{scenario.name} in {time.monotonic() - began:.0f} s", flush=True)
    rows = [records[name, contender] for name in SCENARIOS for contender in contenders
            if (name, contender) in records]  # fmt: skip
    if len(rows) == sum(len(one.contenders(CONTENDERS)) for one in SCENARIOS.values()):
        write(rows, setting)
    else:
        print(table(rows))
    broken = 0
    for record in rows:
        if record.contender in PROMISING:
            for promise in SCENARIOS[record.scenario].broken_promises(record, PACE):
                broken += 1
                print(f"{record.scenario}, {record.contender}: {promise}", file=sys.stderr)
    return broken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--pool", choices=CONTENDERS, action="append")
    given = parser.parse_args()
    sys.exit(main(given.names or list(SCENARIOS), given.pool or [*CONTENDERS]) > 0)
