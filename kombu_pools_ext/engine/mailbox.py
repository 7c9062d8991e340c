"""What a thread is told by others, a finalizer or signal handler among them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue for one reader. ``put`` never waits, and may interrupt a ``put`` or ``get`` at any step.

    No ``queue.SimpleQueue``: eventlet replaces that with one that has a lock, for which a finalizer that interrupts a
    ``put`` would wait for ever.
    """

    __slots__ = ("_filled", "_letters")

    def __init__(self) -> None:
        self._letters: deque[T] = deque()
        # Looked up now, not at import: gevent and eventlet may have replaced it. Taken, but for when there is a letter.
        self._filled = threading.Lock()
        self._filled.acquire()

    def put(self, letter: T) -> None:
        """Have the reader find *letter*."""
        # In this order: a reader that was woken before looks after that.
        self._letters.append(letter)
        if self._filled.locked():
            # Closes the race of two who found it taken.
            with contextlib.suppress(RuntimeError):
                self._filled.release()

    def get(self, timeout: float) -> list[T]:
        """Return all letters; wait up to *timeout* seconds for the first.

        There may be none, also before that: what one call was woken for, the call before may have found.
        """
        self._filled.acquire(timeout=timeout)
        letters: list[T] = []
        while self._letters:
            letters.append(self._letters.popleft())
        return letters

    @property
    def empty(self) -> bool:
        """Whether there is no letter."""
        return not self._letters
