"""The errors that say what has become of a message on AMQP."""

from __future__ import annotations

from typing import Any

from amqp import spec
from amqp.exceptions import (
    ChannelError,
    ConnectionError,
    NotAllowed,
    RecoverableConnectionError,
    error_for_code,
)

from ...errors import Outcome, PublishError, PublishNacked, PublishReturned, PublishUnknown
from .deliveries import Delivery

__all__ = ["error_of", "is_for_a_channel", "is_for_a_publish", "unknown", "unknown_after"]

#: Reply codes of a broker that ends the connection for a message which it cannot take as it is. An internal error (541)
#: or a node that shuts down (320) may have had it before.
_CANNOT_TAKE = frozenset({501, 502, 503, 504, 505, 530, 540})


def error_of(delivery: Delivery) -> PublishError:
    """Return what to raise for *delivery*, which has an outcome and was not acknowledged."""
    message_id = delivery.message_id
    if delivery.outcome is Outcome.NACKED:
        return PublishNacked(
            f"message {message_id} was refused: at least one of its queues does not have it, because it is full, "
            "say; others may have it",
            message_id,
        )
    if delivery.returned is not None and delivery.outcome is Outcome.RETURNED:
        code, text, heard = delivery.returned
        returned = PublishReturned(message_id, code, text, delivery.exchange, delivery.routing_key)
        returned.heard = heard
        # py-amqp has classes of its own for some codes: NoConsumers for 313.
        return returned.like(error_for_code(code, text, spec.Basic.Return, ChannelError))
    # Another thread read this connection, and met the end of the channel.
    return unknown(delivery, RecoverableConnectionError("the channel was closed"))


def unknown(delivery: Delivery, error: BaseException) -> PublishUnknown:
    """Return what to raise for *delivery*, which was sent and got no answer because of *error*."""
    return PublishUnknown(
        f"message {delivery.message_id} may be in the broker, or not: it was sent, and no confirm came "
        f"({type(error).__name__}: {error}); a consumer knows a copy by its message_id",
        delivery.message_id,
    ).like(error)


def unknown_after(message_id: str, error: BaseException) -> PublishUnknown:
    """Return what to raise for a message of which a try had no answer, and the last one failed with *error*."""
    return PublishUnknown(
        f"message {message_id} may be in the broker, or not: a try that was sent had no answer, and the last one "
        f"failed ({type(error).__name__}: {error}); a consumer knows a copy by its message_id",
        message_id,
    ).like(error)


def is_for_a_publish(error: Any) -> bool:
    """Return whether the broker has ended the connection for a message that it has not taken."""
    return (
        isinstance(error, ConnectionError)
        and error.method_sig == spec.Basic.Publish
        and error.reply_code in _CANNOT_TAKE
    )


def is_for_a_channel(error: Any) -> bool:
    """Return whether the broker has ended the connection because it allows no further channel."""
    return isinstance(error, NotAllowed) and error.method_sig == spec.Channel.Open
