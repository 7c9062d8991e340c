"""A subscription to a queue, as the broker sees it."""

from __future__ import annotations

from collections.abc import Callable

from ..model.entry import Entry
from ..model.queue import Queue

__all__ = ["Consumption"]


class Consumption:
    """One consumer on one channel.

    :param prefetch: messages that it may have without acknowledging them; 0 is any number.
    :param may_send: whether the channel lets it have one more.
    :param send: sends it a message.
    :param tell_cancelled: tells the client that the queue is gone.
    """

    def __init__(
        self,
        tag: str,
        queue: Queue,
        *,
        no_ack: bool,
        exclusive: bool,
        prefetch: int,
        may_send: Callable[[], bool],
        send: Callable[[Consumption, Entry], None],
        tell_cancelled: Callable[[Consumption], None],
    ) -> None:
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.unacknowledged = 0
        self._prefetch = prefetch
        self._may_send = may_send
        self._send = send
        self._tell_cancelled = tell_cancelled

    def can_take(self) -> bool:
        if self.no_ack:
            return True
        return self._may_send() and not (0 < self._prefetch <= self.unacknowledged)

    def take(self, entry: Entry) -> None:
        self._send(self, entry)

    def cancelled(self) -> None:
        self._tell_cancelled(self)
