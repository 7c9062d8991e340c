"""A relay as a process of its own: ``python -m tests.benchmarks.outbox.relay_process drain|run WHOSE [OPTION…]``.

It says "ready" when everything is imported. With ``drain`` it publishes what is there for each line on its standard
input, and answers with JSON: the ``seconds`` that took, ``processor`` seconds of the process, and those of its ``main``
thread. The input ``profile`` has it answer with the ``lines`` of a profile instead. With ``run`` it is the relay as its
users run it, until a signal ends it.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.child import LINES, where

from .contenders import celery_app
from .place import POLLING, Place

#: Wall clock, processor time of the process, and of this thread.
CLOCKS = {
    "seconds": time.perf_counter,
    "processor": time.process_time,
    "main": time.thread_time,
}


def now() -> dict[str, float]:
    """What each clock says."""
    return {name: clock() for name, clock in CLOCKS.items()}


def since(began: dict[str, float], ended: dict[str, float]) -> dict[str, float]:
    """What has passed on each clock."""
    return {name: ended[name] - value for name, value in began.items()}


# -- ours ------------------------------------------------------------------------------------------


def drain_ours(place: Place) -> dict[str, float]:
    """As ``manage.py kombu_pools relay --once``."""
    from django.core.management import call_command

    began = now()
    call_command("kombu_pools", "relay", "--once", "--using", "default", stdout=io.StringIO())
    return since(began, now())


def run_ours(place: Place, kind: str = "notified") -> None:
    """As ``manage.py kombu_pools relay``; or one that hears no notifications, as behind a pgbouncer."""
    from django.core.management import call_command

    if kind == "notified":
        call_command("kombu_pools", "relay", "--using", "default", "--poll", "1")
        return
    from django_app import conf
    from django_app.outbox.database import own_connection
    from kombu_pools_ext.control.command_line import Screen
    from kombu_pools_ext.outbox.command_line import run_relay

    with own_connection() as database:
        database.listen = lambda channel: None  # type: ignore[method-assign]
        run_relay(conf.pools, database, Screen(say, say), using=[POLLING], poll=1.0)


# -- django-celery-outbox --------------------------------------------------------------------------


def drain_celery(place: Place, threads: str, confirm: str) -> dict[str, float]:
    """As ``manage.py celery_outbox_relay --publish-concurrency THREADS --idle-time 0``, until the table is empty."""
    from django_celery_outbox.relay import Relay, RelayConfig
    from django_celery_outbox.relay._message_selector import MessageSelector

    looks: list[dict[str, float]] = []

    class Watched(MessageSelector):
        """Ends the relay when nothing is left."""

        def run(self) -> Any:
            looks.append(now())
            messages = super().run()
            if not messages:
                os.kill(os.getpid(), signal.SIGTERM)
            return messages

    config = RelayConfig.init(publish_concurrency=int(threads), idle_time=0)
    app = celery_app(place.broker, confirm == "confirm")
    Relay(app, config, Watched(batch_size=config.batch_size)).start()
    # The last look found nothing: all was done when it began.
    return since(looks[0], looks[-1])


def run_celery(place: Place) -> None:
    """As ``manage.py celery_outbox_relay``."""
    from django_celery_outbox.relay import Relay, RelayConfig

    Relay(celery_app(place.broker, True), RelayConfig.init()).start()


# -- django-outbox-pattern -------------------------------------------------------------------------


def drain_pattern(place: Place) -> dict[str, float]:
    """What ``manage.py publish`` does, until nothing is left."""
    from django_outbox_pattern.choices import StatusChoice
    from django_outbox_pattern.factories import factory_producer
    from django_outbox_pattern.models import Published

    producer = factory_producer()
    began = now()
    while Published.objects.filter(status=StatusChoice.SCHEDULE).exists():
        producer.publish_message_from_database()
    return since(began, now())


def run_pattern(place: Place) -> None:
    """As ``manage.py publish``."""
    from django.core.management import call_command

    call_command("publish")


DRAINS: dict[str, Callable[..., dict[str, float]]] = {
    "ours": drain_ours,
    "celery": drain_celery,
    "pattern": drain_pattern,
}
RUNS: dict[str, Callable[..., None]] = {
    "ours": run_ours,
    "celery": run_celery,
    "pattern": run_pattern,
}


def profile(drain: Callable[[], object]) -> list[tuple[str, float, int]]:
    """Where the main thread of a drain spends its time: function, percent of the time in itself, calls."""
    profiler = cProfile.Profile()
    profiler.runcall(drain)
    found: Any = pstats.Stats(profiler)
    total = found.total_tt or 1e-9
    functions = sorted(found.stats.items(), key=lambda item: -item[1][2])[:LINES]
    return [
        (where(*function), round(100 * itself / total, 1), calls)
        for function, (_, calls, itself, _, _) in functions
    ]


def say(line: str) -> None:
    """To whoever has started this process."""
    print(line, file=sys.__stdout__, flush=True)


def main(what: str, whose: str, *options: str) -> None:
    place = Place.of_environment()
    place.set_up_django(pause=0 if what == "drain" else 1)
    # What libraries print is no answer.
    sys.stdout = sys.stderr
    if what == "run":
        say("ready")
        RUNS[whose](place, *options)
        return
    say("ready")
    for line in sys.stdin:
        if line.strip() == "profile":
            say(json.dumps({"lines": profile(lambda: DRAINS[whose](place, *options))}))
        else:
            say(json.dumps(DRAINS[whose](place, *options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
