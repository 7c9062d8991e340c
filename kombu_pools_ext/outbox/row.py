"""A message of the outbox, as a row has it."""

from __future__ import annotations

from dataclasses import dataclass

from ..prepared import PreparedMessage
from ..settings import PoolSettings
from .arguments import dumped, loaded
from .schema import LONGEST

__all__ = ["Row", "check_alias", "check_row"]


@dataclass(frozen=True, slots=True)
class Row:
    """A claimed row: what a relay needs to publish it, and to say what became of it.

    Its ``repr`` shows neither body nor arguments, because they may contain secrets.
    """

    id: int
    message_id: str
    alias: str
    #: Messages of an alias with the same key arrive in the order of their commits; ``None`` is none.
    order_key: str | None
    #: How often the broker has refused it.
    attempts: int
    exchange: str
    routing_key: str
    arguments: str
    body: bytes

    @property
    def message(self) -> PreparedMessage:
        """The message to publish.

        :raises ValueError: if a later version has written what this one cannot read.
        """
        arguments = loaded(self.arguments)
        arguments.update(
            message_id=self.message_id,
            exchange=self.exchange,
            routing_key=self.routing_key,
            # The body is compressed already, if the message has a compression.
            compression="",
        )
        return PreparedMessage(self.alias, self.body, arguments, None)

    def __repr__(self) -> str:
        key = "" if self.order_key is None else f", key {self.order_key!r}"
        return (
            f"<Row {self.id}: message {self.message_id}, alias {self.alias!r}{key}, exchange {self.exchange!r}, "
            f"routing key {self.routing_key!r}>"
        )


def check_alias(using: str, settings: PoolSettings) -> None:
    """Look whether messages of the alias can be rows.

    :raises ValueError: if a relay could not know that the broker has them.
    """
    if settings.is_amqp and not settings.has_confirms:
        raise ValueError(
            f"alias {using!r} has no confirms, so a relay would drop the row of a message that the broker does not "
            "have; leave CONFIRM True for messages of the outbox"
        )


def check_row(message: PreparedMessage, key: str | None) -> str:
    """Return the text of the message's arguments, for its row.

    :raises TypeError: if it has an argument that no row can hold, or the key is no text.
    :raises ValueError: if a text is too long for its column.
    """
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be text or None, not {type(key).__name__}")
    if key == "":
        raise ValueError("key is empty; leave it out for a message without an order")
    given = message.arguments
    for name, text in (
        ("key", key),
        ("the alias", message.using),
        ("message_id", message.message_id),
        ("exchange", given["exchange"]),
        ("routing_key", given["routing_key"]),
    ):
        if text is not None and len(text) > LONGEST:
            raise ValueError(
                f"{name} has {len(text)} characters, and the outbox takes {LONGEST} at most"
            )
        if text is not None and "\0" in text:
            raise ValueError(f"{name} has a NUL in it, which a database does not take")
    return dumped(given)
