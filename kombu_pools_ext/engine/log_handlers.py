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
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from . import fork
from .threads import OWN_THREADS, spawn_thread

__all__ = ["busy", "busy_opening", "may_wait", "spare", "wanted_by_ours"]

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
        #: Threads that must not wait for any pool, and pairs of a thread and the pool that it opens a connection of.
        self.busy: set[Any] = set()


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


def _handle_later() -> None:
    """Handle the records that were kept, each by its handler: the body of a thread."""
    state = _state
    try:
        # Its messages take an idle connection: opening another one would log records of its own, without end.
        with busy():
            while state.later:
                reference, record = state.later.popleft()
                handler = reference()
                if handler is not None:
                    handler.handle(record)
    finally:
        state.turn.release()
    if state.later:
        # Closes the race with a record that came when this thread had looked, and not ended.
        _begin()


def _handlers(frame: FrameType | None) -> Iterator[logging.Handler]:
    """The handlers at work in *frame*, and in those that have called it."""
    while frame is not None:
        if frame.f_code is _HANDLE:
            yield frame.f_locals["self"]
        frame = frame.f_back


def spare() -> list[logging.Handler] | None:
    """Called before this thread waits: keep records of threads of ours away from the handlers that it is in.

    :returns: the handlers for which that is new; ``None`` if one of them is at work on a record that arose while it
        handled another one: then the wait might have no end, and what is done for it records of its own.
    """
    frame: FrameType | None = sys._getframe(1)
    # Most callers are in none, and come by here whenever they wait.
    while frame is not None and frame.f_code is not _HANDLE:
        frame = frame.f_back
    new: list[logging.Handler] = []
    if frame is None:
        return new
    seen: list[logging.Handler] = []
    for handler in _handlers(frame):
        if handler in seen:
            return None
        seen.append(handler)
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


@contextmanager
def busy() -> Iterator[None]:
    """Within, acquiring in this thread does not wait for any pool."""
    me = threading.get_ident()
    _state.busy.add(me)
    try:
        yield
    finally:
        _state.busy.discard(me)


@contextmanager
def busy_opening(pool: Any) -> Iterator[None]:
    """Within, this thread opens a connection of *pool*: what it logs must not have it open another one."""
    key = threading.get_ident(), id(pool)
    mine = key not in _state.busy
    _state.busy.add(key)
    try:
        yield
    finally:
        if mine:
            _state.busy.discard(key)


def may_wait(pool: Any) -> bool:
    """Whether this thread may wait for *pool*."""
    busy = _state.busy
    if not busy:
        return True
    me = threading.get_ident()
    return me not in busy and (me, id(pool)) not in busy


fork.on_fork(_state.begin)
