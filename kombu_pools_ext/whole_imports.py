"""Imports at the first use, which no fork cuts in half.

A child inherits a module that another thread was importing as it is: half made, and locked by a thread that the child
does not have. Each import of it would hang or fail, for ever. So a fork waits until such an import has ended.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module

__all__ = ["FORK_WAITS", "import_whole"]

#: Seconds that a fork waits at most. An import takes some hundredths, but it may wait for the thread that forks.
FORK_WAITS = 5.0

#: Reentrant, because a signal handler may fork or publish in the middle of an import.
_lock = threading.RLock()
_imported: set[str] = set()
#: Threads that fork now and hold the lock.
_forking: list[int] = []


def import_whole(*modules: str) -> None:
    """Import *modules*, by their full names, if they are not yet. Statements that import them may follow."""
    if not _imported.issuperset(modules):
        # Kept, because the lock of a child that is forked within is another one.
        lock = _lock
        with lock:
            for module in modules:
                import_module(module)
            _imported.update(modules)


def _wait() -> None:
    if _lock.acquire(timeout=FORK_WAITS):
        _forking.append(threading.get_ident())


def _go_on() -> None:
    # Another thread may fork without the lock, having waited in vain.
    if threading.get_ident() in _forking:
        _forking.remove(threading.get_ident())
        _lock.release()


def _begin_anew() -> None:
    # A fork that has waited in vain leaves the lock to a thread that the child does not have.
    global _lock
    _lock = threading.RLock()
    _forking.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has neither fork nor the hook
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
