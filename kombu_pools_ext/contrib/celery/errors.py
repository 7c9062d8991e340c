"""The error of an adoption, and pool errors as Celery's callers know them."""

from __future__ import annotations

from kombu.exceptions import KombuError, LimitExceeded, OperationalError

__all__ = ["CannotAdopt", "as_operational"]


class CannotAdopt(KombuError, RuntimeError):
    """A Celery application cannot publish over the pools. The text says why, and what to do."""


def as_operational(error: LimitExceeded, alias: str) -> OperationalError:
    """Return *error*, with which a pool refused a caller, as what Celery raises for it.

    Its cause is what kept the broker from being reached; or else *error* itself, as that of Celery's own error for a
    pool whose connections are all in use.
    """
    told = OperationalError(f"alias {alias!r}: {error}")
    unreachable = isinstance(error, OperationalError)
    told.__cause__ = (unreachable and error.__cause__) or error
    return told
