"""Doing something at the n-th step of the engine, or of another folder: raising there, or running a signal handler.

An exception can interrupt a thread only where the interpreter looks for signals: when a function begins, when a call
has returned, and when a loop goes round. A signal handler is called at every bytecode: more often than it will be.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import kombu_pools_ext.engine

ENGINE = str(Path(kombu_pools_ext.engine.__file__).parent)
#: What an exception out of a finalizer would be lost in; the interpreter prints it and goes on.
FINALIZER = {"__del__", "dropped", "nudge"}
#: Which of the interpreter's monitoring tools this is; coverage and debuggers use lower numbers.
TOOL = 4


class Killed(BaseException):
    """Thrown into a thread from without."""


@cache
def _interruptible(code: CodeType) -> frozenset[int]:
    found, called = set(), False
    for instruction in dis.get_instructions(code):
        if called:
            found.add(instruction.offset)
        called = instruction.opname.startswith("CALL")
        if instruction.opname.startswith("JUMP_BACKWARD"):
            found.add(instruction.argval)
    return frozenset(found)


@cache
def _code_in(folder: str) -> tuple[CodeType, ...]:
    """The code of every function in a folder, those within others too."""
    found: dict[CodeType, None] = {}
    # Not `isinstance`: that asks the object, and a lazy proxy then loads whatever it stands for.
    functions = [one for one in gc.get_objects() if type(one) is FunctionType]
    waiting = [one.__code__ for one in functions if one.__code__.co_filename.startswith(folder)]
    while waiting:
        code = waiting.pop()
        if code not in found and code.co_name not in FINALIZER:
            found[code] = None
            waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
    return tuple(found)


class Steps:
    """Runs `function`; does `what` at step number `at` of the code in `folder`, in this thread."""

    def __init__(
        self,
        what: Callable[[], None],
        at: int,
        *,
        everywhere: bool = False,
        folder: str = ENGINE,
    ) -> None:
        self.folder = folder
        self.what = what
        self.at = at
        self.everywhere = everywhere
        self.done = 0
        self.happened = False
        self.paused = False

    def __call__(self, function: Callable[[], Any]) -> Any:
        if sys.version_info >= (3, 13):
            return self._monitor(function)
        before = sys.gettrace()
        # On Python 3.12, opcodes are told only if a frame has asked for them before the tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._enter)
        try:
            return function()
        finally:
            sys.settrace(before)

    def _monitor(self, function: Callable[[], Any]) -> Any:
        """The same by other means: from Python 3.13 on a function's first call under a tracer tells no opcodes."""
        monitoring = sys.monitoring
        events = monitoring.events
        me = threading.get_ident()

        def entered(code: CodeType, offset: int) -> None:
            if threading.get_ident() == me and not self.paused:
                self._step()

        def at_opcode(code: CodeType, offset: int) -> None:
            here = self.everywhere or offset in _interruptible(code)
            if here and threading.get_ident() == me and not self.paused:
                self._step()

        monitoring.use_tool_id(TOOL, "steps of the engine")
        try:
            monitoring.register_callback(TOOL, events.PY_START, entered)
            monitoring.register_callback(TOOL, events.INSTRUCTION, at_opcode)
            for code in _code_in(self.folder):
                monitoring.set_local_events(TOOL, code, events.PY_START | events.INSTRUCTION)
            return function()
        finally:
            for code in _code_in(self.folder):
                monitoring.set_local_events(TOOL, code, events.NO_EVENTS)
            monitoring.free_tool_id(TOOL)

    def aside(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """What another thread does meanwhile: `function`, whose steps do not count."""

        def run() -> Any:
            self.paused, before = True, self.paused
            try:
                return function()
            finally:
                self.paused = before

        return run

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self.paused or not frame.f_code.co_filename.startswith(self.folder):
            return None
        if frame.f_code.co_name in FINALIZER:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._step()
        return self._within

    def _within(self, frame: FrameType, event: str, arg: Any) -> Any:
        here = self.everywhere or frame.f_lasti in _interruptible(frame.f_code)
        if here and event == "opcode" and not self.paused:
            self._step()
        return self._within

    def _step(self) -> None:
        self.done += 1
        if self.done == self.at:
            self.happened = True
            self.aside(self.what)()
