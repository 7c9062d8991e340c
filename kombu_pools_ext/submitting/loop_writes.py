"""Writing what the coroutines of an event loop publish, all that comes together in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["LoopWrites"]


class LoopWrites:
    """Has the loop write, after the coroutines that run now; only for the thread of the loop.

    A write for each message is a system call each, which costs more than the message.
    """

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: dict[Callable[[], object], None] = {}

    def soon(self, write: Callable[[], object]) -> None:
        """Have *write* called once, soon."""
        if write not in self._due:
            self._due[write] = None
            asyncio.get_running_loop().call_soon(self._write, write)

    def _write(self, write: Callable[[], object]) -> None:
        self._due.pop(write, None)
        write()
