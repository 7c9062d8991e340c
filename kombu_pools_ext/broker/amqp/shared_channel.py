"""A channel for the messages to one exchange, which stays open between two uses of its connection."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any

from amqp import spec
from amqp.exceptions import ChannelError, error_for_code

from .channel import Channel

__all__ = ["SharedChannel"]


def _frame(channel: int, method: tuple[int, int], arguments: bytes = b"") -> bytes:
    return pack(">BHIHH", 1, channel, 4 + len(arguments), *method) + arguments + b"\xce"


class SharedChannel(Channel):
    """A channel that is opened, and closed, without waiting for the broker's answer.

    :param connection: that of py-amqp.
    :param number: which one of the connection's channels it is.
    :param closed: called with py-amqp's error when the broker closes it.
    """

    def __init__(
        self, connection: Any, number: int, closed: Callable[[BaseException], object]
    ) -> None:
        self.__dict__["_closed"] = closed
        super().__init__(connection, number)

    @staticmethod
    def free_number(connection: Any) -> int:
        """Return a number that no channel of *connection* has. Only one thread at a time may open channels."""
        # py-amqp forgets a channel first, and its number a moment later.
        taken = {*connection.channels, *connection._used_channel_ids}
        # From the top: the channels of py-amqp's that others open begin with one.
        number: int = connection.channel_max
        while number in taken:
            number -= 1
        return number

    #: Not what a lease has left behind.
    is_kept = True

    @property
    def opening(self) -> bytes:
        """The frames that open it, in confirm mode: the broker reads them before the first message."""
        number = self.channel_id
        # An empty text; and "no answer".
        return _frame(number, spec.Channel.Open, b"\0") + _frame(number, spec.Confirm.Select, b"\1")

    @property
    def closing(self) -> bytes:
        """The frame that closes it. It is forgotten when the answer comes."""
        return _frame(self.channel_id, spec.Channel.Close, pack(">HBHH", 200, 0, 0, 0))

    @property
    def assent(self) -> bytes:
        """The answer to the broker's closing of it. Nothing is written on it after that."""
        return _frame(self.channel_id, spec.Channel.CloseOk)

    def _on_close(self, reply_code: int, reply_text: str, class_id: int, method_id: int) -> None:
        # py-amqp answers at once, and opens it again. But another thread may be writing a message on it, which would
        # come after the answer, and the broker would end the connection.
        self.__dict__["_closed"](
            error_for_code(reply_code, reply_text, (class_id, method_id), ChannelError)
        )
