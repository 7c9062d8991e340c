"""What was sent on a channel in confirm mode and what the broker answered, by number; no I/O."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import Outcome

__all__ = ["Delivery", "DeliveryTracker"]

_ACKED, _NACKED, _RETURNED, _UNKNOWN = Outcome


class Delivery:
    """One message on its way."""

    __slots__ = (
        "exchange",
        "mandatory",
        "message_id",
        "outcome",
        "returned",
        "routing_key",
        "size",
        "unsent",
    )

    def __init__(
        self, message_id: str, exchange: str, routing_key: str, mandatory: bool, size: int
    ) -> None:
        self.message_id = message_id
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.size = size
        #: Reply code and text, if it came back, and whether a callback of the application has heard of that. Its ack
        #: comes after that.
        self.returned: tuple[int, str, bool] | None = None
        #: ``None`` as long as it is on its way.
        self.outcome: Outcome | None = None
        #: Whether nothing of it was written: then it is in no queue, although its outcome is UNKNOWN.
        self.unsent = False


class DeliveryTracker:
    """Numbers the messages of a channel as the broker does, and notes its answers. It does no I/O.

    :param settled: called with each message that has its outcome.
    """

    __slots__ = ("losses", "pending", "returnable", "sent", "settled")

    def __init__(self, settled: Callable[[Delivery], None] | None = None) -> None:
        self.settled = settled
        #: How often :meth:`fail_all` was called.
        self.losses = 0
        #: Messages since confirm mode began: the number of the last one.
        self.sent = 0
        #: Those without an answer, by their number, in the order of sending.
        self.pending: dict[int, Delivery] = {}
        #: Bytes of those among them that may come back.
        self.returnable = 0

    def add(self, delivery: Delivery) -> None:
        """Number *delivery*, which is about to be sent."""
        self.sent += 1
        self.pending[self.sent] = delivery
        if delivery.mandatory:
            self.returnable += delivery.size

    def ack(self, tag: int, multiple: bool) -> None:
        """The broker has number *tag*, or all up to it."""
        self._answer(tag, multiple, _ACKED)

    def nack(self, tag: int, multiple: bool) -> None:
        """The broker refused number *tag*, or all up to it."""
        self._answer(tag, multiple, _NACKED)

    def on_return(
        self,
        code: int,
        text: str,
        exchange: str,
        routing_key: str,
        message_id: str | None,
        *,
        heard: bool = False,
    ) -> None:
        """A message came back. A return has no number, and comes before the ack of its message.

        :param heard: whether the application has heard of it.
        """
        # A copy, in one step: on a shared connection another thread may number messages meanwhile.
        for one in list(self.pending.values()):
            if (
                one.message_id == message_id
                and one.mandatory
                and one.returned is None
                and one.exchange == exchange
                and one.routing_key == routing_key
            ):
                one.returned = code, text, heard
                return

    def fail_all(self, unsent: int = 0) -> None:
        """There will be no more answers, and the count begins anew.

        :param unsent: how many of the last messages were not written.
        """
        pending, self.pending, self.sent, self.returnable = self.pending, {}, 0, 0
        self.losses += 1
        written = len(pending) - unsent
        for number, one in enumerate(pending.values()):
            one.unsent = number >= written
            self._settle(one, _UNKNOWN)

    def _answer(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        pending = self.pending
        if multiple:
            # Zero is the specification's way to say "all".
            for number in _up_to(tag, pending) if tag else list(pending):
                self._settle(pending.pop(number), outcome)
        else:
            # None: an answer to nothing that was sent, which is no news of anything else.
            one = pending.pop(tag, None)
            if one is not None:
                self._settle(one, outcome)

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        if delivery.mandatory and outcome is not _UNKNOWN:
            self.returnable -= delivery.size
            if delivery.returned and outcome is _ACKED:
                outcome = _RETURNED
        delivery.outcome = outcome
        settled = self.settled
        if settled is not None:
            settled(delivery)


def _up_to(tag: int, pending: dict[int, Delivery]) -> list[int]:
    numbers = []
    for number in pending:
        if number > tag:
            break
        numbers.append(number)
    return numbers
