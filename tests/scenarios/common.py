"""What the tests of the scenarios share: how long they play, and what they judge."""

from __future__ import annotations

from dataclasses import replace

from .plays import SCENARIOS
from .stage import Pace, Record

PACE = Pace(
    before=0.2, outage=2.0, after=0.2, recovery=30.0, patience=3.0, pause=0.02, threads=6, limit=3
)
#: For those that are played at the same time.
TOGETHER = replace(PACE, pause=0.05, threads=4, limit=2)
#: Seconds that a call may take beyond its deadline where everything else is tested on the same machine: it may get no
#: turn for seconds while a broker starts.
MARGIN = 10.0


def judge(record: Record) -> None:
    """Whether ours kept its promises."""
    broken = SCENARIOS[record.scenario].broken_promises(record, PACE, MARGIN)
    assert not broken, (broken, record)
    assert record.ok > 0, record


def names(broker: str, *, polite: bool = False) -> list[str]:
    """The scenarios that are played on this broker, beside others or alone."""
    return [
        name
        for name, scenario in SCENARIOS.items()
        if scenario.broker == broker and scenario.polite == polite
    ]
