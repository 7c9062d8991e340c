"""Rounds of contenders, interleaved; and what is made of them: medians, and ratios with their spread."""

from __future__ import annotations

import gc
import statistics
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Play",
    "Ratio",
    "Round",
    "interleave",
    "median",
    "number",
    "percentile",
    "processing",
    "ratio",
    "statement",
    "timed",
]

#: Does its thing so many times, and returns the seconds that took.
Play = Callable[[int], float]
#: Plays one round, and returns its figures by name.
Round = Callable[[], Mapping[str, float]]

#: The most turns of a round, however short they are.
MOST_TURNS = 1_000_000


def statement(code: str, **names: Any) -> Play:
    """*code*, with these names, in a loop that costs next to nothing."""
    return timeit.Timer(code, globals=names).timeit


def processing(code: str, **names: Any) -> Play:
    """The same for what never waits: in seconds of the processor's, which other programs take nothing of."""
    return timeit.Timer(code, globals=names, timer=time.process_time).timeit


def calibrate(play: Play, seconds: float) -> int:
    """How many turns last about *seconds*. The first turn, which may open a connection, does not count."""
    play(1)
    turns = 1
    while True:
        # The better of two: one that was held up would make for rounds of a few turns.
        took = min(play(turns), play(turns))
        if took >= seconds / 4 or turns >= MOST_TURNS:
            return max(1, min(MOST_TURNS, round(turns * seconds / max(took, 1e-9))))
        turns *= 4


def timed(play: Play, seconds: float, *, per: int = 1) -> Round:
    """A round of about *seconds*, whose one figure, ``time``, is microseconds.

    :param per: the messages of a turn, where the figure is to be of one.
    """
    turns = calibrate(play, seconds)
    return lambda: {"time": play(turns) / turns / per * 1e6}


def interleave(
    contenders: Mapping[str, Round],
    rounds: int,
    before: Callable[[], None] | None = None,
    failed: dict[str, Exception] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Play *rounds* of each: one of each in turn, so that whatever else the machine does befalls all of them.

    Each round begins with another contender, for what comes first may find a cold cache. The garbage collector runs
    before each contender's turn, and not during it, whoever it is.

    :param failed: gets the error of each contender whose round fails; the others play on without it. With ``None``
        the error is raised.
    :returns: by contender and figure, the values in the order of the rounds.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if name not in values:
                continue
            if before is not None:
                before()
            gc.collect()
            gc.disable()
            try:
                figures = contenders[name]()
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
                del values[name]
                continue
            finally:
                gc.enable()
            for figure, value in figures.items():
                values[name].setdefault(figure, []).append(value)
    return values


def median(values: Sequence[float]) -> float:
    """The median; of no values there is none, and a `statistics.StatisticsError`."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which *percent* of them lie; the nearest of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True)
class Ratio:
    """How many times one is the other: the median of the rounds' own quotients, and their quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} × ({number(self.low)}–{number(self.high)})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of the values of two contenders in the same rounds: round by round, for a busy moment befalls both of them.

    What is zero below counts as very little.
    """
    pairs = [a / (b or 1e-9) for a, b in zip(above, below, strict=False)]
    if len(pairs) == 1:
        return Ratio(pairs[0], pairs[0], pairs[0])
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return Ratio(middle, low, high)


def number(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 12,300."""
    if value >= 100:
        digits = max(0, len(str(int(value))) - 3)
        return f"{round(value, -digits):,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
