"""What a thread is told by others, a finalizer or signal handler among them."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from .auto_reset_event import AutoResetEvent

__all__ = ["ReentrantQueue"]

T = TypeVar("T")


class ReentrantQueue(Generic[T]):
    """A queue for one reader. ``put`` never waits, and may interrupt a ``put`` or ``get`` at any step.

    No ``queue.SimpleQueue``: eventlet replaces that with one that has a lock, for which a finalizer that interrupts a
    ``put`` would wait for ever.
    """

    __slots__ = ("_filled", "_items")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._filled = AutoResetEvent()

    def put(self, item: T) -> None:
        """Have the reader find *item*."""
        # In this order: a reader that was woken before looks after that.
        self._items.append(item)
        self._filled.set()

    def get(self, timeout: float) -> list[T]:
        """Return all items; wait up to *timeout* seconds for the first.

        There may be none, also before that: what one call was woken for, the call before may have found.
        """
        self._filled.wait(timeout)
        items: list[T] = []
        while self._items:
            items.append(self._items.popleft())
        return items

    @property
    def empty(self) -> bool:
        """Whether there is no item."""
        return not self._items
