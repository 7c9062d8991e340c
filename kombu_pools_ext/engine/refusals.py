"""The words for a refusal: the pool, its state, and the remedy."""

from __future__ import annotations

from typing import Any

from .errors import ErrorFamily
from .ledger import Ledger

__all__ = ["refusal"]


def refusal(
    reason: str, name: str, ledger: Ledger[Any], errors: ErrorFamily, seconds: float
) -> Exception:
    """The error for *reason*.

    :param reason: ``"closed"``, ``"suspended"``, ``"blocked"``, ``"exhausted"``, ``"full"``, ``"timeout"`` or
        ``"slow"`` (no opening in time).
    :param seconds: how long the caller has waited.
    """
    if reason == "closed":
        return errors.closed(f"pool {name!r}: acquire on closed pool")
    state = f"pool {name!r}: {ledger.describe()}"
    waited = f" for {seconds:.3g} s" if seconds else ""
    if reason == "suspended":
        return errors.suspended(
            f"{state}: not resumed{waited}; call resume() when the broker is to be used again"
        )
    if reason == "blocked":
        return errors.blocked(
            f"{state}: the broker takes no messages{waited}, nothing was sent; see its alarms for memory and disk"
        )
    if reason == "slow":
        bound = f"no connection within CONNECT_TIMEOUT={ledger.options.connect_timeout:g} s"
        # What is under way may end just now, with a better cause; nobody waits for it any more.
        return errors.failed_opening(
            f"{state}: {bound}; is the broker reachable?", TimeoutError(bound)
        )
    cause = ledger.breaker.cause
    if reason == "timeout" and (len(ledger.openings) or cause is not None):
        why = "; is the broker reachable? else raise the time-out"
        if cause is not None:
            why = f"; the last attempt failed: {cause}; a longer time-out helps only if that passes, as a restart does"
        error = errors.connect_timeout(
            f"{state}: no connection was ready within {seconds:.3g} s{why}"
        )
        error.__cause__ = cause
        return error
    if reason == "timeout":
        return errors.timeout(
            f"{state}: nothing became free within {seconds:.3g} s; raise LIMIT or the time-out, or hold leases "
            "for a shorter time"
        )
    if reason == "full":
        return errors.full(
            f"{state}: no more callers may wait (MAX_WAITING={ledger.max_waiting}); raise LIMIT, or shed load"
        )
    return errors.exhausted(
        f"{state}: limit exceeded, and the caller does not wait; pass a timeout, or raise LIMIT"
    )
