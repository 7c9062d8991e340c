"""Waking the coroutines of an event loop from other threads, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque

__all__ = ["LoopAlarm"]

#: How many coroutines are woken in one turn of the loop: each makes its next message then, which takes it some 40 us.
MOST_AT_ONCE = 20


class LoopAlarm:
    """Wakes those who wait in one event loop.

    To wake a loop from another thread takes a system call. What comes until the loop has woken needs no further one.
    """

    __slots__ = ("_loop", "_ringing", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly: it is found by its loop, and must not keep it.
        self._loop = weakref.ref(loop)
        self._woken: deque[asyncio.Future[None]] = deque()
        self._ringing = False

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Set the result of *waiter*, a future of the loop; from any thread."""
        self._ring_for([waiter])

    def _ring_for(self, waiters: list[asyncio.Future[None]]) -> None:
        """Have the loop wake *waiters* and those who are due already."""
        try:
            self._woken.extend(waiters)
            if self._ringing:
                return
            self._ringing = True
            self._ring()
        except BaseException:
            # Interrupted, perhaps before it has rung: once too often rather than never.
            self._ringing = False
            self._ring()
            raise

    def _ring(self) -> None:
        loop = self._loop()
        if loop is not None:
            # A loop that was closed has nobody who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        """Wake those whose turn it is, and the rest in the next turns of the loop: others want to run in between."""
        # In this order: what comes after the first step rings again, what came before is found by the others.
        self._ringing = False
        try:
            for _ in range(MOST_AT_ONCE):
                if not self._woken:
                    break
                waiter = self._woken.popleft()
                if not waiter.done():
                    waiter.set_result(None)
        finally:
            if self._woken:
                self._ring_for([])
