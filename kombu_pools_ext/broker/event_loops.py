"""Calls that block, in a thread whose event loop is running: everything in that loop stands still meanwhile."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..engine.lease import outside
from ..errors import BlockingInEventLoop

__all__ = ["allowed", "blocking_is_meant", "event_loop", "loops", "warn_of_blocking"]


#: What may stand between the application and us: a task's ``delay()`` is the application's line.
_LIBRARIES = frozenset({"celery", "kombu"})

_module = sys.modules.get


def _look() -> Any:
    """Return the running event loop of this thread, in a process that has not loaded asyncio so far."""
    # By name: a process without asyncio must not load it.
    events = _module("asyncio.events")
    if events is None:
        return None
    # Another thread may be loading it just now.
    find = getattr(events, "_get_running_loop", None)
    if find is None:
        return None
    loops.running = find
    return find()


class _Loops:
    """Finds the running event loop; written for a hot path, which acquires leases within 2 µs."""

    __slots__ = ("running",)

    #: Returns the running event loop of this thread, or ``None``. Once asyncio is loaded, it is asyncio's own, in C.
    running: Callable[[], Any]

    def __init__(self) -> None:
        self.running = _look


loops = _Loops()
#: Functions that say whether blocking is allowed in general. A framework may have a setting for it.
allowed: list[Callable[[], bool]] = []
#: The threads that block on purpose at the moment.
_on_purpose: set[int] = set()


def event_loop() -> Any:
    """Return the event loop that a blocking call of this thread would stop; ``None`` if there is none."""
    loop = loops.running()
    if loop is None:
        return None
    # A greenlet that runs a loop shares the operating system's thread with others, which do not.
    thread = getattr(loop, "_thread_id", None)
    return loop if thread in (None, threading.get_ident()) else None


def is_meant() -> bool:
    """Whether this thread may block, although its event loop is running."""
    return threading.get_ident() in _on_purpose or any(each() for each in allowed)


@contextmanager
def blocking_is_meant() -> Iterator[None]:
    """Within, this thread blocks on purpose, and nobody is warned."""
    me = threading.get_ident()
    mine = me not in _on_purpose
    try:
        _on_purpose.add(me)
        yield
    finally:
        if mine:
            _on_purpose.discard(me)


def _line_of_application(frame: FrameType | None) -> FrameType | None:
    """Return the nearest frame, from *frame* up, that is none of Celery or kombu; *frame* if there is no other."""
    found = frame
    while found is not None:
        if str(found.f_globals.get("__name__")).partition(".")[0] not in _LIBRARIES:
            return found
        found = found.f_back
    return frame


def warn_of_blocking(call: str) -> None:
    """Warn that *call* blocks the event loop: once for each line of the application, unless a filter says otherwise.

    :param call: what was called, as in ``"acquire()"``. To be called if ``loops.running()`` is not ``None``.
    """
    if event_loop() is None or is_meant():
        return
    frame = _line_of_application(outside(sys._getframe(1)))
    if frame is None:
        return
    line, file = frame.f_lineno, frame.f_code.co_filename
    warnings.warn_explicit(
        f"{file}:{line}: {call} blocks the event loop of this thread until the pool and the broker have answered; "
        "publish with `await apublish(…)`, or do it in a thread, with asyncio.to_thread",
        BlockingInEventLoop,
        file,
        line,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
