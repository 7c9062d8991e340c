"""The one maintenance thread of a process, and what it does for each pool.

The thread is a helper: it begins with the first open item and ends with the last, it holds no pool alive, and where
it cannot run, acquire does its work when it is overdue.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from . import aging, fork, ways_out
from .agenda import Agenda
from .threads import spawn_thread

if TYPE_CHECKING:
    from .lease import Entry
    from .pool import Pool

__all__ = ["OVERDUE", "TOGETHER", "NoUpkeep", "Upkeep", "close_together", "shared", "tend"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds that borrowers leave the thread before they do its work themselves.
OVERDUE = 5.0
#: Seconds for the goodbyes of one round, or of the process, however many and however silent the peers.
TOGETHER = 1.0
#: Seconds that a nap may last too long before the clock, or the machine, is taken to have stood still.
LATE = 5.0
#: Seconds between two rounds, at the most and at the least.
LONGEST_NAP, SHORTEST_NAP = 60.0, 0.05
FOREVER = float("inf")
THREAD = "kombu-pools-upkeep"


def tend(pool: Pool[Any], deadline: float | None = None) -> float | None:
    """Do what is due in *pool*; return the seconds until its next round, or ``None`` if it has nothing left.

    Closes what expired, opens what ``min_idle`` asks for, keeps alive what is open, reports leaks and takes dropped
    leases home.

    :param deadline: of a borrower who does it in place of the thread, by the pool's clock.
    """
    pool.settle()
    ledger = pool.ledger
    with pool.lock:
        expired = aging.expire(ledger)
        openings = aging.refill(ledger)
        overdue = aging.overdue_leases(ledger)
        idle = aging.due_to_keep(ledger)
        lent = aging.due_lent(ledger)
        # A gate may have lost the last one who kept it shut.
        openings += ledger.pump()
    pool.start_openings(openings, deadline, here=True)
    # First what others' lives depend on; the goodbyes, which may take their time, at the end.
    keep_idle(pool, idle)
    for entry in lent:
        _keep_alive(pool, entry, lent=True)
    with pool.lock:
        nap = aging.nap(ledger)
        pool.overdue_at = FOREVER if nap is None else pool.clock() + nap + OVERDUE
    for borrower, seconds in overdue:
        logger.warning(
            "pool %r: a lease has been held for %.1f s (LEAK_AFTER); borrowed at %s",
            pool.name,
            seconds,
            borrower.details() if borrower is not None else "an unknown place",
        )
    seconds = TOGETHER if deadline is None else min(TOGETHER, deadline - pool.clock())
    closing = [(pool, entry, reason) for entry, reason in expired]
    close_together(closing, time.monotonic() + seconds)
    return nap


def keep_idle(pool: Pool[Any], entries: list[Entry[Any]]) -> None:
    """Look after idle *entries*, one at a time: the others stay there for borrowers."""
    for entry in entries:
        with pool.lock:
            if not aging.reserve(pool.ledger, entry):
                continue
        alive = _keep_alive(pool, entry, lent=False)
        # Closes the race with everything that happened meanwhile: a drain, a close, somebody who waits.
        with pool.lock:
            reason = aging.put_back(pool.ledger, entry, alive)
            openings = pool.ledger.pump()
        pool.start_openings(openings)
        if reason is not None:
            pool.close_entry(entry, reason)


def _keep_alive(pool: Pool[Any], entry: Entry[Any], *, lent: bool) -> bool:
    try:
        return pool.driver.keep_alive(entry.item, lent=lent)
    except Exception as error:
        logger.debug("pool %r: a keep-alive failed: %r", pool.name, error)
        return lent


def close_together(closing: list[tuple[Pool[Any], Entry[Any], str]], deadline: float) -> None:
    """Close entries, each with a goodbye, all of them by *deadline* or little later.

    First a word to each, then the wait for the answers: a silent peer takes no other one's goodbye away.
    """
    for pool, entry, _ in closing:
        try:
            pool.driver.announce_close(entry.item)
        except Exception as error:
            logger.debug("pool %r: announcing the end failed: %r", pool.name, error)
    for pool, entry, reason in closing:
        left = deadline - time.monotonic()
        pool.close_entry(entry, reason if left > 0 else "broken", timeout=max(left, 0.0))


class NoUpkeep:
    """Stands for the thread where there is none."""

    def watch(self, pool: Pool[Any], quiet: float = 0.0) -> None:
        """Do nothing: borrowers do the work when it is overdue."""

    def nudge(self, pool: Any = None) -> None:
        """Do nothing."""


def _seconds_suspended() -> float:
    """Seconds that the machine has spent suspended, which the monotonic clock leaves out; 0 where nobody can tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


#: What wakes the thread.
_Ring = Union[bool, "weakref.ref[Pool[Any]]"]


