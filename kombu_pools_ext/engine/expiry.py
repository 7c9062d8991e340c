"""What time does to a pool's entries: expiry, keep-alives, leaks, and what is due next.

Decisions, as those of the state: nothing here blocks or calls anybody.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from .decision import Decision
from .lease import Borrower, Entry
from .state import FOREVER, PoolState

__all__ = ["Due", "Expiry"]

T = TypeVar("T")

_used_at = attrgetter("used_at")

#: Seconds between two looks at idle connections while a gate is shut: its opening is read from them.
GATE_POLL = 0.25
#: What is due within this part of its interval is looked after with the first that is due: a thousand connections must
#: not wake the thread a thousand times.
EARLY = 0.125
#: The shortest pause before ``min_idle`` is asked for again.
REFILL_PAUSE = 0.25


def _due(entries: Collection[Entry[T]], now: float) -> list[Entry[T]]:
    """Those of *entries* whose keep-alive is due, and if there are any, those who are next."""
    soon = [e for e in entries if e.keep_at <= now + (e.keep_every or 0.0) * EARLY]
    return soon if [entry for entry in soon if entry.keep_at <= now] else []


@dataclass(slots=True)
class Due(Decision[T]):
    """What is to be done in one round of maintenance."""

    #: Idle entries to keep alive: each is to be reserved, looked at, and put back.
    idle: list[Entry[T]] = field(default_factory=list)
    #: Lent entries to keep alive.
    held: list[Entry[T]] = field(default_factory=list)
    #: Leases held for too long: who borrowed, and how many seconds ago.
    overdue: list[tuple[Borrower | None, float]] = field(default_factory=list)


class Expiry(Generic[T]):
    """Decides what is due, by the clock of *state*; to be used under the pool's lock."""

    def __init__(self, state: PoolState[T]) -> None:
        self._state = state

    def due(self) -> Due[T]:
        """Decide what is to be done now, and move what is to be closed."""
        closings = self._expired()
        openings = self.refill()
        overdue = self._overdue_leases()
        idle, lent = self._due_idle(), self._due_lent()
        # A gate may have lost the last one who kept it shut.
        openings += self._state.pump()
        return Due(openings, closings, idle=idle, held=lent, overdue=overdue)

    def _expired(self) -> list[tuple[Entry[T], str]]:
        """What has been idle for too long, or lives too long, to be closed. ``min_idle`` outlives idleness."""
        state = self._state
        now = state.clock()
        idle = state.idle
        reasons: dict[Entry[T], str] = {}
        for entry in idle:
            # Left behind by a thread that was killed in the middle of a drain, or a close.
            left = state.reason_to_close(entry) if entry.generation != state.generation else None
            reason = left or ("lifetime" if now >= entry.expires_at else None)
            if reason is not None:
                reasons[entry] = reason
        spare = max(0, len(idle) - len(reasons) - state.options.min_idle)
        # From the left: the longest unused.
        stale = [e for e in idle if e not in reasons and e.used_at + e.idle_span <= now][:spare]
        reasons.update(dict.fromkeys(stale, "idle"))
        return [(entry, reasons[entry]) for entry in state.begin_closing_idle(list(reasons))]

    def refill(self) -> int:
        """Plan what ``min_idle`` asks for, and return how many openings to start."""
        state = self._state
        missing = state.options.min_idle - len(state.idle)
        if missing <= 0 or not state.keep or state.shut or len(state.pending_ready):
            return 0
        return state.plan(missing)

    def _overdue_leases(self) -> list[tuple[Borrower | None, float]]:
        """Leases held for longer than ``leak_after`` that have not been reported: who, and for how long."""
        state = self._state
        after = state.options.leak_after
        if after is None:
            return []
        now = state.clock()
        found = [e for e in state.lent if now - e.taken_at >= after and e.reported != e.loan]
        for entry in found:
            entry.reported = entry.loan
        return [(entry.borrower, now - entry.taken_at) for entry in found]

    def _due_idle(self) -> list[Entry[T]]:
        """Idle entries whose keep-alive is due: each is to be reserved, looked at, and put back."""
        state = self._state
        now = state.clock()
        if state.shut_gates:
            # Whoever shut one may have gone without a word, or been closed just before. What is still being opened
            # may have been told already, and is held by nobody yet.
            held = None if len(state.openings) else [entry.item for entry in state.held.alive()]
            for gate in list(state.shut_gates):
                gate.open_but_for(held)
        state.forget_open_gates()
        if state.shut_gates:
            return list(state.idle)
        return _due(state.idle, now)

    def _due_lent(self) -> list[Entry[T]]:
        """Lent entries whose keep-alive is due; the next one is due an interval later."""
        state = self._state
        now = state.clock()
        due = _due(state.lent, now)
        for entry in due:
            entry.keep_at = now + (entry.keep_every or FOREVER)
        return due

    def reserve(self, entry: Entry[T]) -> bool:
        """Take *entry* out of the idle ones; ``False`` if it was lent or closed meanwhile."""
        state = self._state
        try:
            state.idle.remove(entry)
        except ValueError:
            return False
        state.reserved.keep(entry)
        return True

    def put_back(self, entry: Entry[T], alive: bool) -> Decision[T]:
        """End the reservation of *entry*: it is idle again, or to be closed."""
        state = self._state
        state.reserved.drop(entry)
        reason = state.reason_to_close(entry)
        if not alive:
            reason = reason or "dead"
            state.need_checks()
        if reason is not None:
            state.begin_closing(entry)
            return Decision(state.pump(), [(entry, reason)])
        entry.keep_at = state.clock() + (entry.keep_every or FOREVER)
        # Where it was: the one that was used last is at the end.
        state.idle.insert(bisect(state.idle, entry.used_at, key=_used_at), entry)
        return Decision(state.pump())

    def reopened(self, item: T, keep_every: float | None, *, broke: bool) -> None:
        """Look after *item*, which its borrower has opened anew, every *keep_every* seconds; ``None`` for never."""
        state = self._state
        if broke:
            state.need_checks()
        for entry in state.lent:
            if entry.item is item:
                entry.needs_check = False
                entry.keep_every = keep_every
                entry.keep_at = FOREVER if keep_every is None else state.clock() + keep_every

    def skip_time(self, seconds: float) -> None:
        """Have nothing expire for *seconds* that the clock, or the machine, has left out, and everything checked."""
        state = self._state
        state.need_checks()
        for entry in state.held.alive():
            entry.expires_at += seconds
            entry.taken_at += seconds
            entry.used_at += seconds
            if entry.keep_every is not None:
                entry.keep_at = min(entry.keep_at, state.clock())

    def nap(self) -> float | None:
        """Seconds until something may be due; ``None`` if nothing ever will be as things stand."""
        state = self._state
        options = state.options
        refilling = bool(options.min_idle) and not state.shut
        if not state.held and not state.openings and not refilling:
            return None
        now = state.clock()
        idle = state.idle
        due = [min(e.expires_at, e.used_at + e.idle_span, e.keep_at) - now for e in idle]
        due += [entry.keep_at - now for entry in state.lent]
        # What is lent now may come back at any time: look again within half of each interval.
        due += [span / 2 for span in (options.idle_timeout, options.leak_after) if span]
        if state.shut_gates:
            due.append(GATE_POLL)
        if refilling and len(idle) < options.min_idle:
            due.append(max(state.breaker.retry_at - now, REFILL_PAUSE))
        return min(due, default=FOREVER)
