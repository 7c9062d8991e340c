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
#: A connection broke, or all did, and the broker was there all the time: no caller sees an error. Not so where the
#: machine was suspended: who was in the middle of a publish may find that its time has passed.
UNNOTICED = {"operator", "idle", "worker", "fork", "clock"}


def judge(record: Record) -> None:
    """Whether ours kept its promises."""
    broken = record.broken_promises(PACE, MARGIN)
    assert not broken, (broken, record)
    assert record.ok > 0, record
    if record.scenario in UNNOTICED:
        assert not record.errors, record


def names(broker: str, *, polite: bool = False) -> list[str]:
    """The scenarios that are played on this broker, beside others or alone."""
    return [
        name
        for name, scenario in SCENARIOS.items()
        if scenario.broker == broker and scenario.polite == polite
    ]
