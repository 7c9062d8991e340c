"""Failures of submitted messages that nobody has asked for: each is logged once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ..engine import exit_hooks, fork
from ..engine.maintenance import LONGEST_NAP, shared

__all__ = ["Failure", "UnobservedFailures", "failures"]

logger = logging.getLogger("kombu_pools_ext")


class Failure:
    """What became of one message: text only, so that it keeps neither the message nor a traceback."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class UnobservedFailures:
    """The failures of this process that nobody has asked for yet.

    A future that is collected may be collected anywhere, even while a log handler is at work. So its finalizer only
    leaves a note, and the maintenance thread logs it.
    """

    #: What the maintenance thread calls this.
    name = "failures of submitted messages"

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Forget the failures of the parent, which logs them itself."""
        self._kept: dict[Failure, None] = {}
        #: Those whose future was collected.
        self._dropped: deque[Failure] = deque()
        #: The threads that log a failure.
        self._logging: set[int] = set()

    def keep(self, failure: Failure) -> None:
        """Log *failure* unless :meth:`forget` is called before its future is collected and before the process ends.

        Once that has ended, it is logged at once.
        """
        self._kept[failure] = None
        if exit_hooks.have_run():
            # Nobody would log it later, and it may be that nobody asks.
            self._log(failure)
            return
        # Starts the thread here, because a finalizer must not.
        shared.watch(self, quiet=LONGEST_NAP)

    def forget(self, failure: Failure) -> None:
        """Note that somebody has asked for *failure*."""
        self._kept.pop(failure, None)

    def drop(self, failure: Failure) -> None:
        """Note that the future of *failure* was collected. Never waits; safe in finalizers."""
        if failure in self._kept:
            self._dropped.append(failure)
            shared.nudge(self)

    def log_dropped(self) -> None:
        """Log the failures whose futures were collected."""
        while self._dropped:
            self._log(self._dropped.popleft())

    def log_all(self) -> None:
        """Log all of them: the process ends."""
        for failure in list(self._kept):
            self._log(failure)

    def _log(self, failure: Failure) -> None:
        # Closes the race of two threads: only one of them finds it.
        if self._kept.pop(failure, failure) is None:
            with self._as_logging():
                logger.error("%s", failure.text)

    @contextmanager
    def _as_logging(self) -> Iterator[None]:
        me = threading.get_ident()
        mine = me not in self._logging
        try:
            self._logging.add(me)
            yield
        finally:
            if mine:
                self._logging.discard(me)

    @property
    def is_logging(self) -> bool:
        """Whether this thread logs a failure: what a log handler submits here must not log another one, without end."""
        return bool(self._logging) and threading.get_ident() in self._logging

    # -- for the maintenance thread ------------------------------------------------------------------------

    def run_maintenance(self) -> float | None:
        """Log what was dropped; return the seconds until the next round, or ``None`` if nothing is left."""
        self.log_dropped()
        return LONGEST_NAP if self._kept else None

    def time_left_out(self, seconds: float) -> None:
        """Do nothing: failures do not expire."""


#: Those of this process.
failures = UnobservedFailures()
