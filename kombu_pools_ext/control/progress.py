"""Show on a terminal how many processes have answered a command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from .answer import Answer
from .process_info import Process

__all__ = ["Progress"]


class Progress:
    """Shows how many processes have answered so far, and clears the line at the end.

    :param hint: prints text on the standard error; ``None`` if that is not a terminal.
    """

    def __init__(self, hint: Callable[[str], Any] | None) -> None:
        self._hint = hint
        self._known = self._heard = 0
        # Answers come in several threads, some perhaps after the time-out.
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            if self._hint is not None and self._known:
                self._hint("\r\x1b[K")
            self._hint = None

    def known(self, processes: Sequence[Process]) -> None:
        """Count processes that were asked."""
        with self._lock:
            self._known += len(processes)
            self._show()

    def heard(self, answer: Answer) -> None:
        """Count a process that has answered."""
        with self._lock:
            self._heard += 1
            self._show()

    def _show(self) -> None:
        if self._hint is not None and self._known:
            processes = "process has" if self._known == 1 else "processes have"
            self._hint(f"\r{self._heard} of {self._known} {processes} answered…\x1b[K")
