"""What py-amqp reads for us, and cannot: rubbish is the end of the connection, and one error says so."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AMQPNotImplementedError, FrameSyntaxError, UnexpectedFrame

from .own_errors import raised_within

if TYPE_CHECKING:
    from .wire import Wire

__all__ = ["guard_reads"]

#: What py-amqp makes of frames that are none, besides errors of its own.
_GARBLED = (
    struct.error,
    LookupError,
    ValueError,
    ArithmeticError,
    TypeError,
    RecursionError,
    MemoryError,
)
#: py-amqp's own word for it.
_SPOILT = (UnexpectedFrame, FrameSyntaxError, AMQPNotImplementedError)


def guard_reads(established: Any, wire: Wire) -> None:
    """Have *established*, an ``amqp.Connection``, raise ``UnexpectedFrame`` for what it cannot read, whoever reads.

    The connection is not lent again after that. What a callback of the application raises in a read stays as it is.
    """
    read = established.blocking_read

    def blocking_read(timeout: float | None = None) -> Any:
        try:
            return read(timeout)
        except _GARBLED as error:
            if not raised_within(error, "amqp"):
                raise
            wire.interrupted = True
            raise UnexpectedFrame(f"what came could not be read: {error!r}") from error
        except _SPOILT:
            # Whoever swallows it gives the connection back: what else is to come begins in the middle of something.
            wire.interrupted = True
            raise

    established.blocking_read = blocking_read
