"""What the engine refuses, and how it says so.

The engine raises the classes of an :class:`ErrorFamily`, so that its host can put them into a family of
its own: :mod:`kombu_pools_ext.errors` makes them kombu's.
"""

from __future__ import annotations

__all__ = [
    "ConnectTimeout",
    "ErrorFamily",
    "LeaseError",
    "OpenFailed",
    "PoolBlocked",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "PoolFull",
    "PoolReentered",
    "PoolSuspended",
    "PoolTimeout",
]


class PoolError(Exception):
    """Any refusal of a pool."""


class PoolExhausted(PoolError):
    """Everything is lent, and the caller did not want to wait."""


class PoolTimeout(PoolError):
    """Nothing became free within the caller's time-out."""


class PoolFull(PoolError):
    """As many callers wait already as the pool admits (``max_waiting``)."""


class ConnectTimeout(PoolTimeout):
    """The caller's time-out came while an item was being opened: none may come at all."""


class PoolBlocked(PoolError):
    """The gate before this kind of lease is shut, and did not open within the caller's time-out."""


class PoolSuspended(PoolError):
    """The pool is suspended, and was not resumed within the caller's time-out."""


class PoolClosed(PoolError):
    """The pool is closed, for good."""


class PoolReentered(PoolError):
    """A signal handler or finalizer interrupted the pool's critical section, in the same thread."""


class OpenFailed(PoolError):
    """No item could be opened; ``__cause__`` is the driver's error."""


class LeaseError(PoolError):
    """A lease was used after its end, or given back to a pool that is not its own."""


class ErrorFamily:
    """The class to raise for each refusal; every one takes a message. A host has a family of its own in a subclass."""

    exhausted: type[Exception] = PoolExhausted
    timeout: type[Exception] = PoolTimeout
    connect_timeout: type[Exception] = ConnectTimeout
    full: type[Exception] = PoolFull
    blocked: type[Exception] = PoolBlocked
    suspended: type[Exception] = PoolSuspended
    closed: type[Exception] = PoolClosed
    reentered: type[Exception] = PoolReentered
    open_failed: type[Exception] = OpenFailed
    lease: type[Exception] = LeaseError

    def failed_opening(self, message: str, cause: BaseException) -> Exception:
        """The error for a caller whose opening failed; a host may let some causes through as they are."""
        error = self.open_failed(message)
        error.__cause__ = cause
        return error
