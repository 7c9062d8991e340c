"""The one maintenance thread of a process, and what it does for each pool.

The thread is a helper: it begins with the first open item and ends with the last, it holds no pool alive, and where
it cannot run, acquire does its work when it is overdue.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol, Union

from . import exit_hooks, fork
from .bounded_lock import BoundedLock
from .reentrant_queue import ReentrantQueue
from .schedule import Schedule
from .threads import spawn_thread

__all__ = ["OVERDUE", "Maintained", "Maintenance", "NoMaintenance", "shared"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds that borrowers leave the thread before they do its work themselves.
OVERDUE = 5.0
#: Seconds that a nap may last too long before the clock, or the machine, is taken to have stood still.
LATE = 5.0
#: Seconds between two rounds, at the most and at the least.
LONGEST_NAP, SHORTEST_NAP = 60.0, 0.05
THREAD = "kombu-pools-maintenance"


class Maintained(Protocol):
    """A pool, as far as the thread looks after it."""

    @property
    def name(self) -> str:
        """Stands in log lines."""
        ...

    def run_maintenance(self) -> float | None:
        """Do what is due; return the seconds until the next round, or ``None`` if nothing is left to look after."""
        ...

    def time_left_out(self, seconds: float) -> None:
        """Leave *seconds*, in which the process or the machine stood still, out of the age of what is open."""
        ...


class NoMaintenance:
    """Stands for the thread where there is none."""

    def watch(self, pool: Maintained, quiet: float = 0.0) -> None:
        """Do nothing: borrowers do the work when it is overdue."""

    def nudge(self, pool: Maintained | None = None) -> None:
        """Do nothing."""

    def wake(self) -> None:
        """Do nothing."""


def _seconds_suspended() -> float:
    """Seconds that the machine has spent suspended, which the monotonic clock leaves out; 0 where nobody can tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


#: What wakes the thread.
_Ring = Union[bool, "weakref.ref[Maintained]"]


class _Busy(Exception):
    """Another thread holds the lock, and may wait for this one."""


class _Turn:
    """One thread's time of maintenance."""

    __slots__ = ("__weakref__",)


class Maintenance:
    """A daemon thread that looks after pools, each when it is due.

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
        self.renew_lock()
        self._due = Schedule[Maintained]()
        #: What the thread that is at it holds: whoever is killed while beginning it leaves that to the next.
        self._running: weakref.ref[_Turn] | None = None
        #: What is put is a pool to look at besides those that are due, or says whether that is every pool.
        self._bell: ReentrantQueue[_Ring] = ReentrantQueue()

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread; the child starts its own with its first connection."""
        self._reset()

    def renew_lock(self) -> None:
        """Have a lock that nobody holds: in the beginning, in a forked child, and at the end of the interpreter."""
        self._locks: dict[None, BoundedLock] = {}

    @property
    def _lock(self) -> BoundedLock:
        # Made when it is first needed: until then gevent or eventlet may replace the class. Two threads may come by at
        # once. Re-entrant: a signal handler that opens an item in its own thread may have interrupted `watch`.
        return self._locks.get(None) or self._locks.setdefault(None, BoundedLock(_Busy))

    def nudge(self, pool: Maintained | None = None) -> None:
        """Have the thread look at *pool* now, or at every pool. Never waits; safe in finalizers and signal handlers."""
        self._bell.put(True if pool is None else weakref.ref(pool))

    def wake(self) -> None:
        """Have the thread, if it runs, see whether anything is left to look after. Never waits; safe in finalizers."""
        if self._running is not None and self._running() is not None:
            self._bell.put(False)

    def watch(self, pool: Maintained, quiet: float = 0.0) -> None:
        """Look after *pool* until it has nothing left to look after.

        :param quiet: seconds for which what is new there can wait: the thread is not woken if it looks by then.
        """
        # Else borrowers do the work when it is overdue.
        with contextlib.suppress(_Busy):
            self._watch(pool, quiet)

    def _watch(self, pool: Maintained, quiet: float) -> None:
        me: _Turn | None = None
        with self._lock:
            due = self._due.get(pool)
            # What is looked after at this moment is due a whole nap after that has begun.
            soon = self._clock() + min(quiet, LONGEST_NAP / 2)
            if due is not None and due <= soon and self._running is not None and self._running():
                return
            # Closes the race with a thread that has just found nothing to do: it ends under this lock.
            self._due[pool] = 0.0
            if self._running is None or self._running() is None:
                # A new one: gevent or eventlet may have replaced the class since, and the former would hold up all.
                self._bell = ReentrantQueue()
                me = _Turn()
                # The thread before this one may have been killed over what it had taken.
                self._due.tidy()
                self._running = weakref.ref(me)
        if me is None:
            # What was opened may be due before the thread meant to wake.
            self._bell.put(False)
            return
        exit_hooks.prepare()
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
            rings = bell.get(nap)
            self.woke(self._clock() - before - nap, self._suspended() - suspended)
            everything = self._heed(rings)

    def _heed(self, rings: list[_Ring]) -> bool:
        """Note the pools that are to be looked at; whether all of them are."""
        for ring in rings:
            pool = None if isinstance(ring, bool) else ring()
            with self._lock.patient:
                if pool is not None and pool in self._due:
                    self._due[pool] = 0.0
        return True in rings

    def woke(self, late: float, suspended: float) -> None:
        """After a nap: if the process or the machine stood still, have the pools leave that time out of all ages.

        :param late: seconds that it took too long: a stopped process, a clock that jumped.
        :param suspended: seconds in which the machine was suspended.
        """
        if late < LATE and suspended < LATE:
            return
        logger.warning(
            "maintenance was held up for %.0f s: every connection is checked before it is used",
            max(late, suspended),
        )
        with self._lock.patient:
            pools = list(self._due)
        for pool in pools:
            pool.time_left_out(max(late, 0.0))

    def _round(self, *, everything: bool) -> float | None:
        now = self._clock()
        with self._lock.patient:
            pools = list(self._due) if everything else self._due.take(now)
        for pool in pools:
            with self._lock.patient:
                # Whoever watches it from here on is not overwritten: what was opened may be due very soon.
                self._due[pool] = now + LONGEST_NAP
            try:
                nap = pool.run_maintenance()
            except Exception:
                logger.exception("pool %r: maintenance failed", pool.name)
                nap = LONGEST_NAP
            with self._lock.patient:
                if not self._due[pool]:
                    self._due[pool] = now + SHORTEST_NAP
                elif nap is None:
                    del self._due[pool]
                else:
                    self._due[pool] = now + max(SHORTEST_NAP, min(nap, LONGEST_NAP))
        pools.clear()
        with self._lock.patient:
            due = self._due.next()
            if due is None:
                self._running = None
                return None
        return max(SHORTEST_NAP, due - self._clock())


#: The thread that every pool of the process uses unless it is given another.
shared = Maintenance()
