"""The numbers of the channels, by exchange: a message is encoded for its channel before that is known for certain."""

from __future__ import annotations

__all__ = ["MOST_NUMBERS", "ChannelNumbers"]

#: Exchanges that are remembered.
MOST_NUMBERS = 1000


class ChannelNumbers:
    """What number the channel of each exchange had last, and will have again unless something breaks."""

    __slots__ = ("_by_exchange", "frame_max")

    def __init__(self) -> None:
        self._by_exchange: dict[str, int] = {}
        #: Bytes of a frame, as agreed on with the broker on the last connection.
        self.frame_max = 131072

    def of(self, exchange: str) -> int:
        """Return the number for *exchange*."""
        return self._by_exchange.get(exchange, 1)

    def note(self, exchange: str, number: int) -> None:
        """Note the number of a new channel."""
        if len(self._by_exchange) >= MOST_NUMBERS:
            self._by_exchange.clear()
        self._by_exchange[exchange] = number
