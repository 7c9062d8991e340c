"""Logging handlers that publish.

A handler of :mod:`logging` holds its lock for as long as it handles a record. If it waits for a connection meanwhile,
what our own threads log on the way to the broker would wait for that lock, and so for whoever waits for them. So a
handler that is found to wait for a pool gets a filter, and records from our threads are handled later, in a thread that
nobody waits for.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from . import fork
from .threads import OWN_THREADS, spawn_thread

__all__ = ["spare", "wanted_by_ours", "while_busy", "while_opening"]

R = TypeVar("R")

#: Holds leases, so its name is none of those of our other threads.
THREAD = "log-of-kombu-pools"
#: Records that wait to be handled; older ones are dropped.
MOST = 1000

_HANDLE = logging.Handler.handle.__code__
_ACQUIRE = logging.Handler.acquire.__code__


class _State:
    """What a forked child begins anew."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Nothing is kept, and nobody is at it."""
        self.later: deque[tuple[weakref.ref[logging.Handler], logging.LogRecord]] = deque(
            maxlen=MOST
        )
        #: Held by the thread that handles them.
        self.turn = threading.Lock()


_state = _State()


class _Later(logging.Filter):
    """Of a handler that publishes: keeps records from threads of ours for later."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = weakref.ref(handler)

    def filter(self, record: logging.LogRecord) -> bool:
        if not threading.current_thread().name.startswith(OWN_THREADS):
            return True
        _state.later.append((self._handler, record))
        _begin()
        return False


def _begin() -> None:
    # One thread at a time; where none can be started the records wait for the next occasion.
    if _state.turn.acquire(blocking=False) and not spawn_thread(_handle_later, THREAD):
        _state.turn.release()


def _handle_all() -> None:
    """Handle the records that were kept, each by its handler."""
    while _state.later:
        reference, record = _state.later.popleft()
        handler = reference()
        if handler is not None:
            handler.handle(record)


def _handle_later() -> None:
    """Handle the records that were kept: the body of a thread."""
    try:
        # Its messages take an idle connection: opening another one would log records of its own, without end.
        while_busy(_handle_all)
    finally:
        _state.turn.release()
    if _state.later:
        # Closes the race with a record that came when this thread had looked, and not ended.
        _begin()


def spare(pool: object) -> list[logging.Handler] | None:
    """Called before this thread waits for *pool*: keep records of threads of ours away from the handlers it is in.

    :returns: the handlers for which that is new; ``None`` if this thread must not wait: it is :func:`while_busy`, or
        :func:`while_opening` a connection of *pool*; or one of its handlers is at work on a record that arose while it
        handled another one, so that the wait might have no end, and what is done for it records of its own.
    """
    new: list[logging.Handler] = []
    seen: list[logging.Handler] = []
    # What a thread is at stands on its stack, and nowhere else: so nothing is left behind if an exception, or the kill
    # of a greenlet, comes at the wrong moment.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _HANDLE:
            handler: logging.Handler = frame.f_locals["self"]
            if handler in seen:
                return None
            seen.append(handler)
        elif code is _WHILE_BUSY or (code is _WHILE_OPENING and frame.f_locals["pool"] is pool):
            return None
        frame = frame.f_back
    for handler in seen:
        if not any(isinstance(one, _Later) for one in handler.filters):
            handler.addFilter(_Later(handler))
            new.append(handler)
    return new


def wanted_by_ours(handlers: list[logging.Handler]) -> bool:
    """Whether a thread of ours waits for one of *handlers*, which this thread is in: it came before :func:`spare`."""
    if not handlers:
        return False
    names = {one.ident: one.name for one in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        # Its last step is to take the lock; which of the two methods does it depends on the version.
        ours = names.get(ident, "").startswith(OWN_THREADS)
        if ours and frame.f_code in (_ACQUIRE, _HANDLE) and frame.f_locals.get("self") in handlers:
            return True
    return False


def while_busy(work: Callable[[], R]) -> R:
    """Return ``work()``. Within, this thread does not wait for any pool."""
    return work()


def while_opening(pool: object, work: Callable[[], R]) -> R:
    """Return ``work()``, which opens a connection of *pool*: what it logs must not have this thread open another."""
    return work()


_WHILE_BUSY = while_busy.__code__
_WHILE_OPENING = while_opening.__code__

fork.on_fork(_state.begin)
