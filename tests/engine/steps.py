"""Doing something at the n-th step of the engine, or of another folder: raising there, or running a signal handler.

An exception can interrupt a thread only where the interpreter looks for signals: when a function begins, when a call
has returned, and when a loop goes round. A signal handler is called at every bytecode: more often than it will be.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

import pytest

import kombu_pools_ext.engine

ENGINE = str(Path(kombu_pools_ext.engine.__file__).parent)
#: What an exception out of a finalizer would be lost in; the interpreter prints it and goes on.
FINALIZER = {"__del__", "dropped", "nudge", "wake"}
#: Which of the interpreter's monitoring tools this is; coverage and debuggers use lower numbers.
TOOL = 4


#: What a function can be in, besides a module and a class.
HOLDERS = {
    CellType,
    cached_property,
    classmethod,
    dict,
    list,
    partial,
    property,
    staticmethod,
    tuple,
}


class Killed(BaseException):
    """Thrown into a thread from without."""


#: By the number of a code object, which is kept: the offsets at which an exception can interrupt a thread. A look-up by
#: the object itself would hash all that is in it, at each step.
_offsets: dict[int, frozenset[int]] = {}
_kept: list[CodeType] = []


def _offsets_of(code: CodeType) -> frozenset[int]:
    found = _offsets.get(id(code))
    if found is None:
        _kept.append(code)
        found = _offsets[id(code)] = _interruptible(code)
    return found


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
    """The code of every function in a folder, those within others too.

    It is looked for in the modules: the collector does not tell of objects that are frozen, and the tests freeze what
    they have imported.
    """
    modules = [
        vars(one)
        for one in sys.modules.values()
        if (getattr(one, "__file__", None) or "").startswith(folder)
    ]
    names = {module["__name__"] for module in modules}
    found: dict[CodeType, None] = {}
    seen: set[int] = set()
    waiting: list[Any] = [value for module in modules for value in module.values()]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        # Not `isinstance`: that asks the object, and a lazy proxy then loads whatever it stands for.
        kind = type(one)
        if kind is CodeType:
            if one.co_filename.startswith(folder) and one.co_name not in FINALIZER:
                found[one] = None
            if one.co_filename.startswith(folder):
                waiting += one.co_consts
        elif kind is FunctionType:
            # A decorator's function holds ours in its closure.
            waiting += [one.__code__, *(one.__closure__ or ()), *vars(one).values()]
        elif issubclass(kind, type):
            if one.__module__ in names:
                waiting += vars(one).values()
        elif kind in HOLDERS:
            waiting += gc.get_referents(one)
    return tuple(found)


#: The folder whose code tells of its steps.
_watched: list[str] = []


def _watch(folder: str) -> None:
    """Have the code in a folder tell of its steps until the test ends: to switch that takes longer than most tries."""
    if _watched == [folder]:
        return
    _end_watching()
    monitoring = sys.monitoring
    monitoring.use_tool_id(TOOL, "steps of the engine")
    _watched.append(folder)
    for code in _code_in(folder):
        monitoring.set_local_events(
            TOOL, code, monitoring.events.PY_START | monitoring.events.INSTRUCTION
        )


def _end_watching() -> None:
    for folder in _watched:
        for code in _code_in(folder):
            sys.monitoring.set_local_events(TOOL, code, sys.monitoring.events.NO_EVENTS)
        sys.monitoring.free_tool_id(TOOL)
    _watched.clear()


@pytest.fixture(autouse=True)
def end_watching() -> Iterator[None]:
    """No test runs slower for the steps of another."""
    yield
    _end_watching()


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

    def _listen_no_more(self) -> None:
        """What comes after the step does not count, and runs as fast as without steps."""
        if sys.version_info >= (3, 13):
            events = sys.monitoring.events
            sys.monitoring.register_callback(TOOL, events.PY_START, None)
            sys.monitoring.register_callback(TOOL, events.INSTRUCTION, None)
        else:
            sys.settrace(None)

    def _monitor(self, function: Callable[[], Any]) -> Any:
        """The same by other means: from Python 3.13 on a function's first call under a tracer tells no opcodes."""
        monitoring = sys.monitoring
        events = monitoring.events
        me = threading.get_ident()

        def entered(code: CodeType, offset: int) -> None:
            if threading.get_ident() == me and not self.paused:
                self._step()

        everywhere, offsets = self.everywhere, _offsets

        def at_opcode(code: CodeType, offset: int) -> None:
            here = everywhere or offset in (offsets.get(id(code)) or _offsets_of(code))
            if here and threading.get_ident() == me and not self.paused:
                self._step()

        _watch(self.folder)
        try:
            monitoring.register_callback(TOOL, events.PY_START, entered)
            monitoring.register_callback(TOOL, events.INSTRUCTION, at_opcode)
            return function()
        finally:
            self._listen_no_more()

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
        offsets = None if self.everywhere else _offsets_of(frame.f_code)

        def within(frame: FrameType, event: str, arg: Any) -> Any:
            here = event == "opcode" and (offsets is None or frame.f_lasti in offsets)
            if here and not self.paused:
                self._step()
            return within

        return within

    def _step(self) -> None:
        self.done += 1
        if self.done == self.at:
            self.happened = True
            self._listen_no_more()
            self.aside(self.what)()
