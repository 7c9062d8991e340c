"""How one thread waits until another has news for it."""

from __future__ import annotations

import threading

__all__ = ["AutoResetEvent"]


class AutoResetEvent:
    """An event for one waiting thread: the end of its wait resets the event.

    ``set`` never waits, and may interrupt a ``wait`` or another ``set`` at any step: finalizers and signal handlers
    call it. That is why this is no ``threading.Event``: they may have interrupted who holds its lock.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        # Looked up now, not at import: gevent and eventlet may have replaced it. It is locked until the event is set.
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the thread that waits, or have its next wait end at once."""
        # If it is free, the event is set, and the thread is yet to look.
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                # Closes the race of two that found it locked.
                pass

    def wait(self, timeout: float) -> bool:
        """Block until the event is set, for at most *timeout* seconds; return whether it was set."""
        return self._lock.acquire(timeout=timeout)
