"""The command line of both frameworks. They parse the arguments that this module describes, and call :func:`run`.

Exit codes: 0: all processes carried out the command; 1: one failed or did not answer; 2: the arguments or settings are
wrong, and nothing was done; 3: no process was found; 4: fewer processes answered than expected.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..aliases import Pools
from ..errors import ControlError, UnknownAlias
from ..settings import SettingsError
from . import local
from .answer import Answer, Answers
from .client import Control
from .options import NAME
from .process_info import Process, unknown_names
from .progress import Progress
from .rendering import Line, answer_table, as_json, failures, printable, process_table
from .request import COMMANDS, FORCED, HIGHEST_LIMIT, MODES, Request
from .server import stop_for_good

__all__ = ["COMMANDS", "DESCRIPTION", "LIMIT", "OPTIONS", "Option", "Screen", "is_terminal", "run"]

DESCRIPTION = (
    "The broker connection pools of the project's running processes: look at them, reset them, ping their brokers, "
    "limit, suspend and resume them."
)

#: The help of the argument of ``limit``.
LIMIT = f"for limit: the most connections that a pool opens, 1 to {HIGHEST_LIMIT}"

#: The exit codes; docs/reference/commands.md describes them.
DONE, FAILED, MISUSED, NO_PROCESS, FEWER = range(5)

FORMATS = ("table", "json")

#: Seconds in which processes have to answer.
DEFAULT_TIMEOUT = 5.0

#: Seconds between two frames of ``--watch``.
PERIOD = 1.0


@dataclass(frozen=True)
class Option:
    """An option of a command line."""

    name: str
    description: str
    #: The placeholder for its value in the help; ``None`` if it takes no value.
    metavar: str | None = None
    #: Converts the text to the value.
    kind: Callable[[str], Any] = str
    #: Whether it may be given more than once.
    many: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None
    #: The commands that take it; empty if all do.
    only: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the parameter of :func:`run`."""
        return self.name.replace("-", "_")

    def suits(self, command: str) -> bool:
        """Return whether *command* takes this option."""
        return not self.only or command in self.only


#: All options, in the order of the help.
OPTIONS: Sequence[Option] = (
    Option("using", "alias of a pool, may be repeated; all pools by default", "ALIAS", many=True),
    Option("process", "number or name of a process, may be repeated; all by default", "PROCESS", many=True),
    Option("host", "name of a machine, may be repeated; all by default", "HOST", many=True),
    Option(
        "timeout",
        f"seconds that processes have to answer, a ping included (default: {DEFAULT_TIMEOUT:g})",
        "SECONDS",
        kind=float,
        default=DEFAULT_TIMEOUT,
    ),
    Option("format", "table, or json for one JSON document", "FORMAT", choices=FORMATS, default="table"),
    Option("expect", "end with code 4 if fewer processes answer, and with code 3 if none is there", "N", kind=int),
    Option("allow-none", "no error if no process is there at all, as before the first start"),
    Option("dry-run", "name the processes that would get the command, without sending it"),
    Option("watch", "for status: ask again each second, until Ctrl-C", only=("status",)),
    Option(
        "force",
        f"for {' and '.join(FORCED)}: close the old connections even if no new one can be opened; with reload, "
        "also let an alias in use go",
        only=FORCED,
    ),
    Option(
        "mode",
        "for suspend: callers wait for its end (default), or fail at once",
        "MODE",
        choices=MODES,
        default=MODES[0],
        only=("suspend",),
    ),
)  # fmt: skip

_NO_PROCESS_HERE = (
    "no process of this project is running here (pools that were never used do not listen)"
)
_NO_PROCESS_ANYWHERE = (
    "no process of this project is running (pools that were never used do not listen)"
)
#: The highest number that --expect takes.
MOST_EXPECTED = 1_000_000

_NO_POOLS = "no pools are configured"
_TURNED_OFF = f"control is turned off in {NAME}, so no process listens"
_OWN_PING = "; these are pings of this command's own process"


