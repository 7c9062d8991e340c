"""The one implementation of both command lines: the frameworks parse the arguments described here.

Exit codes: 0: all processes did it; 1: one failed or did not answer; 2: the command was not understood, and nothing was
done; 3: no process was there; 4: fewer processes answered than expected.
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
from .answer import Answer, Answers, Process, named_in_vain
from .options import NAME
from .progress import Progress
from .reach import Control
from .rendering import Line, answered, as_json, failures, printable, would_be_told
from .request import COMMANDS, FORCED, HIGHEST_LIMIT, MODES, Request
from .server import leave

__all__ = ["COMMANDS", "DESCRIPTION", "LIMIT", "OPTIONS", "Option", "Screen", "is_terminal", "run"]

DESCRIPTION = (
    "The broker connection pools of the project's running processes: look at them, reset them, ping their brokers, "
    "limit, suspend and resume them."
)

#: Of the argument that ``limit`` takes.
LIMIT = f"for limit: the most connections that a pool opens, 1 to {HIGHEST_LIMIT}"

#: The exit codes; docs/reference/commands.md describes them.
DONE, FAILED, MISUSED, NOBODY, FEWER = range(5)

FORMATS = ("table", "json")

#: Seconds that processes have to answer.
DEFAULT_TIMEOUT = 5.0

#: Seconds from one look to the next.
PERIOD = 1.0


@dataclass(frozen=True)
class Option:
    """An option of a command line."""

    name: str
    description: str
    #: What stands for its value in the help; ``None`` for one that takes none.
    metavar: str | None = None
    #: What makes a value of the text.
    kind: Callable[[str], Any] = str
    #: Whether it may be given more than once.
    many: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None
    #: The commands that take it; none if all do.
    only: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name as a parameter of :func:`run`."""
        return self.name.replace("-", "_")

    def suits(self, command: str) -> bool:
        """Whether *command* takes it."""
        return not self.only or command in self.only


#: All of them, in the order of the help.
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
    Option("dry-run", "name the processes that would be told, and tell them nothing"),
    Option("watch", "for status: look again each second, until Ctrl-C", only=("status",)),
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

_NOBODY = "no process of this project is running here (pools that were never used do not listen)"
_NOBODY_ANYWHERE = (
    "no process of this project is running (pools that were never used do not listen)"
)
#: The most processes that --expect takes.
MOST_EXPECTED = 1_000_000

_NO_POOLS = "no pools are configured"
_TURNED_OFF = f"control is turned off in {NAME}, so no process listens"
_OWN = "; these are pings of this command's own process"


