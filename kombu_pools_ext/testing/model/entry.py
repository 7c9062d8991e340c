"""A message in a queue."""

from __future__ import annotations

from .message import Message

__all__ = ["Entry"]


class Entry:
    """One message of one queue.

    :param number: its place: a message that comes back goes where it was.
    :param expires: when it does, in seconds of the broker's clock; ``None`` is never.
    """

    __slots__ = ("expires", "message", "number", "priority", "queue", "redelivered")

    def __init__(
        self, queue: str, message: Message, number: int, priority: int, expires: float | None
    ) -> None:
        self.queue = queue
        self.message = message
        self.number = number
        self.priority = priority
        self.expires = expires
        self.redelivered = False
