"""What a relay has of one alias."""

from __future__ import annotations

from typing import Any

from .chain import Chain

__all__ = ["AliasLine"]

#: Declarations that are remembered; others are made with each message.
MOST_DECLARED = 1000


class AliasLine:
    """The rows of one alias that a relay has, and when it looks for more.

    :param alias: of the pool.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        #: Those that have a message on its way.
        self.chains: list[Chain] = []
        #: The ids of all their rows.
        self.ids: set[int] = set()
        #: How often in a row the broker was away.
        self.failures = 0
        #: How many messages in a row got no answer.
        self.unanswered = 0
        #: Until then the broker counts as away, in seconds of the monotonic clock.
        self.again = 0.0
        #: Messages that were delivered, and how many of them were told of.
        self.delivered = self.reported = 0
        #: Whether the last look found nothing that could be sent.
        self.was_empty = False
        #: When to look for rows, in seconds of the monotonic clock.
        self.next_look = 0.0

        #: What was declared with a message that arrived, by its number.
        self._declared: dict[int, tuple[Any, ...]] = {}

    def has_declared(self, entities: tuple[Any, ...]) -> bool:
        """Whether these, which are always the same object, were declared already."""
        return id(entities) in self._declared

    def note_declared(self, entities: tuple[Any, ...]) -> None:
        """Note that *entities* were declared."""
        if entities and len(self._declared) < MOST_DECLARED:
            # It keeps them, so that nothing else gets their number.
            self._declared[id(entities)] = entities

    def forget_declared(self) -> None:
        """Declare all again: something has been deleted."""
        self._declared.clear()

    def is_due(self, now: float) -> bool:
        """Whether it is time to look for rows."""
        return now >= self.next_look

    def look_again(self, when: float) -> None:
        """Look for rows at *when*, in seconds of the monotonic clock; 0.0 is at once."""
        self.next_look = when
