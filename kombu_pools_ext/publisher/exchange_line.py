"""The messages to one exchange, in the order of the calls: those to write, and those that wait for their answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..broker.amqp.deliveries import Delivery, DeliveryTracker
from ..errors import Outcome
from .outgoing import Outgoing

__all__ = ["ExchangeLine"]


class ExchangeLine(DeliveryTracker):
    """One exchange, with a channel of its own: if the broker closes that, no other exchange has lost its answers.

    Who writes numbers the messages, who leads takes the answers; both may do that at the same time.

    It stays with its connection. Whoever publishes there attaches itself: ``settled`` is called with each message that
    the broker has answered, :attr:`answered` with the line after that, and :attr:`closed` with the line when the
    broker closes its channel; all by who leads.
    """

    __slots__ = (
        *("answered", "backlog", "careful", "channel", "closed", "closed_with", "exchange"),
        *("stale", "used"),
    )

    def __init__(self, exchange: str) -> None:
        super().__init__()
        self.exchange = exchange
        self.answered: Callable[[ExchangeLine], None] | None = None
        self.closed: Callable[[ExchangeLine], None] | None = None
        #: Not written yet, in their order.
        self.backlog: deque[Outgoing] = deque()
        #: Its channel; ``None`` until the first message is written, and after its end.
        self.channel: Any = None
        #: The error with which the broker has closed the channel, until that was dealt with.
        self.closed_with: BaseException | None = None
        #: Whether one message at a time is sent, because the broker has closed the channel for one of several.
        self.careful = False
        #: Whether the next message needs another channel, because the broker has refused one on this.
        self.stale = False
        #: The number of the write in which it was used last.
        self.used = 0

    @property
    def may_write(self) -> bool:
        """Whether the next message may be written now."""
        if self.closed_with is not None:
            return False
        if not self.pending:
            return True
        return not self.stale and not self.careful

    @property
    def is_idle(self) -> bool:
        """Whether it has neither messages to write nor messages without an answer."""
        return not self.backlog and not self.pending

    def nack(self, tag: int, multiple: bool) -> None:
        # RabbitMQ remembers the leader of a quorum queue for each channel: this one may refuse all further messages.
        self.stale = True
        super().nack(tag, multiple)

    def _answer(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        pending = self.pending
        if multiple:
            # A copy, in one step: another thread may number messages meanwhile.
            numbers = [number for number in list(pending) if not tag or number <= tag]
        else:
            numbers = [tag]
        for number in numbers:
            one = pending.get(number)
            if one is not None:
                # In this order: if who leads is interrupted between the two, the message has an outcome, or is found
                # among those without one.
                self._settle(one, outcome)
                pending.pop(number, None)
        if self.answered is not None:
            self.answered(self)

    def channel_closed(self, error: BaseException) -> None:
        """Note that the broker has closed the channel with *error*."""
        self.closed_with = error
        if self.closed is not None:
            self.closed(self)

    def number(self, message: Delivery) -> None:
        """Number *message*, which is about to be written."""
        self.add(message)

    @property
    def unanswered(self) -> list[Outgoing]:
        """The messages without an answer, in the order in which they were sent."""
        return [one for one in list(self.pending.values()) if isinstance(one, Outgoing)]

    def send_again(self, messages: list[Outgoing]) -> None:
        """Put *messages* before those that are not written yet. There will be no answers to what was sent."""
        again = set(messages)
        # Who was interrupted may have left one of them there.
        self.backlog = deque([*messages, *(one for one in self.backlog if one not in again)])
        self.pending, self.sent = {}, 0
        self.channel = self.closed_with = None
        self.stale = False

    def begin(self, channel: Any) -> None:
        """Send on *channel*, a new one, from now on."""
        self.pending, self.sent = {}, 0
        self.stale = False
        self.channel = channel
