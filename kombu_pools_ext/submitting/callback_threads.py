"""The threads in which the callbacks of futures run."""

from __future__ import annotations

import threading

from ..publisher.reader import NAME

__all__ = ["THREAD", "reads_for_all", "runs_callbacks"]

#: A thread that publishes over leases. It holds some, so its name is none of those of our other threads.
THREAD = "publish-of-kombu-pools"


def runs_callbacks() -> bool:
    """Whether this is such a thread: it makes room for what is submitted, so it must not wait for room."""
    return threading.current_thread().name in (THREAD, NAME)


def reads_for_all() -> bool:
    """Whether this is the thread that reads the shared connection, so that it must not wait for another one."""
    return threading.current_thread().name == NAME
