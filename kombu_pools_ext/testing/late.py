"""What a slow broker says: each answer is sent when its time has come, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .clock import Clock

__all__ = ["LateAnswers"]


class LateAnswers:
    """The answers on one connection. Only one thread at a time may use it.

    :param send: sends one.
    :param delay: returns the seconds that an answer takes now.
    :param wake: is called when one may be due; it has :meth:`send_due` called.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        clock: Clock,
        delay: Callable[[], float],
        wake: Callable[[LateAnswers], object],
    ) -> None:
        self._send = send
        self._clock = clock
        self._delay = delay
        self._wake = wake
        self._waiting: deque[tuple[float, bytes]] = deque()

    def send(self, data: bytes) -> None:
        """Send *data*, now or when its time has come."""
        delay = self._delay()
        if not delay and not self._waiting:
            self._send(data)
            return
        due = self._clock.monotonic() + delay
        if self._waiting:
            # Not before what was said earlier.
            due = max(due, self._waiting[-1][0])
        self._waiting.append((due, data))
        self._clock.call_at(due, lambda: self._wake(self))

    def send_due(self) -> None:
        """Send what is due."""
        now = self._clock.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._send(self._waiting.popleft()[1])
