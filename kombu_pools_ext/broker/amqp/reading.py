"""What py-amqp cannot read: rubbish ends the connection, with one error for all kinds of it."""

from __future__ import annotations

import struct

from amqp.exceptions import (
    AMQPError,
    AMQPNotImplementedError,
    FrameSyntaxError,
    UnexpectedFrame,
)

from ..own_errors import raised_within
from ..session import Session

__all__ = ["UNREADABLE", "told"]

#: What py-amqp makes of frames that are none, its own word for it included.
UNREADABLE = (
    struct.error,
    LookupError,
    ValueError,
    ArithmeticError,
    TypeError,
    RecursionError,
    MemoryError,
    UnexpectedFrame,
    FrameSyntaxError,
    AMQPNotImplementedError,
)


def told(error: Exception, session: Session | None) -> Exception:
    """What to raise for *error*, one of :data:`UNREADABLE` that left a read of py-amqp's.

    That is ``UnexpectedFrame`` for what py-amqp stumbled over, and the connection is not lent again, whoever swallows
    it: what else is to come begins in the middle of something. What a callback of the application raised in the read
    stays as it is.

    :param session: that of the connection.
    """
    own = isinstance(error, AMQPError)
    if not own and not raised_within(error, "amqp"):
        return error
    if session is not None:
        session.break_off()
    return error if own else UnexpectedFrame(f"what came could not be read: {error!r}")
