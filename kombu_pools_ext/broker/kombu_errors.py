"""What the engine raises where it leases connections of kombu."""

from __future__ import annotations

from kombu.exceptions import OperationalError

from ..engine.errors import ErrorFamily
from ..errors import (
    BrokerBlocked,
    BrokerUnreachable,
    ConnectTimeout,
    LeaseError,
    PoolClosed,
    PoolExhausted,
    PoolFull,
    PoolReentered,
    PoolSuspended,
    PoolTimeout,
)

__all__ = ["KombuErrors"]


def _comes_too_late(cause: BaseException) -> bool:
    """Whether *cause* is Python's word for something that cannot be had in an interpreter that ends.

    Such as an import: what Redis' client needs registers exit handlers, which is refused once they run.
    """
    return isinstance(cause, RuntimeError | ImportError) and "shut" in str(cause)


class KombuErrors(ErrorFamily):
    """The library's errors; what kombu itself would let through stays as it is, with the pool's name as a note."""

    exhausted = PoolExhausted
    timeout = PoolTimeout
    connect_timeout = ConnectTimeout
    full = PoolFull
    blocked = BrokerBlocked
    suspended = PoolSuspended
    closed = PoolClosed
    reentered = PoolReentered
    open_failed = BrokerUnreachable
    lease = LeaseError

    def failed_opening(self, message: str, cause: BaseException) -> Exception:
        """Unreachable, or not a matter of reaching: wrong credentials, a missing virtual host, a bug."""
        if isinstance(cause, OperationalError | TimeoutError):
            return super().failed_opening(message, cause.__cause__ or cause)
        if not isinstance(cause, Exception) or _comes_too_late(cause):
            return super().failed_opening(message, cause)
        # Each caller gets an error of its own: one that many threads raise would gather their tracebacks.
        kind = type(cause)
        error = kind.__new__(kind, *cause.args)
        error.__dict__.update(cause.__dict__)
        error.__notes__ = [*getattr(cause, "__notes__", ()), message]
        error.__cause__ = cause.__cause__
        return error
