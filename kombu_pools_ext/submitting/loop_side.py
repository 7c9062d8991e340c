"""What is kept for each event loop in which coroutines publish."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from .loop_alarm import LoopAlarm
from .loop_deadlines import LoopDeadlines
from .loop_writes import LoopWrites

__all__ = ["LoopSide", "loop_sides"]


class LoopSide:
    """The parts of publishing that belong to one event loop. Only its alarm is for other threads too."""

    __slots__ = ("alarm", "deadlines", "writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.alarm = LoopAlarm(loop)
        self.deadlines = LoopDeadlines()
        self.writes = LoopWrites()


class _LoopSides:
    """That of each event loop; none of them keeps its loop."""

    def __init__(self) -> None:
        self._by_loop: weakref.WeakKeyDictionary[Any, LoopSide] = weakref.WeakKeyDictionary()

    def of(self, loop: asyncio.AbstractEventLoop) -> LoopSide:
        """Return that of *loop*; only in the thread in which it runs."""
        side = self._by_loop.get(loop)
        if side is None:
            side = self._by_loop[loop] = LoopSide(loop)
        return side


loop_sides = _LoopSides()
