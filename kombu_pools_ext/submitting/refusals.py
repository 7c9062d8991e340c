"""The errors of submitted messages; each names the alias."""

from __future__ import annotations

from ..errors import PoolClosed, PoolReentered, PublishUnknown

__all__ = ["has_no_answer", "is_busy", "was_not_sent"]

_ADVICE = "wait for the futures before the end, or call drain()"


def is_busy(using: str) -> PoolReentered:
    """Return what to raise for a submit that has interrupted another one of its thread."""
    return PoolReentered(
        f"alias {using!r}: submit called by a signal handler or finalizer that interrupted another one; set a flag "
        "there, and submit outside of it"
    )


def was_not_sent(using: str, message_id: str, grace: float) -> PoolClosed:
    """Return the outcome of a message that was not begun when the process ended, and its *grace* in seconds."""
    return PoolClosed(
        f"alias {using!r}: message {message_id} was not sent; it is not in the broker: the process ended, and did not "
        f"come to it within {grace:g} s; {_ADVICE}"
    )


def has_no_answer(using: str, message_id: str, grace: float) -> PublishUnknown:
    """Return the outcome of a message that was begun when the process ended, and its *grace* in seconds."""
    error = PublishUnknown(
        f"message {message_id} may be in the broker, or not: the process ended, and its publish had no outcome within "
        f"{grace:g} s; {_ADVICE}",
        message_id,
    )
    error.pool = using
    return error
