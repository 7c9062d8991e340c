"""Starting threads, in processes that may have them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["OWN_THREADS", "interpreter_ends", "spawn_thread", "uwsgi_is_yet_to_fork"]

#: What the names of our threads begin with, which hold no leases.
OWN_THREADS = "kombu-pools-"


def spawn_thread(work: Callable[[], None], name: str) -> bool:
    """Run *work* in a daemon thread; ``False`` where no thread can be started, or must not be."""
    if uwsgi_is_yet_to_fork() or sys.is_finalizing():
        # A thread that is started now never runs a line; before 3.12, whoever starts it would wait for that.
        return False
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        return False
    return True


def interpreter_ends() -> bool:
    """Whether exit handlers run, or what comes after them: soon there are neither threads nor imports."""
    return sys.is_finalizing() or not threading.main_thread().is_alive()


def uwsgi_is_yet_to_fork() -> bool:
    """Whether uWSGI forks its workers from this process: its master, or the one that becomes the first of them.

    It forks in C, without Python's hooks. What a thread holds in that moment, nobody gives back in the child: a lock,
    or the interpreter's own, and then the worker never runs a line.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    # Mules and spoolers are number 0 as well, but have a master.
    return uwsgi is not None and uwsgi.worker_id() == 0 and uwsgi.masterpid() in (0, os.getpid())
