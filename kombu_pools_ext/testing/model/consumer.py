"""What a queue knows of who takes its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .entry import Entry

__all__ = ["Consumer"]


class Consumer(Protocol):
    """Somebody who has subscribed to a queue."""

    #: Whether it wants the queue for itself.
    exclusive: bool

    def can_take(self) -> bool:
        """Whether it may get one more message now."""
        ...

    def take(self, entry: Entry) -> None:
        """Get *entry*."""
        ...

    def cancelled(self) -> None:
        """Note that the queue is gone."""
        ...
