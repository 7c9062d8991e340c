"""How fast relays bring rows to the broker, and what that takes of the processors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from tests.benchmarks.case import OURS
from tests.benchmarks.measure import Round, interleave
from tests.benchmarks.report import Played

from .bench import WHERE, Bench, leaving_out
from .contenders import CONTENDERS, Contender
from .relays import RelayProcess
from .rows import fill, start_afresh
from .servers import Servers, processor_of

__all__ = ["play"]

FIGURES = {
    "rate": "rows/s",
    "relay": "µs of the relays' processor time a row",
    "main": "µs of it in their main threads",
    "postgresql": "µs of PostgreSQL's",
    "rabbitmq": "µs of RabbitMQ's",
    "arrived": "% of the messages arrived",
}
QUEUE = "bench"
#: Rows that a relay publishes before it is measured, so that connections and imports do not count.
WARM_UP = 200
#: Of the rows of a round, those that a profile is made of.
PROFILED = 0.25
#: Seconds until what was published is in the queue.
ARRIVAL = 20.0


def play(bench: Bench) -> Played:
    """Have each contender's relays drain its table in turn."""
    played = Played("relays drain a table of waiting messages", WHERE, FIGURES)
    bench.servers.declare(QUEUE)
    with ExitStack() as stack:
        rounds: dict[str, Round] = {}
        relays: dict[str, list[RelayProcess]] = {}
        for name, contender in CONTENDERS.items():
            bench.note(f"drain: starting {name}")
            with leaving_out(played, name):
                contender.check(bench.place)
                relays[name] = [
                    stack.enter_context(RelayProcess(bench.place, "drain", *contender.relay))
                    for _ in range(contender.processes)
                ]
                rows = contender.rows // bench.sizes.divisor
                drain(bench, contender, relays[name], min(rows, WARM_UP))
                rounds[name] = partial(drain, bench, contender, relays[name], rows)
        failed: dict[str, Exception] = {}
        played.values = interleave(rounds, bench.sizes.rounds, failed=failed)
        for name, error in failed.items():
            played.left_out[name] = f"failed in a round: {type(error).__name__}: {error}"
        if OURS in played.values:
            ours = CONTENDERS[OURS]
            rows = int(ours.rows * PROFILED) // bench.sizes.divisor
            fill(ours, bench.place, QUEUE, rows)
            relays[OURS][0].ask("profile")
            played.profile = [tuple(line) for line in relays[OURS][0].answer()["lines"]]
    return played


def drain(
    bench: Bench, contender: Contender, relays: Sequence[RelayProcess], rows: int
) -> Mapping[str, float]:
    """One round."""
    bench.note(f"drain: {rows:,} rows, {contender.name}")
    servers = bench.servers
    servers.declare(QUEUE)
    fill(contender, bench.place, QUEUE, rows)
    before = processor_of(servers.postgresql), processor_of(servers.rabbitmq)
    for relay in relays:
        relay.ask("drain")
    answers = [relay.answer() for relay in relays]
    arrived = wait_for(servers, rows)
    after = processor_of(servers.postgresql), processor_of(servers.rabbitmq)
    start_afresh(contender.table)
    return figures_of(rows, answers, before, after, arrived)


def wait_for(servers: Servers, rows: int) -> int:
    """Return how many messages are in the queue once there are so many, or it takes too long."""
    deadline = time.monotonic() + ARRIVAL
    while True:
        arrived = servers.count(QUEUE)
        if arrived >= rows or time.monotonic() > deadline:
            return arrived
        # What was not confirmed may still be on its way, and there is no event to wait for.
        time.sleep(0.02)


def figures_of(
    rows: int,
    answers: Sequence[Mapping[str, float]],
    before: tuple[float, float],
    after: tuple[float, float],
    arrived: int,
) -> dict[str, float]:
    """A round's figures.

    :param answers: of the relays, which have begun together: seconds.
    :param before: processor seconds of PostgreSQL and of RabbitMQ.
    :param arrived: how many messages are in the queue.
    """

    def each(seconds: float) -> float:
        return seconds / rows * 1e6

    return {
        "rate": rows / max(one["seconds"] for one in answers),
        "relay": each(sum(one["processor"] for one in answers)),
        "main": each(sum(one["main"] for one in answers)),
        "postgresql": each(after[0] - before[0]),
        "rabbitmq": each(after[1] - before[1]),
        "arrived": 100 * arrived / rows,
    }
