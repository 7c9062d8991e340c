"""Carrying out openings: in the background, as many at once as the breaker allows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from . import upkeep
from .log_handlers import busy_opening
from .threads import interpreter_ends
from .tickets import Ticket

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["THREAD", "open_all", "outage_error"]

#: The name of an opener.
THREAD = "kombu-pools-open"

logger = logging.getLogger("kombu_pools_ext")


def open_all(pool: Pool[Any], deadline: float | None = None) -> None:
    """Carry out planned openings until there are none: the body of an opener's thread.

    :param deadline: of whoever does it in place of such a thread, if there is one.
    """
    while deadline is None or pool.clock() < deadline:
        if not _open_next(pool, deadline):
            return
    # The deadline has passed; a waiting caller carries out the rest.
    pool.leave_openings()


def _open_next(pool: Pool[Any], deadline: float | None) -> int:
    # A frame of its own for each ticket: a borrower may keep the error of an earlier one, with all its frames.
    with pool.lock:
        ticket = pool.ledger.openings.claim(pool.clock())
    if ticket is None:
        return 0
    more = _open_one(pool, ticket, deadline)
    # One of the openings that this one made possible is this thread's own next turn.
    pool.start_openings(more - 1, deadline)
    return more


def _open_one(pool: Pool[Any], ticket: Ticket, deadline: float | None) -> int:
    """Open an item, or tell who waits that it failed; return how many openings to start."""
    pool.tell("wanted")
    try:
        with busy_opening(pool):
            if deadline is None:
                item = pool.driver.open()
            else:
                item = pool.driver.open_within(max(0.0, deadline - pool.clock()))
    except Exception as error:
        return _failed(pool, ticket, error)
    except BaseException:
        # This thread was interrupted, which says nothing of the broker: others go on, and it opens nothing more.
        with pool.lock:
            pool.ledger.openings.done(ticket)
            openings = pool.ledger.pump()
        if openings and not all(pool.spawn_opener() for _ in range(openings)):
            with pool.lock:
                pool.ledger.openings.cancel_unclaimed()
        raise
    keep_every = pool.driver.keep_alive_every(item)
    # Closes the race with everything that happened meanwhile: a lowered limit, a drain, a close.
    with pool.lock:
        down_since = pool.ledger.breaker.since
        is_back = pool.ledger.breaker.succeeded(pool.clock())
        entry, reason = pool.ledger.opened(ticket, item, keep_every)
        openings = pool.ledger.pump()
        pool.overdue_at = min(pool.overdue_at, pool.clock() + upkeep.OVERDUE)
    due = min(entry.keep_at, entry.used_at + entry.idle_span, entry.expires_at)
    pool.keeper.watch(pool, due - pool.clock())
    if is_back:
        logger.warning(
            "pool %r: connected again, after %.3g s", pool.name, pool.clock() - down_since
        )
    pool.tell("opened")
    if reason is not None:
        pool.close_entry(entry, reason)
    return openings


def _failed(pool: Pool[Any], ticket: Ticket, error: Exception) -> int:
    may_pass = pool.driver.may_pass(error)
    # It is kept as long as the outage lasts: not with the frames, and all that they hold.
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    with pool.lock:
        begins = pool.ledger.failed(ticket, error, lambda: outage_error(pool), may_pass=may_pass)
        openings = pool.ledger.pump()
    if pool.options.min_idle:
        # Upkeep may not have begun yet, for want of a first connection: it is to try on.
        pool.keeper.watch(pool)
    if begins:
        logger.warning(
            "pool %r: cannot open a connection%s: %r",
            pool.name,
            ", trying on" if may_pass else "",
            error,
        )
    return openings


def outage_error(pool: Pool[Any]) -> Exception:
    """The error for a caller who must not wait for the end of an outage; to be called under the lock."""
    breaker = pool.ledger.breaker
    now = pool.clock()
    if breaker.cause is None:
        oldest = pool.ledger.openings.oldest() or now
        why = f"an opening has not ended for {now - oldest:.3g} s; does the name look-up hang?"
        return pool.errors.failed_opening(
            f"pool {pool.name!r}: cannot open a connection: {why}", TimeoutError(why)
        )
    why = str(breaker.cause) or type(breaker.cause).__name__
    since = now - breaker.since
    if interpreter_ends():
        why += (
            "; the interpreter is ending, and what was not used before may not be loaded any more"
        )
    lasting = f" (tried {breaker.failures} times in {since:.3g} s)" if breaker.failures > 1 else ""
    return pool.errors.failed_opening(
        f"pool {pool.name!r}: cannot open a connection{lasting}: {why}", breaker.cause
    )
