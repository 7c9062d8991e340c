"""The check of what is lent, before its borrower gets it."""

from __future__ import annotations

from typing import Generic, TypeVar

from .lease import Entry, Lease
from .pool_interface import PoolInterface

__all__ = ["MOST_LOOKED_AT", "SLOW_CHECK", "Checker"]

T = TypeVar("T")

#: Seconds after which a check that failed had no answer: what was opened before leads nowhere either.
SLOW_CHECK = 0.1
#: Idle entries looked at, at most, after one was found dead: those that were used last, which would be lent next. The
#: borrower waits for that.
MOST_LOOKED_AT = 32


class Checker(Generic[T]):
    """Finds out whether an item is fit for use."""

    def __init__(self, pool: PoolInterface[T]) -> None:
        self._pool = pool
        self._check_after = pool.options.check_after

    def why_unfit(self, lease: Lease[T], entry: Entry[T], now: float) -> str | None:
        """Return why *entry*, which *lease* lends, must not be used but closed, or ``None``."""
        if now >= entry.expires_at:
            return "lifetime"
        if now - entry.used_at < self._check_after and not entry.needs_check:
            return None
        pool = self._pool
        thorough, began = entry.needs_check, pool.clock()
        try:
            alive = pool.driver.check(entry.item, thorough=thorough)
        except BaseException:
            # Of somebody who interrupted it: a signal handler, a time-out of gevent's.
            pool.release(lease, broken="broken")
            raise
        if alive:
            entry.needs_check = False
            return None
        pool.locked(pool.state.need_checks)
        # Each of the others would let the borrower wait for as long.
        self._close_dead_idle(no_answer=thorough and pool.clock() - began >= SLOW_CHECK)
        return "dead"

    def _close_dead_idle(self, *, no_answer: bool) -> None:
        """One was found dead: of the idle others, close those that are visibly so.

        A broker that restarts ends all connections. Else the borrower would be lent each of them, to check it, read
        from it and give it back, before a new one is opened.

        :param no_answer: close all that have yet to prove themselves: one of them did not answer a check.
        """
        pool = self._pool
        idle = pool.locked(lambda: list(pool.state.idle))
        if no_answer:
            dead = [entry for entry in idle if entry.needs_check]
        else:
            dead = [entry for entry in idle[-MOST_LOOKED_AT:] if self._is_hung_up(entry)]
        if dead:
            # But for what somebody has borrowed or closed meanwhile: that borrower finds out.
            for entry in pool.locked(lambda: pool.state.begin_closing_idle(dead)):
                pool.close_entry(entry, "dead")

    def _is_hung_up(self, entry: Entry[T]) -> bool:
        try:
            return self._pool.driver.is_hung_up(entry.item)
        except Exception as error:
            # Its check will tell.
            self._pool.reports.failed("a look at an idle item", error)
            return False