def is_terminal(stream: Any) -> bool:
    """Whether *stream* shows what is written to it on a screen that can be drawn on."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


@dataclass
class Screen:
    """Where a command prints."""

    #: Prints what it is called with on the standard output, and ends the line.
    write: Callable[[str], Any]
    #: The same on the standard error: what went wrong.
    complain: Callable[[str], Any]
    #: May colour a line of a table: called with its kind (:data:`~.rendering.Line`) and itself.
    paint: Callable[[str, str], str] = lambda kind, line: line
    #: Prints on the standard output as it is; ``None`` where that is no terminal.
    draw: Callable[[str], Any] | None = None
    #: Prints on the standard error as it is; ``None`` where that is no terminal.
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
    """Have the project's processes carry out a command, and print what came of it.

    :param command: a key of :data:`COMMANDS`.
    :param control: returns the project's ``Control``; an error that it raises is printed.
    :param pools: the aliases of this process.
    :param limit: for ``limit``.
    :param using: aliases; empty means all, as for *process* and *host*.
    :param timeout: in seconds.
    :param expect: how many processes have to answer at least.
    :param allow_none: whether it is no error if no process is there.
    :param pause: sleeps for the given seconds, for *watch*.
    :param is_program: whether this process was started only for the command: then it does not listen, even if a module
        that it imports uses a pool.
    :returns: the exit code.
    """
    if is_program:
        leave()
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
        _check(request, format, expect, dry_run, watch)
        # What is wrong with the settings is told before anybody is asked.
        for alias in request.using or pools.settings:
            pools.settings_of(alias)
        call = _Call(request, control(), pools, screen, format, expect, allow_none)
        if dry_run:
            return call.dry_run()
        return call.watch(pause) if watch else call.once()
    except (UnknownAlias, SettingsError, TypeError, ValueError) as error:
        for line in str(error).splitlines():
            screen.complain(printable(line))
        return MISUSED
    except KeyboardInterrupt:
        screen.complain(f"interrupted: some processes may {command} yet")
        return FAILED


def _once_each(names: Sequence[str]) -> Any:
    # A text is not taken for a list of letters; the request refuses it.
    return names if isinstance(names, str) else tuple(dict.fromkeys(names))


def _check(request: Request, format: str, expect: Any, dry_run: bool, watch: bool) -> None:
    problems = []
    if format not in FORMATS:
        problems.append(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    given = {"watch": watch, "mode": request.mode != MODES[0], "force": request.force}
    problems += [
        f"--{option.name} goes with {' and '.join(option.only)} alone"
        for option in OPTIONS
        if given.get(option.key) and not option.suits(request.command)
    ]
    if expect is not None and not (
        isinstance(expect, int) and expect is not True and 1 <= expect <= MOST_EXPECTED
    ):
        problems.append(
            f"--expect takes a number of processes, 1 to {MOST_EXPECTED}, not {expect!r}; --allow-none is for none"
        )
    problems += [
        f"--watch and {name} exclude each other"
        for name, is_given in (("--dry-run", dry_run), ("--expect", expect is not None))
        if watch and is_given
    ]
    if problems:
        raise ValueError("\n".join(problems))


@dataclass
class _Call:
    """One command on its way."""

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
        # Silent processes count as there.
        code, complaints = self._judged(
            failures(answers), 0 if notes else len(answered_by), is_nobody_there=bool(notes)
        )
        if self.format == "json":
            document = {**answers.as_dict(), "ok": code == DONE, "note": _noted(notes)}
            self.screen.write(as_json(document))
        else:
            self._print(answered(answers), () if code == NOBODY else notes)
        return self._end(code, [*notes, *complaints] if code == NOBODY else complaints)

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
            problems += _missing(self.request, processes)
        notes = [] if processes or problems else self._nobody()
        code, complaints = self._judged(
            [printable(one) for one in problems], len(processes), is_nobody_there=bool(notes)
        )
        if self.format == "json":
            told = {"action": self.request.command, "dry_run": True, "ok": code == DONE}
            found = {"processes": [asdict(one) for one in processes], "problems": problems}
            self.screen.write(as_json({**told, **found, "note": _noted(notes)}))
        elif processes:
            self._print(would_be_told(processes), [self._would()])
        elif code != NOBODY:
            self._print([], notes)
        return self._end(code, [*notes, *complaints] if code == NOBODY else complaints)

    def _judged(
        self, complaints: list[str], found: int, *, is_nobody_there: bool
    ) -> tuple[int, list[str]]:
        """Return the exit code and the complaints."""
        code = FAILED if complaints else DONE
        if is_nobody_there:
            if not self.allow_none and (self.request.changes or self.expect is not None):
                # Other failures are those of the command's own ping.
                code = NOBODY
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
        # All of the screen, once; from then on each line takes the place of the one before it.
        before = "\x1b[2J"
        try:
            while True:
                began = time.monotonic()
                answers, notes = self._ask()
                if self.format == "json":
                    document = {**answers.as_dict(), "note": _noted(notes)}
                    self.screen.write(as_json(document, in_a_line=True))
                else:
                    lines = [*answered(answers), *(("bad", line) for line in failures(answers))]
                    if draw is None:
                        self._print([*lines, ("plain", "")], notes)
                    else:
                        draw(before + self._frame(lines or [("plain", note) for note in notes]))
                        before = ""
                pause(max(0.0, PERIOD - (time.monotonic() - began)))
        except KeyboardInterrupt:
            return DONE
        except BrokenPipeError:
            # Whoever read it has seen enough: `--watch | head`.
            _write_no_more()
            return DONE

    def _frame(self, lines: list[Line]) -> str:
        """What takes the place of the whole screen: as many lines as go onto it, a long one over several rows."""
        columns, rows = shutil.get_terminal_size()
        shown = [("plain", f"{time.strftime('%H:%M:%S')}, every {PERIOD:g} s until Ctrl-C")]
        # One for what is left out, and one for the cursor.
        room = rows - 2 - _height(shown[0][1], columns)
        for place, line in enumerate(lines):
            room -= _height(line[1], columns)
            if room < 0:
                shown.append(("plain", f"… {len(lines) - place} lines more"))
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
                return self._own_ping(), [_TURNED_OFF + _OWN]
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
        notes = self._nobody()
        if request.command == "ping" and self.pools.settings:
            return self._own_ping(), [notes[0] + _OWN, *notes[1:]]
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

    def _nobody(self) -> list[str]:
        """Return the lines that say that no process is there, and the likely reasons."""
        if not self.pools.settings:
            return [_NO_POOLS]
        here = self.control.project.settings.broadcast is None
        reasons = map(printable, self.control.likely_reasons())
        return [_NOBODY if here else _NOBODY_ANYWHERE, *reasons]

    def _would(self) -> str:
        pools = ", ".join(map(printable, self.request.using)) or "all pools"
        return f"would be told: {self.request.command}, {pools}"

    def _print(self, lines: Sequence[Line], notes: Sequence[str] = ()) -> None:
        for note in notes:
            self.screen.write(note)
        for kind, line in lines:
            self.screen.write(self.screen.paint(kind, line))

    def _end(self, code: int, complaints: Sequence[str]) -> int:
        for line in complaints:
            self.screen.complain(line)
        return code


def _noted(notes: Sequence[str]) -> str | None:
    """Return the notes as one text, for the JSON; ``None`` if there are none."""
    return "; ".join(notes) or None


def _write_no_more() -> None:
    """Keep Python from complaining at its end of what it could not write."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _missing(request: Request, processes: Sequence[Process]) -> Iterator[str]:
    """A line for each process or machine that was named, and is not there."""
    hosts, numbers = named_in_vain(request, processes)
    for name in hosts:
        yield f"no process of this project is there on host {name!r}"
    for name in numbers:
        yield f"no process of this project is there as process {name!r}"


def _height(line: str, columns: int) -> int:
    """How many rows of a screen it takes."""
    return max(1, -(-len(line) // columns))