class _Turn:
    """One thread's time of upkeep."""

    __slots__ = ("__weakref__",)


class Upkeep:
    """A daemon thread that tends pools, each when it is due.

    :param clock: monotonic seconds.
    :param suspended: seconds that *clock* has left out so far.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        suspended: Callable[[], float] = _seconds_suspended,
    ) -> None:
        self._clock = clock
        self._suspended = suspended
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        # Re-entrant: a signal handler that opens an item in its own thread may have interrupted `watch`.
        self._lock = threading.RLock()
        self._due = Agenda()
        #: What the thread that is at it holds: whoever is killed while beginning it leaves that to the next.
        self._running: weakref.ref[_Turn] | None = None
        # The one queue whose put() may interrupt itself: a finalizer or signal handler nudges with it.
        # What is put is a pool to look at besides those that are due, or says whether that is every pool.
        self._bell: queue.SimpleQueue[_Ring] = queue.SimpleQueue()

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread; the child starts its own with its first connection."""
        self._reset()

    def renew_lock(self) -> None:
        """At the end of the interpreter: the thread was stopped, whatever it held."""
        self._lock = threading.RLock()

    def nudge(self, pool: Any = None) -> None:
        """Have the thread look at *pool* now, or at every pool. Never waits; safe in finalizers and signal handlers."""
        self._bell.put(True if pool is None else weakref.ref(pool))

    def watch(self, pool: Pool[Any], quiet: float = 0.0) -> None:
        """Tend *pool* until it has nothing left to tend.

        :param quiet: seconds for which what is new there can wait: the thread is not woken if it looks by then.
        """
        me: _Turn | None = None
        with self._lock:
            due = self._due.get(pool)
            # What is being tended at this moment is due a whole nap after that has begun.
            soon = self._clock() + min(quiet, LONGEST_NAP / 2)
            if due is not None and due <= soon and self._running is not None and self._running():
                return
            # Closes the race with a thread that has just found nothing to do: it ends under this lock.
            self._due[pool] = 0.0
            if self._running is None or self._running() is None:
                # A new one: gevent or eventlet may have replaced the class since, and the former would hold up all.
                self._bell = queue.SimpleQueue()
                me = _Turn()
                # The thread before this one may have been killed over what it had taken.
                self._due.tidy()
                self._running = weakref.ref(me)
        if me is None:
            # What was opened may be due before the thread meant to wake.
            self._bell.put(False)
            return
        ways_out.prepare()
        if not spawn_thread(partial(self._run, me), THREAD):
            self._running = None

    def _run(self, me: _Turn) -> None:
        bell = self._bell
        everything = False
        while True:
            nap = self._round(everything=everything)
            if nap is None:
                return
            before, suspended = self._clock(), self._suspended()
            try:
                rings = [bell.get(timeout=nap)]
            except queue.Empty:
                rings = []
            self.woke(self._clock() - before - nap, self._suspended() - suspended)
            while not bell.empty():
                rings.append(bell.get())
            everything = self._heed(rings)

    def _heed(self, rings: list[_Ring]) -> bool:
        """Note the pools that are to be looked at; whether all of them are."""
        for ring in rings:
            pool = None if isinstance(ring, bool) else ring()
            with self._lock:
                if pool is not None and pool in self._due:
                    self._due[pool] = 0.0
        return True in rings

    def woke(self, late: float, suspended: float) -> None:
        """After a nap: what time has passed that nobody lived through is no pool's age.

        :param late: seconds that it took too long: a stopped process, a clock that jumped.
        :param suspended: seconds in which the machine was suspended.
        """
        if late < LATE and suspended < LATE:
            return
        logger.warning(
            "upkeep was held up for %.0f s: every connection is checked before it is used",
            max(late, suspended),
        )
        with self._lock:
            pools = list(self._due)
        for pool in pools:
            pool.time_left_out(max(late, 0.0))

    def _round(self, *, everything: bool) -> float | None:
        now = self._clock()
        with self._lock:
            pools = list(self._due) if everything else self._due.take(now)
        for pool in pools:
            with self._lock:
                # Whoever watches it from here on is not overwritten: what was opened may be due very soon.
                self._due[pool] = now + LONGEST_NAP
            try:
                nap = tend(pool)
            except Exception:
                logger.exception("pool %r: upkeep failed", pool.name)
                nap = LONGEST_NAP
            with self._lock:
                if not self._due[pool]:
                    self._due[pool] = now + SHORTEST_NAP
                elif nap is None:
                    del self._due[pool]
                else:
                    self._due[pool] = now + max(SHORTEST_NAP, min(nap, LONGEST_NAP))
        pools.clear()
        with self._lock:
            due = self._due.next()
            if due is None:
                self._running = None
                return None
        return max(SHORTEST_NAP, due - self._clock())


#: The thread that every pool of the process uses unless it is given another.
shared = Upkeep()
