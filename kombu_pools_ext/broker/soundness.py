"""Whose error is it, and may the connection be lent again after a lease that ended with it?

An application's ``OSError`` (a full disk, ``requests.HTTPError``, a cache of its own that is gone) is of the classes
that py-amqp, redis-py and kombu count as the connection's. So the class alone decides nothing: an error is the
connection's if its own socket raised it, or the client's code on it.
"""

from __future__ import annotations

from amqp.exceptions import AMQPError, MessageNacked
from kombu.exceptions import EncodeError, OperationalError, SerializerNotInstalled

from ..errors import BatchFailed, PoolError, PublishError, PublishRefused, PublishReturned
from .own_errors import passed_through, raised_by_library
from .session import Session

__all__ = ["ANSWERED", "is_connection_error", "is_interruption", "verdict_on"]

#: What a publish ends with whose connection is as good as before. py-amqp's own confirms raise the plain
#: MessageNacked, which it counts among the connection's errors.
ANSWERED = (MessageNacked, PublishRefused, PublishReturned, BatchFailed)

_HARMLESS = (GeneratorExit, *ANSWERED)
#: What a body ends in that cannot be serialized, whichever of its own methods raised it.
_OF_THE_BODY = (EncodeError, SerializerNotInstalled)


def is_connection_error(session: Session, error: BaseException) -> bool:
    """Whether *error*, which a publish on *session* ended with, is the connection's own.

    True for errors of the connection's reads and writes, for what py-amqp, redis-py or kombu made of them, and for what
    the broker said of channel or connection. False for an answer to one message, for the caller's own mistakes, and for
    whatever a signal handler or a callback raised meanwhile.
    """
    if not isinstance(error, Exception) or isinstance(error, ANSWERED):
        return False
    if isinstance(error, OperationalError) or session.has_raised(error):
        return True
    connection = session.connection
    fatal = (*connection.connection_errors, *connection.recoverable_connection_errors)
    return isinstance(error, fatal) and (
        # Nobody but a client of AMQP has a use for these.
        isinstance(error, AMQPError) or raised_by_library(error, _drivers(session))
    )


def _drivers(session: Session) -> frozenset[str]:
    """The client packages below the transport, where its sockets are not known: boto3's, say."""
    if session.knows_its_sockets:
        return frozenset()
    return frozenset(
        kind.__module__.partition(".")[0] for kind in session.connection.connection_errors
    )


def is_interruption(session: Session, error: BaseException) -> bool:
    """Whether *error* came out of a publish on *session* without being about it.

    Raised by a signal handler, a time-out of gevent's or a callback, it says nothing of the message.
    """
    if not isinstance(error, Exception):
        return True
    if isinstance(error, (*ANSWERED, *_OF_THE_BODY)) or is_connection_error(session, error):
        return False
    return not raised_by_library(error)


def verdict_on(session: Session, error: BaseException | None) -> str | None:
    """Why *session* must not be lent again after a lease that ended with *error*; ``None`` if it may.

    An error of the connection's own, and whatever interrupted an operation on it (a time-out, ``KeyboardInterrupt``,
    ``gevent.Timeout``, a signal handler's exception), leave an unknown state behind. An application's exception does
    not, of whatever class, nor does a generator that is closed between two of its steps, nor a message that the broker
    refused or gave back.
    """
    if (
        error is not None
        and not isinstance(error, _HARMLESS)
        and (not isinstance(error, Exception) or _is_about(session, error))
    ):
        return "broken"
    return None if session.is_sound() else "broken"


def _is_about(session: Session, error: Exception) -> bool:
    connection = session.connection
    fatal = (*connection.connection_errors, *connection.channel_errors, OperationalError)
    if isinstance(error, PoolError):
        # About a pool, which has no state on this connection.
        return False
    if not isinstance(error, fatal):
        return session.knows_its_sockets and _was_interrupted(error)
    if isinstance(error, AMQPError) and not isinstance(error, PublishError):
        # Raised by py-amqp alone. Of another connection it is too rare to be worth telling apart.
        return True
    if not session.knows_its_sockets:
        # kombu's transports are on the way of all its errors.
        return passed_through(error, "kombu", "amqp")
    if session.has_raised(error):
        return True
    if session.has_ended and raised_by_library(error):
        # redis-py's word for what was no error of the socket's: the server hung up.
        return True
    return _was_interrupted(error)


def _was_interrupted(error: Exception) -> bool:
    """Whether *error* came out of the middle of py-amqp's or redis-py's work, and neither raised it."""
    return not raised_by_library(error) and passed_through(error, "amqp", "redis")
