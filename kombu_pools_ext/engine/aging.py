"""What time does to a pool's entries: expiry, keep-alives, leaks, and what is due next.

Decisions, as the ledger's: to be called with the pool's lock held.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection
from operator import attrgetter
from typing import TypeVar

from .lease import Borrower, Entry
from .ledger import FOREVER, Ledger

__all__ = [
    "due_lent",
    "due_to_keep",
    "expire",
    "nap",
    "overdue_leases",
    "put_back",
    "refill",
    "reserve",
    "skip_time",
]

T = TypeVar("T")

_used_at = attrgetter("used_at")

#: Seconds between two looks at idle connections while a gate is shut: its opening is read from them.
GATE_POLL = 0.25
#: What is due within this part of its interval is looked after with the first that is due: a thousand connections must
#: not wake the thread a thousand times.
EARLY = 0.125
#: The shortest pause before ``min_idle`` is asked for again.
REFILL_PAUSE = 0.25


def expire(ledger: Ledger[T]) -> list[tuple[Entry[T], str]]:
    """What has been idle for too long, or lives too long, to be closed. ``min_idle`` outlives idleness."""
    now = ledger.clock()
    idle = list(ledger.idle)
    reasons: dict[Entry[T], str] = {}
    for entry in idle:
        # Left behind by a thread that was killed in the moment of a drain or a close.
        misplaced = ledger.reason_to_close(entry) if ledger.closed or entry.outdated else None
        reason = misplaced or ("lifetime" if now >= entry.expires_at else None)
        if reason is not None:
            reasons[entry] = reason
    spare = max(0, len(idle) - len(reasons) - ledger.options.min_idle)
    # From the left: the longest unused.
    stale = [e for e in idle if e not in reasons and e.used_at + e.idle_span <= now][:spare]
    reasons.update(dict.fromkeys(stale, "idle"))
    return [(entry, reasons[entry]) for entry in ledger.retire_idle(list(reasons))]


def refill(ledger: Ledger[T]) -> int:
    """Plan what ``min_idle`` asks for, and return how many openings to start."""
    missing = ledger.options.min_idle - len(ledger.idle)
    if missing <= 0 or not ledger.keep or ledger.shut or len(ledger.warming):
        return 0
    return ledger.plan(missing)


def overdue_leases(ledger: Ledger[T]) -> list[tuple[Borrower | None, float]]:
    """Leases held for longer than ``leak_after`` that have not been reported: who, and for how long."""
    after = ledger.options.leak_after
    if after is None:
        return []
    now = ledger.clock()
    found = [e for e in ledger.lent if now - e.taken_at >= after and e.reported != e.loan]
    for entry in found:
        entry.reported = entry.loan
    return [(entry.borrower, now - entry.taken_at) for entry in found]


def due_to_keep(ledger: Ledger[T]) -> list[Entry[T]]:
    """Idle entries whose keep-alive is due: each is to be reserved, looked at, and put back."""
    now = ledger.clock()
    if ledger.shut_gates:
        # Whoever shut one may have gone without a word, or been closed just before. What is still being opened may have
        # been told already, and is held by nobody yet.
        held = None if len(ledger.openings) else [entry.item for entry in ledger.held.alive()]
        for gate in list(ledger.shut_gates):
            gate.open_but_for(held)
    ledger.forget_open_gates()
    if ledger.shut_gates:
        return list(ledger.idle)
    return _due(list(ledger.idle), now)


def _due(entries: Collection[Entry[T]], now: float) -> list[Entry[T]]:
    """Those of *entries* whose keep-alive is due, and if there are any, those who are next."""
    soon = [e for e in entries if e.keep_at <= now + (e.keep_every or 0.0) * EARLY]
    return soon if [entry for entry in soon if entry.keep_at <= now] else []


def due_lent(ledger: Ledger[T]) -> list[Entry[T]]:
    """Lent entries whose keep-alive is due; the next one is due an interval later."""
    now = ledger.clock()
    due = _due(ledger.lent, now)
    for entry in due:
        entry.keep_at = now + (entry.keep_every or FOREVER)
    return due


def reserve(ledger: Ledger[T], entry: Entry[T]) -> bool:
    """Take *entry* out of the idle ones; ``False`` if it was lent or closed meanwhile."""
    try:
        ledger.idle.remove(entry)
    except ValueError:
        return False
    ledger.reserved.keep(entry)
    return True


def put_back(ledger: Ledger[T], entry: Entry[T], alive: bool) -> str | None:
    """End the reservation of *entry*; the reason for which it must be closed now, or ``None``."""
    ledger.reserved.drop(entry)
    reason = ledger.reason_to_close(entry)
    if not alive:
        reason = reason or "dead"
        ledger.suspect_all()
    if reason is not None:
        ledger.begin_closing(entry)
        return reason
    entry.keep_at = ledger.clock() + (entry.keep_every or FOREVER)
    # Where it was: the warmest on the right. In a copy, for the list may change meanwhile.
    ledger.idle.insert(bisect(list(ledger.idle), entry.used_at, key=_used_at), entry)
    return None


def skip_time(ledger: Ledger[T], seconds: float) -> None:
    """The clock, or the machine, has left *seconds* out: nothing expires for that, and everything is suspect."""
    ledger.suspect_all()
    for entry in ledger.held.alive():
        entry.expires_at += seconds
        entry.taken_at += seconds
        entry.used_at += seconds
        if entry.keep_every is not None:
            entry.keep_at = min(entry.keep_at, ledger.clock())


def nap(ledger: Ledger[T]) -> float | None:
    """Seconds until something may be due; ``None`` if nothing ever will be as things stand."""
    options = ledger.options
    refilling = bool(options.min_idle) and not ledger.shut
    if not ledger.held and not ledger.openings and not refilling:
        return None
    now = ledger.clock()
    idle = list(ledger.idle)
    due = [min(e.expires_at, e.used_at + e.idle_span, e.keep_at) - now for e in idle]
    due += [entry.keep_at - now for entry in ledger.lent]
    # What is lent now may come back at any time: look again within half of each interval.
    due += [span / 2 for span in (options.idle_timeout, options.leak_after) if span]
    if ledger.shut_gates:
        due.append(GATE_POLL)
    if refilling and len(idle) < options.min_idle:
        due.append(max(ledger.breaker.retry_at - now, REFILL_PAUSE))
    return min(due, default=FOREVER)
