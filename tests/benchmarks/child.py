"""Plays one case, in a process of its own: ``python -m tests.benchmarks.child CASE``, the order on standard input.

The order is JSON: the place's ``url`` and ``ca``, ``seconds`` a round, ``watch`` and ``rounds``. The answer, on
standard output, has the ``values`` by contender and figure, and who was ``left_out``, and why. With ``profile`` in the
order it has ``lines`` instead: what our contender spends a round on.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kombu

from .case import OURS, Case, Missing, Setting, chosen
from .measure import Round, interleave

__all__ = ["LINES", "play", "profile"]

#: Lines of a profile: the functions that most is spent in.
LINES = 12

#: Whose functions are told by module.
PACKAGES = ("kombu_pools_ext", "kombu", "amqp", "redis", "vine", "tests")
#: Messages that the queue keeps; the oldest go first. Nobody consumes them.
KEPT = 1_000


@contextmanager
def a_queue(setting: Setting) -> Iterator[Callable[[], None] | None]:
    """Where the messages go, for the length of a case; gives what is to be done before each round."""
    if setting.url.startswith("amqp"):
        with kombu.Connection(setting.url, ssl=setting.ssl or False) as connection:
            channel: Any = connection.default_channel
            channel.queue_declare(
                setting.queue, durable=False, auto_delete=False, arguments={"x-max-length": KEPT}
            )
        try:
            yield None
        finally:
            with kombu.Connection(setting.url, ssl=setting.ssl or False) as connection:
                connection.default_channel.queue_delete(setting.queue)
    elif setting.url.startswith("redis"):
        import redis

        with redis.Redis.from_url(setting.url, **(setting.ssl or {})) as client:
            try:
                yield lambda: client.delete(setting.queue) and None
            finally:
                client.delete(setting.queue)
    elif setting.url.startswith("memory"):
        with kombu.Connection(setting.url) as connection:
            channel = connection.default_channel
            channel.queue_declare(setting.queue)
            yield lambda: channel.queue_purge(setting.queue) and None
    else:
        yield None


def play(case: Case, setting: Setting, rounds: int) -> dict[str, Any]:
    """Set all contenders up, and play their rounds.

    A contender whose package is missing, or that fails, is left out.
    """
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        before = stack.enter_context(a_queue(setting))
        ready: dict[str, Round] = {}
        for name, contender in case.contenders.items():
            try:
                ready[name] = stack.enter_context(contender(setting))
            except Missing as missing:
                left_out[name] = str(missing)
            except Exception as error:
                left_out[name] = f"failed: {type(error).__name__}: {error}"
        failed: dict[str, Exception] = {}
        values = interleave(ready, rounds, before, failed)
    for name, error in failed.items():
        left_out[name] = f"failed in a round: {type(error).__name__}: {error}"
    if case.bare in values:
        add_above(values, values[case.bare]["processor"])
    return {"values": values, "left_out": left_out}


def add_above(values: dict[str, dict[str, list[float]]], bare: list[float]) -> None:
    """Give each contender the figure ``above``: its processor time less the *bare* one of the same round."""
    for figures in values.values():
        if "processor" in figures and figures["processor"] is not bare:
            figures["above"] = [
                mine - least for mine, least in zip(figures["processor"], bare, strict=True)
            ]


def profile(case: Case, setting: Setting) -> list[tuple[str, float, int]]:
    """Where our contender spends a round: functions, the percent of the time in each itself, and its calls.

    The profiler sees one thread, and makes much of short functions.
    """
    with a_queue(setting), case.contenders[OURS](setting) as round_:
        profiler = cProfile.Profile()
        profiler.runcall(round_)
    found: Any = pstats.Stats(profiler)
    total = found.total_tt or 1e-9
    functions = sorted(found.stats.items(), key=lambda item: -item[1][2])
    lines = [
        (where(*function), round(100 * itself / total, 1), calls)
        for function, (_, calls, itself, _, _) in functions
    ]
    parts: dict[str, tuple[float, int]] = {}
    for function, (_, calls, itself, _, _) in functions:
        share, count = parts.get(part := part_of(function[0]), (0.0, 0))
        parts[part] = share + 100 * itself / total, count + calls
    every = sorted(parts.items(), key=lambda item: -item[1][0])
    sums = [(f"all of {part}", round(share, 1), calls) for part, (share, calls) in every]
    return [line for line in sums if line[1] >= 1] + lines[:LINES]


def part_of(path: str) -> str:
    """The package that a file is of; ours by its part."""
    if path == "~":
        return "what is written in C"
    parts = Path(path).parts
    for package in PACKAGES:
        if package in parts:
            at = len(parts) - 1 - parts[::-1].index(package)
            ours = package == "kombu_pools_ext" and len(parts) > at + 2
            return f"{package}.{parts[at + 1]}" if ours else package
    return "everything else"


def where(path: str, line: int, name: str) -> str:
    """A function, and the module that it is in, without the machine's folders."""
    if path == "~":
        return name.replace("<", "").replace(">", "")
    module = Path(path).with_suffix("")
    for package in PACKAGES:
        if package in module.parts:
            at = len(module.parts) - 1 - module.parts[::-1].index(package)
            return f"{'.'.join(module.parts[at:])}: {name}"
    return f"{module.name}: {name}"


def main(name: str) -> None:
    order = json.load(sys.stdin)
    rounds = order.pop("rounds")
    profiled = order.pop("profile", False)
    (case,) = (case for case in chosen(name) if case.name == name)
    setting = Setting(queue=f"bench-{os.getpid()}", **order)
    # What libraries print is no part of the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    json.dump(
        {"lines": profile(case, setting)} if profiled else play(case, setting, rounds), answer
    )


if __name__ == "__main__":
    main(sys.argv[1])
