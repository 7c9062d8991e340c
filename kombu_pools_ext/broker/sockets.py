"""What the sockets of AMQP and of Redis have in common: the system's own poll, and a deadline for a block of code."""

from __future__ import annotations

import select
import sys
from typing import Any, Protocol

__all__ = ["GONE", "Within", "original_poll"]

#: What a peer that hung up looks like; POLLRDHUP is Linux only.
GONE = (
    select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
    if hasattr(select, "POLLHUP")
    else 0
)


def original_poll() -> Any:
    """``select.poll`` as the system has it, ``None`` where it has none.

    gevent's switches greenlets, and takes milliseconds beside a busy one; eventlet takes it away.
    """
    if "gevent" in sys.modules:
        from gevent.monkey import get_original

        return get_original("select", "poll") if hasattr(select, "poll") else None
    if "eventlet" in sys.modules:
        from eventlet.patcher import original

        return getattr(original("select"), "poll", None)
    return getattr(select, "poll", None)


class _Bounded(Protocol):
    #: In seconds of ``time.monotonic``; ``None`` is never.
    deadline: float | None


class Within:
    """Within, what *bounded* reads and writes ends by a deadline; of nested ones the earlier holds.

    A class, for a generator's context costs a publish twice as much.

    :param deadline: in seconds of ``time.monotonic``; ``None`` sets none.
    """

    __slots__ = ("_before", "_bounded", "_deadline")

    def __init__(self, bounded: _Bounded, deadline: float | None) -> None:
        self._bounded = bounded
        self._deadline = deadline

    def __enter__(self) -> None:
        before = self._before = self._bounded.deadline
        if before is None or (self._deadline is not None and self._deadline < before):
            self._bounded.deadline = self._deadline

    def __exit__(self, *exc: object) -> None:
        self._bounded.deadline = self._before
