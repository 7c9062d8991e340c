"""What the tests of the scenarios share: how long they play, and what they judge."""

from __future__ import annotations

from dataclasses import replace

from .plays import SCENARIOS
from .stage import Pace, Record

#: Seconds until all have published again. A pool tries every two seconds; the rest is for a machine that is busy.
RECOVERY = 60.0
PACE = Pace(
    before=0.2,
    outage=2.0,
    after=0.2,
    recovery=RECOVERY,
    patience=3.0,
    pause=0.02,
    threads=6,
    limit=3,
)
#: For those that are played at the same time.
TOGETHER = replace(PACE, pause=0.05, threads=4, limit=2)
#: Seconds that a caller grants where it must get no error because the broker is there all the time. On a busy machine
#: it may get no turn for seconds, and with less time the error would be the machine's.
UNHURRIED = 30.0
#: Seconds that a call may take beyond its deadline where everything else is tested on the same machine: it may get no
#: turn for seconds while a broker starts.
MARGIN = 10.0


def pace_of(name: str, pace: Pace = PACE) -> Pace:
    """*pace* for the scenario: callers that may get no error have time, and are judged by how long they take."""
    if not SCENARIOS[name].unnoticed:
        return pace
    return replace(pace, patience=UNHURRIED, connect=UNHURRIED)


def judge(record: Record) -> None:
    """Whether ours kept its promises; a call may take as long as it could with the time that others have."""
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
