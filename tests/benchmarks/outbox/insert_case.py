"""What a message adds to the transaction of a request."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.benchmarks.case import OURS
from tests.benchmarks.report import Played

from .bench import WHERE, Bench, leaving_out
from .contenders import CELERY, CONTENDERS, PATTERN, write_ours
from .rows import ORDERS, start_afresh

__all__ = ["BARE", "BULK", "KEYED", "play"]

BARE = "no message"
KEYED = "ours, with a key"
BULK = "ours, 1,000 in bulk(), each"
FIGURES = {
    "added": "µs added to the transaction",
    "call": "µs of it in the call",
    "transaction": "µs for the transaction",
}
#: Messages of a `bulk()`.
MANY = 1_000
QUEUE = "bench"


@dataclass
class Timed:
    """Seconds of transactions, and of the calls within that write the messages."""

    transactions: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def turn(self, write: Callable[[], object]) -> None:
        """One transaction of an application: it inserts an order, and writes messages."""
        from django.db import connection, transaction

        clock = time.perf_counter
        began = clock()
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO {ORDERS} (customer, total) VALUES (%s, %s) RETURNING id",
                    ["Ada Lovelace", 28],
                )
                cursor.fetchall()
            before = clock()
            write()
            after = clock()
        ended = clock()
        self.transactions.append(ended - began)
        self.calls.append(after - before)

    def figures(self, bare: Timed, messages: int = 1) -> dict[str, float]:
        """Microseconds a message, above a transaction without one: of the middle ones of both."""
        more = statistics.median(self.transactions) - statistics.median(bare.transactions)
        return {
            "added": more / messages * 1e6,
            "call": statistics.median(self.calls) / messages * 1e6,
        }


def play(bench: Bench) -> Played:
    """Have a transaction without a message, and one with each contender's, in turn."""
    played = Played(
        "what a message adds to a transaction that inserts a row of its own", WHERE, FIGURES
    )
    writers = {
        OURS: partial(write_ours, bench.place, QUEUE),
        KEYED: partial(write_ours, bench.place, QUEUE, key=True),
    }
    for name in (CELERY, PATTERN):
        with leaving_out(played, name):
            CONTENDERS[name].check(bench.place)
            writers[name] = partial(CONTENDERS[name].write, bench.place, QUEUE)
    bulk = partial(write_many, bench)
    for name, write in [*writers.items(), (BULK, bulk)]:
        with leaving_out(played, name):
            # What is only done once: imports, prepared statements.
            Timed().turn(write)
    ready = {name: write for name, write in writers.items() if name not in played.left_out}
    for number in range(bench.sizes.rounds):
        bench.note(f"insert: round {number + 1}")
        for name in ready:
            start_afresh(CONTENDERS[OURS if name == KEYED else name].table)
        start_afresh(ORDERS)
        note(played.values, play_round(ready, bulk, bench.sizes.turns, bench.sizes.bulks))
    return played


def write_many(bench: Bench) -> None:
    """A thousand messages by one statement."""
    from django_app.outbox import bulk

    with bulk():
        for _ in range(MANY):
            write_ours(bench.place, QUEUE)


def nothing() -> None:
    """No message."""


def play_round(
    writers: Mapping[str, Callable[[], object]],
    bulk: Callable[[], object],
    turns: int,
    bulks: int,
) -> dict[str, dict[str, float]]:
    """By contender, its figures: so many transactions of each, one of each in turn, and some with a `bulk()`."""
    every: Sequence[tuple[str, Callable[[], object]]] = [(BARE, nothing), *writers.items()]
    timed = {name: Timed() for name, _ in every}
    for turn in range(turns):
        first = turn % len(every)
        for name, write in [*every[first:], *every[:first]]:
            timed[name].turn(write)
    many = Timed()
    for _ in range(bulks):
        many.turn(bulk)
    bare = timed.pop(BARE)
    found = {BARE: {"transaction": statistics.median(bare.transactions) * 1e6}}
    found |= {name: one.figures(bare) for name, one in timed.items()}
    return {**found, BULK: many.figures(bare, MANY)}


def note(
    values: dict[str, dict[str, list[float]]], found: Mapping[str, Mapping[str, float]]
) -> None:
    """Add a round's figures to those of the rounds before."""
    for name, figures in found.items():
        for figure, value in figures.items():
            values.setdefault(name, {}).setdefault(figure, []).append(value)
