"""What the sockets of AMQP and of Redis have in common: the system's own poll, and a deadline for a block of code."""

from __future__ import annotations

import select
from types import BuiltinFunctionType
from typing import Any, Protocol

from ..engine.loaded import loaded

__all__ = ["GONE", "Within", "system_poll"]

#: What a peer that hung up looks like; POLLRDHUP is Linux only.
GONE = (
    select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
    if hasattr(select, "POLLHUP")
    else 0
)


def _find_poll() -> Any:
    found = getattr(select, "poll", None)
    if isinstance(found, BuiltinFunctionType):
        return found
    gevent, eventlet = loaded("gevent.monkey"), loaded("eventlet.patcher")
    if gevent is not None and found is not None:
        return gevent.get_original("select", "poll")
    return None if eventlet is None else getattr(eventlet.original("select"), "poll", None)


#: The system's own ``select.poll``; ``None`` if it has none. gevent's switches greenlets, and takes milliseconds beside
#: a busy one; eventlet removes it. It is looked up at import, because a package that has patched it by then is
#: completely loaded; a later look, from a thread of the pool, could break an import that is under way.
system_poll: Any = _find_poll()


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
