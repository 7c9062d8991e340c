"""What py-amqp reads for us, and cannot: rubbish is the end of the connection, and one error says so."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from amqp.exceptions import (
    AMQPError,
    AMQPNotImplementedError,
    FrameSyntaxError,
    UnexpectedFrame,
)

from .own_errors import raised_within

if TYPE_CHECKING:
    from .wire import Wire

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


def told(error: Exception, wire: Wire | None) -> Exception:
    """What to raise for *error*, one of :data:`UNREADABLE` that left a read of py-amqp's.

    That is ``UnexpectedFrame`` for what py-amqp stumbled over, and the connection is not lent again, whoever swallows
    it: what else is to come begins in the middle of something. What a callback of the application raised in the read
    stays as it is.

    :param wire: what is below the connection, once it is open.
    """
    own = isinstance(error, AMQPError)
    if not own and not raised_within(error, "amqp"):
        return error
    if wire is not None:
        wire.interrupted = True
    return error if own else UnexpectedFrame(f"what came could not be read: {error!r}")
