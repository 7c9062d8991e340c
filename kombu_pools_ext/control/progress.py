"""How far a command has come, while somebody watches it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from .answer import Answer, Process

__all__ = ["Progress"]


class Progress:
    """Tells on a terminal how many have answered, while they are waited for, and leaves nothing on the line.

    :param hint: prints on the standard error as it is; ``None`` where that is no terminal.
    """

    def __init__(self, hint: Callable[[str], Any] | None) -> None:
        self._hint = hint
        self._known = self._heard = 0
        # Answers come in threads, and the last one may come when nobody waits any more.
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            if self._hint is not None and self._known:
                self._hint("\r\x1b[K")
            self._hint = None

    def known(self, processes: Sequence[Process]) -> None:
        """So many more were asked."""
        with self._lock:
            self._known += len(processes)
            self._tell()

    def heard(self, answer: Answer) -> None:
        """One has answered."""
        with self._lock:
            self._heard += 1
            self._tell()

    def _tell(self) -> None:
        if self._hint is not None and self._known:
            processes = "process has" if self._known == 1 else "processes have"
            self._hint(f"\r{self._heard} of {self._known} {processes} answered…\x1b[K")
