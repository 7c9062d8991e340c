"""What an operation came to, in terms that can be compared; and where ours is announced to come to something else."""

from __future__ import annotations

import queue
import socket
import struct
from typing import Any, NamedTuple

import kombu
from kombu.exceptions import (
    ChannelError,
    ConnectionLimitExceeded,
    ContentDisallowed,
    EncodeError,
    InconsistencyError,
    LimitExceeded,
    NotBoundError,
    OperationalError,
    SerializationError,
)
from vine import promise

__all__ = ["ANNOUNCED", "Announced", "Outcome", "is_same", "outcome_of", "seen"]


class Announced(NamedTuple):
    """A difference that users are told of."""

    #: Below ``docs/``.
    page: str
    #: Words of the row, or of the sentence, that tells it.
    words: str


#: The only differences that the comparison lets pass.
ANNOUNCED = {
    "acquire connects": Announced(
        "howto/migrate-from-kombu-pools.md",
        "| `acquire()` returns a connection that connects when it is used |",
    ),
    "message_id": Announced(
        "howto/migrate-from-kombu-pools.md", "| a message without a `message_id` has none |"
    ),
    "exception in a with block": Announced(
        "howto/migrate-from-kombu-pools.md",
        "| an application's exception in a `with` block closes the connection |",
    ),
    "what cannot be encoded": Announced(
        "howto/migrate-from-kombu-pools.md",
        "| a header that AMQP cannot carry, a `priority` of 300, an `expiration` as text raise",
    ),
    "retry policies": Announced(
        "howto/migrate-from-kombu-pools.md",
        "| `publish(retry=True)` repairs the connection in place,",
    ),
    "keys of groups": Announced(
        "howto/migrate-from-kombu-pools.md", "| keys of groups are lists with the password |"
    ),
    "more families": Announced(
        "howto/migrate-from-kombu-pools.md", "the errors are kinds of kombu's errors"
    ),
    "unlimited pools": Announced(
        "howto/migrate-from-kombu-pools.md",
        "| an unlimited pool (`limit=None`) closes what comes back |",
    ),
    "promise": Announced("reference/api.md", "own `publish` returns py-amqp's promise"),
}

#: The families by which applications catch errors, the narrow ones first.
FAMILIES: tuple[type[BaseException], ...] = (
    ConnectionLimitExceeded,
    LimitExceeded,
    ContentDisallowed,
    EncodeError,
    SerializationError,
    InconsistencyError,
    NotBoundError,
    ChannelError,
    OperationalError,
    queue.Empty,
    socket.timeout,
    struct.error,
    ConnectionError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


class Outcome(NamedTuple):
    """What an operation returned or raised."""

    kind: str
    value: Any


def outcome_of(result: Any, error: BaseException | None, connection: kombu.Connection) -> Outcome:
    """What *result*, or *error* if it was raised, looks like to an application.

    :param connection: names the errors of its transport.
    """
    if error is None:
        return Outcome("returned", seen(result))
    families = [one.__name__ for one in FAMILIES if isinstance(error, one)]
    for name in ("connection_errors", "channel_errors", "recoverable_connection_errors"):
        if isinstance(error, getattr(connection, name)):
            families.append(name)
    return Outcome("raised", tuple(families) or type(error).__name__)


def is_same(theirs: Outcome, ours: Outcome) -> bool:
    """Whether an application cannot tell the two: what catches kombu's error catches ours, which may be more."""
    if theirs.kind == ours.kind == "raised" and not isinstance(theirs.value, str):
        return set(theirs.value) <= set(ours.value)
    return theirs == ours


def seen(value: Any) -> Any:
    """*value* without what differs from run to run."""
    if isinstance(value, promise):
        # Ours returns None, which is announced.
        return None
    if isinstance(value, dict):
        return {key: seen(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [seen(one) for one in value]
    if isinstance(value, str | bytes | int | float | bool | type(None)):
        return value
    return f"<{type(value).__name__}>"
