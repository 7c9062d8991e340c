"""One borrower's wait for a lease: the queue, the hand-over, the time-out, and the check of what was handed over."""

from __future__ import annotations

import logging
from typing import Generic, TypeVar

from . import log_handlers
from .lease import Lease
from .pool_interface import PoolInterface
from .waiters import Waiter

__all__ = ["CLAIM_AFTER", "LOOK_AGAIN", "Wait"]

T = TypeVar("T")

#: Seconds after which a waiter carries out an opening that no thread has taken up.
CLAIM_AFTER = 0.1
#: Seconds between two looks of a waiter for itself, should the thread that was to wake it have been killed.
LOOK_AGAIN = 1.0
#: A waiter looks after ``CLAIM_AFTER`` only if no more than this many wait when it begins. A thousand waiters that look
#: would be in each other's way, and the first ones look for all.
LOOKING = 16


class WaitGuard:
    """Finds out whether a thread would wait for itself, because it is in a log handler: see :mod:`.log_handlers`."""

    __slots__ = ("_handlers",)

    def __init__(self) -> None:
        #: Log handlers that this thread is in, which threads of ours may be waiting for.
        self._handlers: list[logging.Handler] = []

    def may_begin(self, pool: object, *, in_a_crowd: bool) -> bool:
        """Whether this thread may wait for *pool*.

        :param in_a_crowd: wait for what others give back, among many: the look at this thread's frames, whose
            microseconds would add up, then comes with the second look.
        """
        if not in_a_crowd:
            # Before a thread is started that may have something to log.
            handlers = log_handlers.spare(pool)
            if handlers is None:
                return False
            self._handlers = handlers
        return True

    def may_go_on(self, pool: object) -> bool:
        """Whether it may still wait for *pool*, and nobody waits for this thread meanwhile."""
        new = log_handlers.spare(pool)
        return new is not None and not log_handlers.wanted_by_ours([*self._handlers, *new])


class Wait(Generic[T]):
    """The wait of one borrower.

    :param deadline: until when, by the pool's clock; ``None`` is without end.
    """

    __slots__ = ("_deadline", "_guard", "_pool", "_waiter")

    def __init__(self, pool: PoolInterface[T], waiter: Waiter[T], deadline: float | None) -> None:
        self._pool = pool
        self._waiter = waiter
        self._deadline = deadline
        self._guard = WaitGuard()

    def until_served(self, unfit: Lease[T] | None = None, why: str | None = None) -> Lease[T]:
        """Return a lease of something fit for use.

        :param unfit: what the caller was served already, and cannot use, because of *why*.
        """
        pool = self._pool
        state = pool.state
        waiting = state.waiters and not state.openings and not state.reserved
        crowd = bool(waiting) and self._waiter.blocking
        if not self._guard.may_begin(pool, in_a_crowd=crowd):
            if unfit is not None:
                pool.release(unfit, why)
            raise pool.refusals.waits_for_itself()
        while True:
            lease = self._queue_up(unfit, why)
            why = pool.why_unfit(lease, pool.clock())
            if why is None:
                return lease
            # On to the next at once.
            unfit, self._waiter = lease, self._waiter.again()

    def _queue_up(self, unfit: Lease[T] | None, why: str | None) -> Lease[T]:
        """Queue up, and wait for a hand-over."""
        pool, waiter = self._pool, self._waiter
        began = waiter.since = pool.clock()
        deadline = self._deadline
        if not waiter.blocking:
            # It does not wait for a release: there is room for an opening, which has a bound of its own.
            deadline = began + pool.options.connect_timeout
        try:
            # Closes the race between "nothing is free" and an entry that becomes free just then: either its releaser
            # sees this waiter, or this decision sees the entry.
            entered = pool.decide(lambda: pool.state.enter(waiter, unfit, why), deadline, here=True)
            if pool.state.suspended:
                pool.reports.tell("wanted")
            if entered.refusal is not None:
                raise pool.refuse(entered.refusal)
            self._nap(began, deadline)
            waited = pool.leave(waiter, began)
        except BaseException:
            pool.leave(waiter, began)
            if waiter.lease is not None:
                pool.release(waiter.lease)
            raise
        if waiter.lease is not None:
            return waiter.lease
        try:
            raise waiter.error or pool.refuse(pool.state.why_unserved(waiter), waited)
        finally:
            # Else there would be a cycle: the error holds its traceback, the traceback this frame, the frame the error.
            waiter.error = None

    def _nap(self, began: float, deadline: float | None) -> None:
        """Wait for an outcome until the *deadline*, and look for it in between."""
        pool, waiter = self._pool, self._waiter
        claims = len(pool.state.waiters) <= LOOKING
        while not waiter.ended:
            now = pool.clock()
            nap = CLAIM_AFTER if claims and now - began < CLAIM_AFTER else LOOK_AGAIN
            if pool.state.breaker.failures:
                longest = nap
                nap = pool.locked(
                    lambda: pool.state.longest_nap(waiter, now, longest, CLAIM_AFTER)  # noqa: B023
                )
            if deadline is not None:
                nap = min(nap, deadline - now)
                if nap <= 0:
                    return
            waiter.wait(nap)
            if not waiter.ended:
                if not self._guard.may_go_on(pool):
                    raise pool.refusals.waits_for_itself()
                pool.look_again(deadline, waiter)
