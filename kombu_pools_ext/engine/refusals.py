"""The errors of a pool, and their words: the pool, its state, and the remedy."""

from __future__ import annotations

from typing import Any

from .bounded_lock import PATIENCE
from .errors import ErrorFamily
from .lease import Entry, Lease
from .state import PoolState
from .threads import interpreter_ends

__all__ = ["Refusals"]


def _bound_on_waiters(state: PoolState[Any]) -> str:
    """What admits no more waiters: the setting of an alias, or the argument of a pool that was made by hand."""
    options, most = state.options, state.max_waiting
    if options.from_settings and options.max_waiting is None:
        return f"MAX_WAITING, which is {most} by default, {options.waiting_per_item} for each connection of LIMIT"
    if options.from_settings:
        return f"MAX_WAITING={most}"
    return f"max_waiting={most} in the pool's PoolOptions"


class Refusals:
    """Makes the errors of one pool.

    :param name: of the pool.
    :param errors: the classes.
    """

    __slots__ = ("_name", "errors")

    def __init__(self, name: str, errors: ErrorFamily) -> None:
        self._name = name
        self.errors = errors

    def refusal(self, reason: str, state: PoolState[Any], seconds: float = 0.0) -> Exception:
        """Return the error for *reason*; to be called under the lock.

        :param reason: ``"closed"``, ``"suspended"``, ``"blocked"``, ``"down"``, ``"exhausted"``, ``"full"``,
            ``"timeout"`` or ``"slow"`` (no opening in time).
        :param seconds: how long the caller has waited.
        """
        if reason == "down":
            return self.outage(state)
        if reason == "closed":
            return self.errors.closed(f"pool {self._name!r}: acquire on closed pool")
        described = f"pool {self._name!r}: {state.describe()}"
        waited = f" for {seconds:.3g} s" if seconds else ""
        if reason == "suspended":
            return self.errors.suspended(
                f"{described}: not resumed{waited}; call resume() when the broker is to be used again"
            )
        if reason == "blocked":
            return self.errors.blocked(
                f"{described}: the broker takes no messages{waited}, nothing was sent; see its alarms for memory and "
                "disk"
            )
        if reason == "slow":
            bound = f"no connection within CONNECT_TIMEOUT={state.options.connect_timeout:g} s"
            # What is under way may end just now, with a better cause; nobody waits for it any more.
            return self.errors.failed_opening(
                f"{described}: {bound}; is the broker reachable?", TimeoutError(bound)
            )
        if reason == "timeout":
            return self._timeout(state, described, seconds)
        if reason == "full":
            return self.errors.full(
                f"{described}: no more callers may wait, because of {_bound_on_waiters(state)}; raise that or LIMIT, "
                "or shed load"
            )
        return self.errors.exhausted(
            f"{described}: limit exceeded, and the caller does not wait; pass a timeout, or raise LIMIT"
        )

    def _timeout(self, state: PoolState[Any], described: str, seconds: float) -> Exception:
        cause = state.breaker.cause
        if not len(state.openings) and cause is None:
            return self.errors.timeout(
                f"{described}: nothing became free within {seconds:.3g} s; raise LIMIT or the time-out, or hold leases "
                "for a shorter time"
            )
        why = "; is the broker reachable? else raise the time-out"
        if cause is not None:
            why = f"; the last attempt failed: {cause}; a longer time-out helps only if that is temporary"
        error = self.errors.connect_timeout(
            f"{described}: no connection was ready within {seconds:.3g} s{why}"
        )
        error.__cause__ = cause
        return error

    def outage(self, state: PoolState[Any]) -> Exception:
        """Return the error for a caller who must not wait for the end of an outage; to be called under the lock."""
        breaker = state.breaker
        now = state.clock()
        if breaker.cause is None:
            oldest = state.openings.oldest() or now
            why = f"an opening has not ended for {now - oldest:.3g} s; does the name look-up hang?"
            return self.errors.failed_opening(
                f"pool {self._name!r}: cannot open a connection: {why}", TimeoutError(why)
            )
        why = str(breaker.cause) or type(breaker.cause).__name__
        since = now - breaker.since
        if interpreter_ends():
            why += "; the interpreter is ending, and what was not used before may not be loaded any more"
        lasting = (
            f" (tried {breaker.failures} times in {since:.3g} s)" if breaker.failures > 1 else ""
        )
        return self.errors.failed_opening(
            f"pool {self._name!r}: cannot open a connection{lasting}: {why}", breaker.cause
        )

    def interrupted_itself(self) -> Exception:
        """Return the error for an acquire inside the pool's own critical section."""
        return self.errors.reentered(
            f"pool {self._name!r}: acquire called by a signal handler or finalizer that interrupted the "
            "pool itself; set a flag there, and acquire outside of it"
        )

    def lock_is_held(self) -> Exception:
        """Return the error for a caller that the pool's lock did not become free for."""
        return self.errors.reentered(
            f"pool {self._name!r}: another thread has been in the middle of a decision for {PATIENCE:g} s; a finalizer "
            "or signal handler that interrupted it there may wait for something that this thread has, such as the lock "
            "of a log handler; publish where nothing of that kind is held, as with a QueueHandler"
        )

    def waits_for_itself(self) -> Exception:
        """Return the error for an acquire on the way to the broker."""
        return self.errors.reentered(
            f"pool {self._name!r}: acquire called by a log handler, or another callback, on the way to the broker; "
            "nothing is idle, and to wait for a connection would be to wait for itself"
        )

    def at_the_end(self) -> Exception:
        """Return the error in an interpreter that ends: nothing comes back, and nothing can be opened."""
        return self.errors.closed(
            f"pool {self._name!r}: the interpreter is ending, and nothing can be opened any more; "
            "publish in an exit handler (atexit), which comes before that"
        )

    def closed_while_waiting(self) -> Exception:
        """Return the error for a caller that waits for a pool that is closed."""
        return self.errors.closed(f"pool {self._name!r}: closed while waiting")

    def lease_ended(self, entry: Entry[Any] | None) -> Exception:
        """Return the error for the use of a lease that ended: released, or (*entry* given) taken away."""
        if entry is None:
            what = "was released; acquire a new one"
        elif entry.inherited:
            what = "belongs to the process that this one was forked from; acquire a new one"
        else:
            what = "was taken back by the exit handler of the pools: the interpreter is ending"
        return self.errors.lease(f"pool {self._name!r}: the lease {what}")

    def foreign_lease(self, lease: Lease[Any]) -> Exception:
        """Return the error for the release of another pool's *lease*."""
        return self.errors.lease(
            f"pool {self._name!r}: cannot release a lease of pool {lease.lender.name!r}; release it there"
        )

    def in_use(self, was: int | None, now: int | None, lent: int) -> RuntimeError:
        """Return the error for a limit below what is lent."""
        return RuntimeError(
            f"pool {self._name!r}: can't shrink pool when in use: was={was} "
            f"now={now}, {lent} lent; pass force=True to close them as they come back"
        )
