"""A lock that no caller waits for without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import repeat, starmap
from typing import Any

__all__ = ["LOOKS", "ONCE_MORE", "PATIENCE", "BoundedLock"]

#: Seconds that a caller waits for the lock. What is done under it takes microseconds.
PATIENCE = 10.0
#: Seconds for a second attempt, and how often it looks meanwhile who has the lock.
ONCE_MORE = 1.0
LOOKS = 10


class _Taken(dict[bool, bool]):
    """What ``acquire`` has returned, looked up: ``False`` is not there, and raises."""

    def __init__(self, lock: Any, refuse: Callable[[], Exception]) -> None:
        super().__init__({True: True})
        self._lock = lock
        self._refuse = refuse

    def __missing__(self, taken: bool) -> bool:
        # The whole process may have stood still, or one thread had the interpreter for all the time: the owner gets a
        # chance to go on. Or hundreds of threads want it on a busy machine: then it has other owners each time, who
        # stand in its text, and nobody waits for anybody else.
        owners: set[str] = set()
        while True:
            for _ in range(LOOKS):
                if self._lock.acquire(True, ONCE_MORE / LOOKS):
                    return True
                owners.add(repr(self._lock))
            if len(owners) == 1:
                raise self._refuse()
            owners.clear()


class BoundedLock:
    """A re-entrant lock, for ``with``. Whoever has waited for :data:`PATIENCE` seconds gets an error in place of it.

    That is so if it has had the same owner for the last second.

    The garbage collector may run while the lock is held, and call a finalizer that waits for something else: one that
    logs waits for the lock of a log handler. If the thread that has that handler now wants this lock, each waits for
    the other. The error ends that.

    :param refuse: makes the error.
    """

    # ``with`` looks for the methods on the class, and finds these slots.
    __slots__ = ("__enter__", "__exit__", "owned", "patient")

    #: Take the lock, or raise.
    __enter__: Any
    #: Give it back.
    __exit__: Any
    #: Whether this thread has it: code that asks interrupts its own critical section, as signal handlers and finalizers
    #: do.
    owned: Callable[[], bool]
    #: The same lock, for those who wait on, because nobody waits for them: threads of ours, between two steps.
    patient: Any

    def __init__(self, refuse: Callable[[], Exception]) -> None:
        # Looked up now, not at import: gevent and eventlet may have replaced it.
        lock: Any = threading.RLock()
        taken = _Taken(lock, refuse)
        attempts = starmap(lock.acquire, repeat((True, PATIENCE)))
        # It is C all the way: an exception that is thrown into the thread comes between two steps of Python, and so,
        # before Python 3.14, never between the taking and the block that gives back.
        self.__enter__ = map(taken.__getitem__, attempts).__next__
        self.__exit__ = lock.__exit__
        # Every RLock has it, and threading.Condition relies on it; typeshed leaves it out.
        self.owned = lock._is_owned
        self.patient = lock

    def comes_free(self, seconds: float) -> bool:
        """Whether nobody else has it at some moment of the next *seconds*."""
        free: bool = self.patient.acquire(True, max(0.0, seconds))
        if free:
            self.patient.release()
        return free
