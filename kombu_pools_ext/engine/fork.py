"""What a forked child does with what it inherited: it owns none of it.

``os.register_at_fork`` covers ``os.fork``, multiprocessing and billiard. A server that forks in C and
skips the hooks (uWSGI) is noticed at the child's first step in any pool, by a page that does not survive a fork.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
import weakref
from typing import Any, Protocol

from .weakrefs import snapshot

__all__ = ["ForkAware", "child_begins", "live_pools", "mark", "on_fork", "register"]


class ForkAware(Protocol):
    """Something with state that a child must not share."""

    def after_fork_in_child(self) -> None:
        """Forget what was inherited. Called in the child, while it has one thread."""


_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_afterwards: list[Any] = []
#: Whether locks were renewed at the end of the interpreter.
_ended: list[bool] = []
#: By process id, the thread that puts things right in that process, as long as it is at it.
_beginners: dict[int, list[int]] = {}


class _PidMark:
    """What a wiped page is, where the system cannot wipe pages: compares process ids."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int) -> int:
        return self._pid == os.getpid()

    def __setitem__(self, index: int, value: int) -> None:
        self._pid = os.getpid()


def _make_mark() -> Any:
    """A page that the kernel wipes in every child: reading a byte is ten times cheaper than ``getpid``.

    MADV_WIPEONFORK, since Linux 4.14; the mmap module has no name for it.
    """
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(18)
        page[0] = 1
    except (AttributeError, OSError, ValueError):  # pragma: no cover - not Linux, or an old one
        return _PidMark()
    return page


#: ``mark[0]`` is 0 in a child that has not begun yet, however it was forked.
mark: Any = _make_mark()


def register(thing: ForkAware) -> None:
    """Have ``thing.after_fork_in_child()`` called in every child, as long as *thing* lives.

    If it has a ``renew_lock()``, that is called when it is used at the end of the interpreter.
    """
    _registered.add(thing)


def on_fork(callback: Any) -> None:
    """Have ``callback()`` called in every child, after everything registered has been put right."""
    _afterwards.append(callback)


def live_pools(kind: type[Any]) -> list[Any]:
    """Everything registered that is an instance of *kind*."""
    return [thing for thing in _everything() if isinstance(thing, kind)]


def _everything() -> list[Any]:
    return snapshot(lambda: _registered)


def child_begins() -> None:
    """Put everything right in a child, once; a second call in the same process does nothing.

    So it is in an interpreter that ends: all other threads have been stopped, whatever locks they hold.
    """
    if mark[0]:
        if sys.is_finalizing() and not _ended:
            _ended.append(True)
            for thing in _everything():
                renew_lock = getattr(thing, "renew_lock", None)
                if renew_lock is not None:
                    renew_lock()
        return
    # Where the hooks were skipped, several threads may come by at once: one does it, the others wait, for
    # what is not put right yet is still the parent's. A lock would not do: it might have been held at the fork.
    me = [threading.get_ident()]
    first = _beginners.setdefault(os.getpid(), me)
    if first is not me:
        # Not for itself, though: a finalizer may come by in the middle.
        while first != me and not mark[0]:
            time.sleep(0.001)
        return
    try:
        for thing in _everything():
            thing.after_fork_in_child()
        mark[0] = 1
    finally:
        _beginners.clear()
    for callback in list(_afterwards):
        callback()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has neither fork nor the hook
    os.register_at_fork(after_in_child=child_begins)
