"""What the broker's answer means for a row."""

from __future__ import annotations

from enum import Enum

from amqp.exceptions import AccessRefused, ConnectionError, NotFound, PreconditionFailed
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError

from ..errors import (
    PoolError,
    PublishError,
    PublishNacked,
    PublishRefused,
    PublishReturned,
    PublishUnknown,
    UnknownAlias,
)

__all__ = ["Verdict", "told", "verdict_of"]


class Verdict(Enum):
    """What becomes of a row whose message was published, or was not."""

    #: The broker has the message.
    DONE = "done"
    #: It can never be delivered as it is.
    DEAD = "dead"
    #: The broker refused this message: later, and later each time.
    REFUSED = "refused"
    #: The broker cannot be reached, or takes no messages at all: that is no fault of the message.
    AWAY = "away"
    #: No confirm came: again, with the same ``message_id``.
    UNKNOWN = "unknown"


#: AMQP's number for the methods of a connection.
_CONNECTION = 10
#: The broker closed the channel because of this message; or it cannot be made into a message.
_DEADLY = (
    *(NotFound, AccessRefused, PreconditionFailed),
    *(EncodeError, TypeError, ValueError, NotImplementedError),
)
_OUT_OF_REACH = (PoolError, LimitExceeded, UnknownAlias, OperationalError, ConnectionError, OSError)


def verdict_of(error: BaseException | None) -> Verdict:
    """Return what *error*, that of a publish, means for the row; ``None`` is a publish that was confirmed."""
    if error is None:
        return Verdict.DONE
    if isinstance(error, PublishReturned):
        return Verdict.DEAD
    if isinstance(error, PublishNacked):
        return Verdict.REFUSED
    if isinstance(error, PublishUnknown):
        return Verdict.UNKNOWN
    # A server without memory refuses all messages, and a pool's error can be of the transport's class as well: no
    # login, say, is an AccessRefused.
    if isinstance(error, PublishRefused | PoolError):
        return Verdict.AWAY
    if isinstance(error, PublishError):
        return Verdict.UNKNOWN
    if isinstance(error, AccessRefused) and _is_of_login(error):
        return Verdict.AWAY
    if isinstance(error, _DEADLY) and not isinstance(error, OSError):
        return Verdict.DEAD
    if isinstance(error, _OUT_OF_REACH):
        return Verdict.AWAY
    # Nobody knows what it is, so it does not keep the others from going on, and is tried ever more seldom.
    return Verdict.REFUSED


def _is_of_login(error: AccessRefused) -> bool:
    """Whether the broker refused the user, and not a message: it was no method of a channel that was answered."""
    answered = error.method_sig
    return answered is not None and answered[0] in (0, _CONNECTION)


def told(error: BaseException) -> str:
    """Return a text of *error* for a row and for the log."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
