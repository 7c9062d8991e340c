"""The messages without an outcome, and the bound on the bytes of large ones."""

from __future__ import annotations

from .outgoing import Outgoing

__all__ = ["LARGE", "MOST_BYTES", "InFlight"]

#: Bytes of the bodies of large messages that may be without an answer; a large one has more than :data:`LARGE`.
LARGE = 16384
MOST_BYTES = 16 << 20


class InFlight:
    """All messages without an outcome; each change is one step of the interpreter."""

    __slots__ = ("_large", "_live")

    def __init__(self) -> None:
        self._live: dict[Outgoing, None] = {}
        self._large: dict[Outgoing, None] = {}

    def __len__(self) -> int:
        return len(self._live)

    def add(self, message: Outgoing) -> None:
        """Count *message*."""
        self._live[message] = None
        if message.bytes > LARGE:
            self._large[message] = None

    def forget(self, message: Outgoing) -> None:
        """Count *message* no more."""
        self._live.pop(message, None)
        self._large.pop(message, None)

    def messages(self) -> list[Outgoing]:
        """Return all of them, oldest first."""
        return list(self._live)

    def has_no_room_for(self, message: Outgoing) -> bool:
        """Whether large messages that wait for their answers leave no room for *message*."""
        if message.bytes <= LARGE or not self._large:
            return False
        sent = 0
        for one in list(self._large):
            if one.written and not one.done and one is not message:
                sent += one.bytes
        return bool(sent) and sent + message.bytes > MOST_BYTES
