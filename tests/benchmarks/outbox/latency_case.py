"""How long a message takes from the commit to a consumer at the broker."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import kombu

from tests.benchmarks.case import OURS
from tests.benchmarks.measure import percentile
from tests.benchmarks.report import Played

from .bench import WHERE, Bench, leaving_out
from .contenders import CELERY, CONTENDERS, PATTERN, write_ours
from .place import POLLING
from .relays import RelayProcess

__all__ = ["OURS_POLLING", "play"]

OURS_POLLING = "ours, without NOTIFY"
FIGURES = {"p50": "ms, p50", "p99": "ms, p99", "arrived": "% of the messages arrived"}
#: The arguments of each contender's relay. All of them look once a second, but for the one that is notified.
RELAYS = {
    OURS: ("ours", "notified"),
    OURS_POLLING: ("ours", "polling"),
    CELERY: ("celery",),
    PATTERN: ("pattern",),
}
#: Seconds between two messages of any contenders, in the middle: at random, so that no relay's looks are met.
PAUSE = 0.02
#: Seconds that a message may take.
ARRIVAL = 30.0

Write = Callable[[], str]


class Arrivals:
    """A consumer of several queues, in a thread of its own, which notes when each message arrives."""

    def __init__(self, url: str, queues: list[str]) -> None:
        self._url, self._queues = url, queues
        self._stopping = False
        self.times: dict[str, float] = {}
        self._thread = threading.Thread(target=self._consume, name="arrivals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        self._thread.join()

    def _consume(self) -> None:
        with kombu.Connection(self._url) as connection:
            queues = [kombu.Queue(name, durable=True, no_declare=True) for name in self._queues]
            with connection.Consumer(queues, on_message=self._note, no_ack=True):
                while not self._stopping:
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    def _note(self, message: Any) -> None:
        at = time.perf_counter()
        known = {**message.properties, **message.headers}
        # That of ours, of a Celery task, of django-outbox-pattern.
        for name in ("dop-msg-id", "message_id", "correlation_id"):
            if known.get(name):
                self.times[str(known[name])] = at
                return

    def wait_for(self, ids: Mapping[str, float]) -> bool:
        """Whether all of *ids* arrive in time."""
        deadline = time.monotonic() + ARRIVAL
        while not ids.keys() <= self.times.keys():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def play(bench: Bench) -> Played:
    """Commit a message of each contender in turn, and see when it arrives."""
    played = Played("from the commit to a consumer", WHERE, FIGURES)
    queues = {name: f"bench-{RELAYS[name][-1]}" for name in RELAYS}
    for queue in queues.values():
        bench.servers.declare(queue)
    with ExitStack() as stack:
        arrivals = stack.enter_context(Arrivals(bench.place.broker, list(queues.values())))
        writers: dict[str, Write] = {}
        for name in RELAYS:
            bench.note(f"latency: starting {name}")
            with leaving_out(played, name):
                write = writer_of(bench, name, queues[name])
                stack.enter_context(RelayProcess(bench.place, "run", *RELAYS[name]))
                first = {committed(write)[0]: 0.0}
                if not arrivals.wait_for(first):
                    raise TimeoutError(f"its first message has not arrived within {ARRIVAL:g} s")
                writers[name] = write
        bench.note(f"latency: {bench.sizes.messages} messages of each")
        commits = commit_in_turn(writers, bench.sizes.messages)
        for name, times in commits.items():
            arrivals.wait_for(times)
            played.values[name] = figures_of(times, arrivals.times)
    return played


def writer_of(bench: Bench, name: str, queue: str) -> Write:
    """What writes one message in the open transaction.

    :raises Missing: if the contender is not installed.
    """
    if name == OURS_POLLING:
        return partial(write_ours, bench.place, queue, using=POLLING)
    CONTENDERS[name].check(bench.place)
    return partial(CONTENDERS[name].write, bench.place, queue)


def committed(write: Write) -> tuple[str, float]:
    """Write a message, and commit; its id, and the time after the commit."""
    from django.db import transaction

    with transaction.atomic():
        message_id = write()
    return message_id, time.perf_counter()


def commit_in_turn(writers: Mapping[str, Write], messages: int) -> dict[str, dict[str, float]]:
    """Commit so many of each; by contender and id, the time."""
    commits: dict[str, dict[str, float]] = {name: {} for name in writers}
    for _ in range(messages):
        for name, write in writers.items():
            message_id, at = committed(write)
            commits[name][message_id] = at
            time.sleep(random.uniform(0, 2 * PAUSE))
    return commits


def figures_of(
    commits: Mapping[str, float], arrivals: Mapping[str, float]
) -> dict[str, list[float]]:
    """Of the times of commits and arrivals by id; a message that did not arrive has no time."""
    # It may arrive before the client knows of the commit.
    took = [max(0.0, arrivals[one] - at) * 1e3 for one, at in commits.items() if one in arrivals]
    share = {"arrived": [100 * len(took) / max(1, len(commits))]}
    if not took:
        return share
    return {"p50": [percentile(took, 50)], "p99": [percentile(took, 99)], **share}
