"""The broker's clock: the system's, or one that a test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """What the broker knows of time."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        ...

    def time(self) -> float:
        """Return seconds since 1970."""
        ...

    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call *function* when :meth:`monotonic` has reached *when*, or soon after, in any thread.

        :returns: what calls that off.
        """
        ...


class SystemClock:
    """The time of the system."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        timer = threading.Timer(max(0.0, when - time.monotonic()), function)
        timer.daemon = True
        timer.start()
        return timer.cancel


class ManualClock:
    """A clock that stands still until a test moves it with :meth:`advance`.

    :param start: seconds since 1970 at the beginning.
    """

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._start = start
        self._passed = 0.0
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self._passed

    def time(self) -> float:
        return self._start + self._passed

    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        one = when, function
        with self._lock:
            self._due.append(one)
        return lambda: self._call_off(one)

    def _call_off(self, one: tuple[float, Callable[[], object]]) -> None:
        with self._lock:
            if one in self._due:
                self._due.remove(one)

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and do what is due by then, in its order.

        :raises ValueError: if they are negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds!r} seconds")
        until = self._passed + seconds
        while (next_one := self._take(until)) is not None:
            when, function = next_one
            self._passed = max(self._passed, when)
            function()
        self._passed = until

    def _take(self, until: float) -> tuple[float, Callable[[], object]] | None:
        with self._lock:
            due = [one for one in self._due if one[0] <= until]
            if not due:
                return None
            found = min(due, key=lambda one: one[0])
            self._due.remove(found)
            return found
