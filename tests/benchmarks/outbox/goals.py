"""What is to be reached."""

from __future__ import annotations

from tests.benchmarks.case import OURS
from tests.benchmarks.goals import Check, Goal

from .claim_case import FEW, MANY, waiting
from .contenders import CELERY, FOUR
from .insert_case import BULK, KEYED
from .latency_case import OURS_POLLING

__all__ = ["GOALS"]


def at_most(case: str, name: str, figure: str, most: float, unit: str, wanted: str = "") -> Check:
    """A figure of *name* has a bound."""
    return Check(case, f"{wanted}≤ {most:,g} {unit}", (name, figure), most=most)


#: In the order of the page.
GOALS: tuple[Goal, ...] = (
    Goal(
        "One relay, through Django",
        "itself",
        (Check("drain", "≥ 4,000 rows/s", (OURS, "rate"), least=4_000),),
    ),
    Goal(
        "One relay, through Django",
        CELERY,
        (
            Check(
                "drain",
                f"≥ 8 × as many rows/s as {CELERY}",
                (OURS, "rate"),
                (CELERY, "rate"),
                least=8,
            ),
        ),
    ),
    Goal(
        "Four relays",
        "one",
        (
            Check("drain", "≥ 2 × as many rows/s", (FOUR, "rate"), (OURS, "rate"), least=2),
            Check("drain", "100 % arrive", (FOUR, "arrived"), least=100),
        ),
    ),
    Goal(
        "From the commit to the broker",
        "itself",
        (
            at_most("latency", OURS, "p50", 30, "ms", "with NOTIFY p50 "),
            at_most("latency", OURS_POLLING, "p50", 1_000, "ms", "without, looking once a second, p50 "),
        ),
    ),
    Goal(
        "What a message adds to a transaction",
        "the transaction without it",
        (
            at_most("insert", OURS, "added", 300, "µs"),
            at_most("insert", KEYED, "added", 300, "µs", "with a key "),
            at_most("insert", BULK, "added", 300, "µs", "each of 1,000 in `bulk()` "),
        ),
    ),
    Goal(
        "A claim where ten million rows wait",
        "one where ten thousand do",
        (
            Check(
                "claim",
                "≤ 1.5 × as long",
                (waiting(MANY), "claim"),
                (waiting(FEW), "claim"),
                most=1.5,
            ),
        ),
    ),
)  # fmt: skip
