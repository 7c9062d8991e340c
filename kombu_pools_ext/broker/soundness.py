"""Whose error is it, and may the connection be lent again after a lease that ended with it?

An application's ``OSError`` (a full disk, ``requests.HTTPError``, a cache of its own that is gone) is of the classes
that py-amqp, redis-py and kombu count as the connection's. So the class alone decides nothing: an error is the
connection's if its own socket raised it, or the client's code on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqp.exceptions import AMQPError, MessageNacked
from kombu.exceptions import EncodeError, OperationalError, SerializerNotInstalled

from ..errors import BatchFailed, PoolError, PublishRefused, PublishReturned
from .own_errors import is_marked, passed_through, raised_by_carrier

if TYPE_CHECKING:
    from .driver import OpenConnection

__all__ = ["ANSWERED", "is_from_wire", "is_interruption", "is_sound", "verdict_on"]

#: What a publish ends with whose connection is as good as before. py-amqp's own confirms raise the plain
#: MessageNacked, which it counts among the connection's errors.
ANSWERED = (MessageNacked, PublishRefused, PublishReturned, BatchFailed)

_HARMLESS = (GeneratorExit, *ANSWERED)
#: What a body ends in that cannot be serialized, whichever of its own methods raised it.
_OF_THE_BODY = (EncodeError, SerializerNotInstalled)


def _below(item: Any) -> Any:
    """What marks the errors of *item*'s sockets; ``None`` for transports without one."""
    return getattr(item, "wire", None) or getattr(item, "bounds", None)


def is_from_wire(item: Any, error: BaseException) -> bool:
    """Whether *error*, which a publish on *item* ended with, is the connection's own.

    True for errors of the connection's reads and writes, for what py-amqp, redis-py or kombu made of them, and for what
    the broker said of channel or connection. False for an answer to one message, for the caller's own mistakes, and for
    whatever a signal handler or a callback raised meanwhile.
    """
    if not isinstance(error, Exception) or isinstance(error, ANSWERED):
        return False
    if isinstance(error, OperationalError) or is_marked(error, _below(item)):
        return True
    fatal = (*item.connection_errors, *item.recoverable_connection_errors)
    return isinstance(error, fatal) and (
        # Nobody but a client of AMQP has a use for these.
        isinstance(error, AMQPError) or raised_by_carrier(error, _drivers(item))
    )


def _drivers(item: Any) -> frozenset[str]:
    """The packages that *item*'s transport is a face of, where it is neither AMQP's nor Redis's: boto3's, say."""
    if _below(item) is not None:
        return frozenset()
    return frozenset(kind.__module__.partition(".")[0] for kind in item.connection_errors)


def is_interruption(item: Any, error: BaseException) -> bool:
    """Whether *error* came out of a publish on *item* without being about it.

    Raised by a signal handler, a time-out of gevent's or a callback, it says nothing of the message.
    """
    if not isinstance(error, Exception):
        return True
    if isinstance(error, (*ANSWERED, *_OF_THE_BODY)) or is_from_wire(item, error):
        return False
    return not raised_by_carrier(error)


def verdict_on(item: OpenConnection, error: BaseException | None) -> str | None:
    """Why *item* must not be lent again after a lease that ended with *error*; ``None`` if it may.

    An error of the connection's own, and whatever interrupted an operation on it (a time-out, ``KeyboardInterrupt``,
    ``gevent.Timeout``, a signal handler's exception), leave an unknown state behind. An application's exception does
    not, of whatever class, nor does a generator that is closed between two of its steps, nor a message that the broker
    refused or gave back.
    """
    if (
        error is not None
        and not isinstance(error, _HARMLESS)
        and (not isinstance(error, Exception) or _is_about(item, error))
    ):
        return "broken"
    return None if is_sound(item) else "broken"


def _is_about(item: OpenConnection, error: Exception) -> bool:
    fatal = (*item.connection_errors, *item.channel_errors, OperationalError)
    below = _below(item)
    if isinstance(error, PoolError):
        # About a pool, which has no state on this connection.
        return False
    if not isinstance(error, fatal):
        return below is not None and _was_interrupted(error)
    if isinstance(error, AMQPError):
        # Raised by py-amqp alone. Of another connection it is too rare to be worth telling apart.
        return True
    if below is None:
        # No socket of it is known. kombu's transports are on the way of all its errors.
        return passed_through(error, "kombu", "amqp")
    if is_marked(error, below):
        return True
    if getattr(below, "ended", False) and raised_by_carrier(error):
        # redis-py's word for what was no error of the socket's: the server hung up.
        return True
    return _was_interrupted(error)


def _was_interrupted(error: Exception) -> bool:
    """Whether *error* came out of the middle of py-amqp's or redis-py's work, and neither raised it."""
    return not raised_by_carrier(error) and passed_through(error, "amqp", "redis")


def is_sound(item: OpenConnection) -> bool:
    """Whether a lease has left *item* as it should: the same connection, its channel, and nothing pending."""
    established = item._connection
    try:
        # Another one than the one opened: it was repaired in place (kombu's `ensure` does), unbounded and unseen.
        if established is None or established is not item.established:
            return False
        below, confirms = item.wire, item.confirms
    except AttributeError:
        # From a pool that is not ours.
        if established is None:
            return False
        below = confirms = None
    if below is None:
        bounds = getattr(item, "bounds", None)
        if bounds is not None and bounds.interrupted:
            return False
        # Only py-amqp's connections know when they are gone; asked of their socket's owner, which is one call less.
        transport = getattr(established, "_transport", established)
        if transport is None or not getattr(transport, "connected", True):
            return False
    else:
        transport = established._transport
        # Interrupted: by an exception that tells nothing of the connection, as Celery's soft time limit is.
        if below.interrupted or transport is None or not transport.connected:
            return False
        # A late confirm is not for the next borrower.
        if confirms is not None and (confirms.spoiled or confirms.pending):
            return False
    channel = item._default_channel
    if channel is None:
        return True
    try:
        # Closed by the borrower: nobody opens another one in its place.
        return channel.connection is not None
    except AttributeError:
        return True
