"""The messages that no thread waits for, and those who are told what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from .in_flight import InFlight
from .outgoing import Outgoing
from .reader import Reader

__all__ = ["Unattended"]

logger = logging.getLogger("kombu_pools_ext")


class Unattended:
    """Messages that have no outcome yet, or an outcome that was not told.

    :param in_flight: counts them.
    :param reader: the thread that tells.
    """

    __slots__ = ("_in_flight", "_messages", "_reader")

    def __init__(self, in_flight: InFlight, reader: Reader) -> None:
        self._in_flight = in_flight
        self._reader = reader
        self._messages: dict[Outgoing, None] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def all(self) -> list[Outgoing]:
        """Return them, oldest first."""
        return list(self._messages)

    def add(
        self, message: Outgoing, told: Callable[[Outgoing], object], *, by_anybody: bool
    ) -> None:
        """Have *told* called with *message* when it has its outcome, in the reading thread.

        :param by_anybody: after success it is called by whoever learns of it, and perhaps twice.
        """
        message.settled = partial(self._told_by_anybody if by_anybody else self._told, told)
        self._in_flight.add(message)
        self._messages[message] = None

    def forget(self, message: Outgoing) -> None:
        """Count *message* no more; nobody is going to be told of it."""
        self.drop(message)
        self._in_flight.forget(message)

    def drop(self, message: Outgoing) -> None:
        """Count *message* no more; it has its outcome."""
        self._messages.pop(message, None)

    def _told(self, told: Callable[[Outgoing], object], message: Outgoing) -> None:
        """Called by who settles *message*; it is told in the reading thread, not in another caller's."""
        self._in_flight.forget(message)
        self._reader.call(partial(self._tell, told, message))
        self.drop(message)
        self._reader.wake()

    def _told_by_anybody(self, told: Callable[[Outgoing], object], message: Outgoing) -> None:
        """The same for a message that is told in a few steps, if all went well."""
        if message.error is not None:
            self._told(told, message)
            return
        self._in_flight.forget(message)
        try:
            self._tell(told, message)
        except Exception:
            # Not that of the caller who reads for all.
            logger.exception("a callback of a published message has failed")
        self.drop(message)

    @staticmethod
    def _tell(told: Callable[[Outgoing], object], message: Outgoing) -> None:
        """Call *told*, unless it was called before."""
        if message.settled is not None:
            message.settled = None
            told(message)
