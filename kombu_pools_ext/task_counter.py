"""How many tasks of Celery were sent over an alias."""

from __future__ import annotations

import itertools
import threading

from .engine import fork

__all__ = ["TaskCounter"]


class TaskCounter:
    """Counts the tasks that this process has sent over an alias, since it began. A forked child begins with 0."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Begin with 0, and with a lock that no thread of the parent holds."""
        self._numbers = itertools.count()
        self._looked = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one more, in one step of the interpreter: a signal handler may send a task within this."""
        next(self._numbers)

    @property
    def count(self) -> int:
        """The number of tasks."""
        # A look takes a number as well.
        with self._lock:
            counted = next(self._numbers) - self._looked
            self._looked += 1
        return counted
