"""The thread that reads where no caller waits."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ..engine.reentrant_queue import ReentrantQueue
from ..engine.threads import OWN_THREADS, spawn_thread

__all__ = ["NAME", "Reader"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds without work after which the thread ends.
IDLE = 5.0
#: The thread's name. Callbacks run in it, and ask by that where they are.
NAME = f"{OWN_THREADS}reader"


class Reader:
    """A thread that is started when there is work, and ends when there has been none for a while.

    :param work: does what is due; it is given the thread's queue, and returns seconds until the next time, or
        ``None`` if there is nothing to do.
    :param spawn: starts it; returns ``False`` where no thread can be started.
    :param inside: has the thread's number while it runs.
    """

    def __init__(
        self,
        work: Callable[[ReentrantQueue[Any]], float | None],
        spawn: Callable[[Callable[[], None], str], bool] = spawn_thread,
        *,
        inside: set[int] | None = None,
    ) -> None:
        self._work = work
        self._spawn = spawn
        self._inside: set[int] = set() if inside is None else inside
        self._queue: ReentrantQueue[Any] = ReentrantQueue()
        #: Who runs: one step of the interpreter takes the place, and one gives it back.
        self._running: dict[str, object] = {}
        self._calls: deque[Callable[[], object]] = deque()

    def runs(self) -> bool:
        """Start the thread unless it runs; return whether it does now."""
        me = object()
        if self._running.setdefault("thread", me) is not me:
            return True
        started = False
        try:
            started = self._spawn(partial(self._run, me), NAME)
        finally:
            if not started:
                self._running.pop("thread", None)
        return started

    def wake(self) -> None:
        """Have the thread look whether there is work; it is started if it has ended for want of that."""
        self._queue.put(None)
        # In this order: a thread that is about to end looks into the queue after it has said so.
        if not self._running:
            self.runs()

    def call(self, function: Callable[[], object]) -> None:
        """Have *function* called in the thread, before its next work."""
        self._calls.append(function)

    @property
    def has_calls(self) -> bool:
        """Whether :meth:`call` was given something that was not called yet."""
        return bool(self._calls)

    def tell(self) -> None:
        """Call what :meth:`call` was given; only in the thread."""
        calls = self._calls
        while calls:
            try:
                calls.popleft()()
            except Exception:
                logger.exception("a callback of a published message has failed")

    def _run(self, me: object) -> None:
        """Work until there has been nothing to do for a while: the body of the thread.

        :param me: what stands for it in its place.
        """
        thread = threading.get_ident()
        ended = False
        try:
            self._inside.add(thread)
            self._work_on(me)
            ended = True
        finally:
            self._inside.discard(thread)
            if self._running.get("thread") is me:
                self._running.pop("thread", None)
            # Closes the race with a caller that saw it running, and woke it a moment too late. If it was killed,
            # another one looks what is left to do.
            if not ended or not self._queue.empty or self._calls:
                self.runs()

    def _work_on(self, me: object) -> None:
        # Another one has the place if who started this one was interrupted.
        while self._running.setdefault("thread", me) is me:
            pause: float | None = None
            try:
                pause = self._work(self._queue)
            except Exception:
                logger.exception("the thread that reads confirms has failed, and goes on")
                pause = 1.0
            self.tell()
            if pause is None:
                if not self._queue.get(IDLE):
                    return
            else:
                self._queue.get(pause)
