"""Messages that the broker has refused, until they are sent again."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Outcome
from ..settings import RetryPolicy
from .outgoing import Outgoing

__all__ = ["Refused"]


class Refused:
    """Messages that wait for their next try; for who leads."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Outgoing]] = []

    def add(self, message: Outgoing, now: float, policy: RetryPolicy) -> None:
        """Have *message* wait for as long as *policy* says.

        :param now: in seconds of ``time.monotonic``.
        """
        pause = policy.interval_start + message.nacks * policy.interval_step
        message.nacks += 1
        self._waiting.append((now + min(pause, policy.interval_max), message))

    def send(self, now: float, send: Callable[[Outgoing], object]) -> float:
        """Call *send* with those whose time has come; return when it comes for the next."""
        due = float("inf")
        if self._waiting:
            later = []
            for at, message in self._waiting:
                # It is on its way again if its connection has broken meanwhile.
                if message.done or message.outcome is not Outcome.NACKED:
                    continue
                if at <= now:
                    send(message)
                    message.begin_again()
                else:
                    later.append((at, message))
                    due = min(due, at)
            self._waiting = later
        return due

    def forget(self) -> None:
        """Forget all of them: they have their outcomes."""
        self._waiting = []