def is_terminal(stream: Any) -> bool:
    """Return whether *stream* is a terminal on which lines can be overwritten."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


@dataclass
class Screen:
    """The output of a command."""

    #: Prints a line on the standard output.
    write: Callable[[str], Any]
    #: Prints a line on the standard error.
    complain: Callable[[str], Any]
    #: May colour a line of a table; called with the line's kind (:data:`~.rendering.Line`) and the line.
    paint: Callable[[str, str], str] = lambda kind, line: line
    #: Prints text without a line end on the standard output; ``None`` if that is not a terminal.
    draw: Callable[[str], Any] | None = None
    #: Prints text without a line end on the standard error; ``None`` if that is not a terminal.
    hint: Callable[[str], Any] | None = None


def run(
    command: str,
    control: Callable[[], Control],
    pools: Pools,
    screen: Screen,
    *,
    limit: int | None = None,
    using: Sequence[str] = (),
    process: Sequence[str] = (),
    host: Sequence[str] = (),
    timeout: float = DEFAULT_TIMEOUT,
    format: str = "table",
    expect: int | None = None,
    allow_none: bool = False,
    dry_run: bool = False,
    watch: bool = False,
    mode: str = MODES[0],
    force: bool = False,
    pause: Callable[[float], Any] = time.sleep,
    is_program: bool = False,
) -> int:
    """Have the project's processes carry out a command, and print their answers.

    :param command: a key of :data:`COMMANDS`.
    :param control: returns the project's ``Control``; if it raises an error, that is printed.
    :param pools: the aliases of this process.
    :param limit: the argument of ``limit``.
    :param using: aliases; empty means all, as for *process* and *host*.
    :param timeout: in seconds.
    :param expect: how many processes have to answer at least.
    :param allow_none: whether it is not an error if no process is found.
    :param pause: sleeps for the given seconds, for *watch*.
    :param is_program: whether this process was started only for the command. Then it does not listen, even if a module
        that it imports uses a pool.
    :returns: the exit code.
    """
    if is_program:
        stop_for_good()
    try:
        request = Request(
            command=command,
            using=_once_each(using),
            limit=limit,
            mode=mode,
            force=force,
            processes=_once_each(process),
            hosts=_once_each(host),
            timeout=timeout,
        )
        _check(request, pools, format, expect, dry_run, watch)
        running = _Run(request, control(), pools, screen, format, expect, allow_none)
        return running.dry_run() if dry_run else running.watch(pause) if watch else running.once()
    except (UnknownAlias, SettingsError, TypeError, ValueError) as error:
        for line in str(error).splitlines():
            screen.complain(printable(line))
        return MISUSED
    except KeyboardInterrupt:
        screen.complain(f"interrupted: some processes may still carry out {command}")
        return FAILED


def _once_each(names: Sequence[str]) -> Any:
    # A text is passed on unchanged, and the request refuses it.
    return names if isinstance(names, str) else tuple(dict.fromkeys(names))


def _check(
    request: Request, pools: Pools, format: str, expect: Any, dry_run: bool, watch: bool
) -> None:
    """Check the options and the settings, before any process is asked.

    :raises ValueError: with everything that is wrong in the options.
    :raises SettingsError: if the settings are wrong.
    :raises UnknownAlias: for an alias that is not configured.
    """
    problems = []
    if format not in FORMATS:
        problems.append(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    given = {"watch": watch, "mode": request.mode != MODES[0], "force": request.force}
    problems += [
        f"--{option.name} can only be used with {' and '.join(option.only)}"
        for option in OPTIONS
        if given.get(option.key) and not option.suits(request.command)
    ]
    if expect is not None and not (
        isinstance(expect, int) and expect is not True and 1 <= expect <= MOST_EXPECTED
    ):
        problems.append(
            f"--expect takes a number of processes, 1 to {MOST_EXPECTED}, not {expect!r}; --allow-none allows none"
        )
    problems += [
        f"--watch cannot be combined with {name}"
        for name, is_given in (("--dry-run", dry_run), ("--expect", expect is not None))
        if watch and is_given
    ]
    if problems:
        raise ValueError("\n".join(problems))
    for alias in request.using or pools.settings:
        pools.settings_of(alias)


@dataclass
class _Run:
    """Runs one command, and prints its answers."""

    request: Request
    control: Control
    pools: Pools
    screen: Screen
    format: str
    expect: int | None
    allow_none: bool

    def once(self) -> int:
        with Progress(self.screen.hint) as progress:
            answers, notes = self._ask(progress.known, progress.heard)
        answered_by = [one for one in answers.answers if one.outcome != "silent"]
        # A silent process does not count for --expect.
        code, complaints = self._exit_code(
            failures(answers), 0 if notes else len(answered_by), is_none_there=bool(notes)
        )
        if self.format == "json":
            document = {**answers.as_dict(), "ok": code == DONE, "note": _joined(notes)}
            self.screen.write(as_json(document))
        else:
            self._print(answer_table(answers), () if code == NO_PROCESS else notes)
        return self._complain(code, [*notes, *complaints] if code == NO_PROCESS else complaints)

    def dry_run(self) -> int:
        problems: list[str] = []
        processes: list[Process] = []
        if self._turned_off():
            problems.append(_TURNED_OFF)
        else:
            processes = self.control.who(
                processes=self.request.processes,
                hosts=self.request.hosts,
                timeout=self.request.timeout,
                problem=problems.append,
            )
            problems += _missing_names(self.request, processes)
        notes = [] if processes or problems else self._no_process_notes()
        code, complaints = self._exit_code(
            [printable(one) for one in problems], len(processes), is_none_there=bool(notes)
        )
        if self.format == "json":
            head = {"action": self.request.command, "dry_run": True, "ok": code == DONE}
            found = {"processes": [asdict(one) for one in processes], "problems": problems}
            self.screen.write(as_json({**head, **found, "note": _joined(notes)}))
        elif processes:
            self._print(process_table(processes), [self._dry_run_note()])
        elif code != NO_PROCESS:
            self._print([], notes)
        return self._complain(code, [*notes, *complaints] if code == NO_PROCESS else complaints)

    def _exit_code(
        self, complaints: list[str], found: int, *, is_none_there: bool
    ) -> tuple[int, list[str]]:
        """Return the exit code and the complaints."""
        code = FAILED if complaints else DONE
        if is_none_there:
            if not self.allow_none and (self.request.changes or self.expect is not None):
                # Failures, if any, are those of this process's own ping.
                code = NO_PROCESS
        elif self.expect is not None and found < self.expect:
            are = "process was" if self.expect == 1 else "processes were"
            complaints = [
                *complaints,
                f"{self.expect} {are} expected, and {found} answered",
                *map(printable, self.control.likely_reasons()),
            ]
            code = code or FEWER
        return code, complaints

    def watch(self, pause: Callable[[float], Any]) -> int:
        draw = self.screen.draw if self.format == "table" else None
        # Clears the screen once; after that, each frame overwrites the one before it.
        before = "\x1b[2J"
        try:
            while True:
                began = time.monotonic()
                answers, notes = self._ask()
                if self.format == "json":
                    document = {**answers.as_dict(), "note": _joined(notes)}
                    self.screen.write(as_json(document, in_a_line=True))
                else:
                    lines = [*answer_table(answers), *(("bad", line) for line in failures(answers))]
                    if draw is None:
                        self._print([*lines, ("plain", "")], notes)
                    else:
                        draw(before + self._frame(lines or [("plain", note) for note in notes]))
                        before = ""
                pause(max(0.0, PERIOD - (time.monotonic() - began)))
        except KeyboardInterrupt:
            return DONE
        except BrokenPipeError:
            # The reader has closed the pipe, as in `--watch | head`.
            _discard_output()
            return DONE

    def _frame(self, lines: list[Line]) -> str:
        """Return a frame for the whole screen, with as many lines as fit. A long line takes several rows."""
        columns, rows = shutil.get_terminal_size()
        shown = [("plain", f"{time.strftime('%H:%M:%S')}, every {PERIOD:g} s until Ctrl-C")]
        # One row is for the count of lines that do not fit, and one for the cursor.
        room = rows - 2 - _height(shown[0][1], columns)
        for place, line in enumerate(lines):
            room -= _height(line[1], columns)
            if room < 0:
                shown.append(("plain", f"… {len(lines) - place} more lines"))
                break
            shown.append(line)
        painted = "".join(f"{self.screen.paint(*line)}\x1b[K\n" for line in shown)
        return f"\x1b[H{painted}\x1b[J"

    def _ask(
        self,
        known: Callable[[list[Process]], None] | None = None,
        heard: Callable[[Answer], None] | None = None,
    ) -> tuple[Answers, list[str]]:
        """Return the answers, and lines that say why if no process was asked."""
        request = self.request
        if self._turned_off():
            if request.command == "ping":
                return self._own_ping(), [_TURNED_OFF + _OWN_PING]
            return Answers(request, problems=(_TURNED_OFF,)), []
        try:
            answers = self.control.ask(
                request.command,
                using=request.using,
                processes=request.processes,
                hosts=request.hosts,
                timeout=request.timeout,
                limit=request.limit,
                mode=request.mode,
                force=request.force,
                known=known,
                heard=heard,
            )
        except ControlError as error:
            return Answers(request, problems=(str(error),)), []
        if answers.answers or answers.problems:
            return answers, []
        notes = self._no_process_notes()
        if request.command == "ping" and self.pools.settings:
            return self._own_ping(), [notes[0] + _OWN_PING, *notes[1:]]
        return answers, notes

    def _own_ping(self) -> Answers:
        began = time.monotonic()
        rows = local.ping(self.pools, self.request.using or None, self.request.timeout)
        host, pid = socket.gethostname(), os.getpid()
        answer = Answer(
            Process(f"{host}:{pid}", host, pid, server="this command"),
            "done" if all(row.ok for row in rows) else "failed",
            tuple(asdict(row) for row in rows),
            seconds=time.monotonic() - began,
        )
        return Answers(self.request, (answer,), seconds=time.monotonic() - began)

    def _turned_off(self) -> bool:
        return not self.control.project.settings.enabled

    def _no_process_notes(self) -> list[str]:
        """Return the lines that say that no process was found, and the likely reasons."""
        if not self.pools.settings:
            return [_NO_POOLS]
        here = self.control.project.settings.broadcast is None
        reasons = map(printable, self.control.likely_reasons())
        return [_NO_PROCESS_HERE if here else _NO_PROCESS_ANYWHERE, *reasons]

    def _dry_run_note(self) -> str:
        pools = ", ".join(map(printable, self.request.using)) or "all pools"
        return f"would get the command: {self.request.command}, {pools}"

    def _print(self, lines: Sequence[Line], notes: Sequence[str] = ()) -> None:
        for note in notes:
            self.screen.write(note)
        for kind, line in lines:
            self.screen.write(self.screen.paint(kind, line))

    def _complain(self, code: int, complaints: Sequence[str]) -> int:
        for line in complaints:
            self.screen.complain(line)
        return code


def _joined(notes: Sequence[str]) -> str | None:
    """Return the notes as one text, for the JSON; ``None`` if there are none."""
    return "; ".join(notes) or None


def _discard_output() -> None:
    """Keep Python from reporting at exit that it could not write the rest of the output."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _missing_names(request: Request, processes: Sequence[Process]) -> Iterator[str]:
    """Yield a line for each process or machine that the request names but that does not exist."""
    hosts, numbers = unknown_names(request, processes)
    for name in hosts:
        yield f"no process of this project is there on host {name!r}"
    for name in numbers:
        yield f"no process of this project is there as process {name!r}"


def _height(line: str, columns: int) -> int:
    """Return how many rows of a screen *line* takes."""
    return max(1, -(-len(line) // columns))
