"""Waiting for a lease: the queue, the hand-over, the time-out, and the check of what was handed over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import log_handlers
from .lease import Entry, Lease
from .opening import open_all, outage_error
from .refusals import refusal
from .sweeping import close_dead_idle
from .waiting import Waiter

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["leave", "look_again", "unfit_because", "wait_for_lease"]

T = TypeVar("T")

logger = logging.getLogger("kombu_pools_ext")

#: Seconds after which a waiter carries out an opening that no thread has taken up.
CLAIM_AFTER = 0.1
#: Seconds between two looks of a waiter for itself, should the thread that was to wake it have been killed.
LOOK_AGAIN = 1.0
#: Seconds after which a check that failed had no answer: what was opened before leads nowhere either.
SLOW_CHECK = 0.1
#: Waiters of whom each does the first of these; a thousand would be in each other's way, and those before them look.
LOOKING = 16


def wait_for_lease(
    pool: Pool[T],
    deadline: float | None,
    waiter: Waiter[T],
    unfit: Lease[T] | None = None,
    why: str | None = None,
) -> Lease[T]:
    """Wait until something fit for use is handed over.

    :param unfit: what the caller was served already, and cannot use, because of *why*.
    """
    # Before a thread is started that may have something to log.
    # In a crowd that waits for what others give back, its microseconds add up: there it comes with the second look.
    waiting = pool.ledger.waiters and not pool.ledger.openings and not pool.ledger.reserved
    spared: list[logging.Handler] | None = []
    if not (waiting and waiter.patient):
        spared = log_handlers.spare()
    if not log_handlers.may_wait(pool):
        spared = None
    if spared is None:
        if unfit is not None:
            pool.release(unfit, why)
        raise _reentered(pool)
    while True:
        lease = _wait(pool, deadline, waiter, unfit, why, spared)
        why = unfit_because(pool, lease, pool.clock())
        if why is None:
            return lease
        # On to the next at once.
        unfit, waiter = lease, waiter.again()


def _wait(
    pool: Pool[T],
    deadline: float | None,
    waiter: Waiter[T],
    unfit: Lease[T] | None,
    why: str | None,
    spared: list[logging.Handler],
) -> Lease[T]:
    """Queue up, and wait for a hand-over.

    :param spared: log handlers that this thread is in, which threads of ours may be waiting for.
    """
    began = pool.clock()
    if not waiter.patient:
        # There is room: what is waited for is an opening, and that has a bound of its own.
        deadline = began + pool.options.connect_timeout
    try:
        # Closes the race between "nothing is free" and an entry that becomes free just then: either
        # its releaser sees this waiter, or this pump sees the entry.
        with pool.lock:
            # Whoever was served something unfit has not lost its place: the room goes to nobody else.
            spent = pool.take_back(unfit, why) if unfit is not None else None
            refusal = pool.ledger.enqueue(waiter, first=unfit is not None)
            openings = pool.ledger.pump() if refusal is None or spent is not None else 0
            claims = len(pool.ledger.waiters) <= LOOKING
        # In this order: two threads at work at once take longer than one after the other.
        if spent is not None:
            pool.close_returned(*spent, deadline)
        pool.start_openings(openings, deadline, here=True)
        if pool.ledger.suspended:
            pool.tell("wanted")
        if refusal is not None:
            raise _refusal(pool, refusal)
        while not waiter.settled:
            now = pool.clock()
            nap = CLAIM_AFTER if claims and now - began < CLAIM_AFTER else LOOK_AGAIN
            breaker = pool.ledger.breaker
            if breaker.failures and breaker.retry_at < now + nap and not _is_behind(pool, waiter):
                # Whoever is first in line begins the next probe; while one is under way, it wants to hear of its end.
                nap = breaker.retry_at - now if now < breaker.retry_at else CLAIM_AFTER
            if deadline is not None:
                nap = min(nap, deadline - now)
                if nap <= 0:
                    break
            waiter.wait(nap)
            if not waiter.settled:
                new = log_handlers.spare()
                if new is None or log_handlers.wanted_by_ours([*spared, *new]):
                    raise _reentered(pool)
                look_again(pool, deadline)
        waited = leave(pool, waiter, began)
    except BaseException:
        leave(pool, waiter, began)
        if waiter.lease is not None:
            pool.release(waiter.lease)
        raise
    if waiter.lease is not None:
        return waiter.lease
    try:
        raise waiter.error or _refusal(pool, _reason(pool, waiter), waited)
    finally:
        # Else the error would hold its traceback, that this frame, and the frame the error.
        waiter.error = None


def _reentered(pool: Pool[Any]) -> Exception:
    return pool.errors.reentered(
        f"pool {pool.name!r}: acquire called by a log handler, or another callback, on the way to the broker; "
        "nothing is idle, and to wait for a connection would be to wait for itself"
    )


def _is_behind(pool: Pool[Any], waiter: Waiter[Any]) -> bool:
    """Whether somebody who can be served waits before *waiter*."""
    with pool.lock:
        return pool.ledger.waiters.next() is not waiter


def _reason(pool: Pool[Any], waiter: Waiter[Any]) -> str:
    """Why *waiter* got nothing until its deadline."""
    if pool.ledger.suspended:
        return "suspended"
    if waiter.blocked:
        return "blocked"
    return "timeout" if waiter.patient else "slow"


def leave(pool: Pool[T], waiter: Waiter[T], began: float) -> float:
    """Leave the queue; return the seconds spent in it."""
    waited = pool.clock() - began
    # Closes the race between a time-out and a hand-over: whoever was served by now, is served. The place
    # that becomes free in the queue may have been all that kept the next one's share.
    with pool.lock:
        pool.ledger.counters.seconds_waited += waited
        openings = 0
        if pool.ledger.waiters.remove(waiter):
            openings = pool.ledger.pump()
            pool.ledger.nudge()
    pool.start_openings(openings)
    if pool.threadless and pool.ledger.openings.unclaimed:
        # No thread will carry out the openings that this caller had no time for.
        pool.leave_openings()
    return waited


def look_again(pool: Pool[Any], deadline: float | None = None) -> None:
    """A waiter, for itself: pump, and carry out what nobody has taken up (no thread runs, or it was killed)."""
    pool.settle()
    with pool.lock:
        # Before pump(): what it plans is for other threads, unless none can be started.
        unclaimed = pool.ledger.openings.unclaimed
        openings = pool.ledger.pump()
        pool.ledger.give_up(lambda: outage_error(pool))
    pool.start_openings(openings, deadline, here=True)
    if unclaimed:
        open_all(pool, deadline)


def _refusal(pool: Pool[Any], reason: str, seconds: float = 0.0) -> Exception:
    """Count a refusal, tell the listener, and make the error."""
    with pool.lock:
        pool.ledger.count_refusal(reason, waited=seconds > 0)
        if reason == "down":
            error = outage_error(pool)
        else:
            error = refusal(reason, pool.name, pool.ledger, pool.errors, seconds)
    if reason in ("exhausted", "full", "timeout"):
        pool.tell("exhausted", reason)
    return error


def unfit_because(pool: Pool[T], lease: Lease[T], now: float) -> str | None:
    """Why what was lent must not be used but closed, or ``None``."""
    entry = cast("Entry[T]", lease._entry)
    if now >= entry.expires_at:
        return "lifetime"
    if now - entry.used_at < pool.check_after and not entry.suspect:
        return None
    thorough, began = entry.suspect, pool.clock()
    try:
        alive = pool.driver.check(entry.item, thorough=thorough)
    except BaseException:
        # Of somebody who interrupted it: a signal handler, a time-out of gevent's.
        pool.release(lease, broken="broken")
        raise
    if alive:
        entry.suspect = False
        return None
    with pool.lock:
        pool.ledger.suspect_all()
    # Each of the others would let the borrower wait for as long.
    condemned = thorough and pool.clock() - began >= SLOW_CHECK
    close_dead_idle(pool, condemned=condemned)
    return "dead"
