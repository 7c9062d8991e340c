"""Reaching the processes of a project: one command to all of them, and one answer of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter

from ..engine.threads import spawn_thread
from ..errors import ControlError
from ..settings.problems import did_you_mean
from .answer import Answer, Answers, Process, named_in_vain
from .asking import Machine
from .elsewhere import Elsewhere
from .project import Project, Way
from .request import Request
from .unreached import likely_reasons

__all__ = ["Control", "ways_for"]

THREAD = "kombu-pools-ask"
#: Seconds beyond the time-out that a way gets to say what it knows.
GRACE = 0.5
#: Seconds for finding out why no process was found.
LOOK_AROUND = 2.0


class Control:
    """Steers the pools of all processes of a project.

    :param project: whose.
    """

    def __init__(self, project: Project) -> None:
        self.project = project

    def ask(
        self,
        command: str,
        *,
        using: Sequence[str] = (),
        processes: Sequence[str] = (),
        hosts: Sequence[str] = (),
        timeout: float = 5.0,
        limit: int | None = None,
        mode: str = "wait",
        force: bool = False,
        known: Callable[[list[Process]], object] | None = None,
        heard: Callable[[Answer], object] | None = None,
    ) -> Answers:
        """Have the processes do something, all at once, and wait until all have answered, or until the time-out.

        :param command: one of :data:`~.request.COMMANDS`.
        :param using: aliases; none means all.
        :param processes: by number or name; none means all.
        :param hosts: machines, by name; none means all.
        :param timeout: seconds after which a process that has not answered counts as silent.
        :param limit: of each pool, for ``limit``.
        :param mode: ``"wait"`` or ``"fail"``, for ``suspend``.
        :param force: for ``reset`` and ``reload``: close the old connections even if no new one can be opened.
        :param known: is called with those who were asked, before they are waited for; with more as they are found.
        :param heard: is called with each answer as it comes.
        :raises ValueError: with everything that is wrong in the arguments.
        """
        request = Request(
            command=command,
            using=using,  # type: ignore[arg-type]  # it makes tuples of them, and knows a text for none
            processes=processes,  # type: ignore[arg-type]
            hosts=hosts,  # type: ignore[arg-type]
            timeout=timeout,
            limit=limit,
            mode=mode,
            force=force,
        )
        return _Asking(self.project, request, known, heard).run()

    def who(
        self,
        *,
        processes: Sequence[str] = (),
        hosts: Sequence[str] = (),
        timeout: float = 5.0,
        problem: Callable[[str], object] | None = None,
    ) -> list[Process]:
        """The processes that are there, sorted by machine and number. They are told nothing.

        :param problem: is called with a line for each way to them that is closed; without it, those who are found in
            other ways are all there is to know.
        :raises ValueError: with everything that is wrong in the arguments.
        :raises ControlError: if nobody is found, and a way is closed.
        """
        request = Request(command="status", processes=processes, hosts=hosts, timeout=timeout)  # type: ignore[arg-type]  # it checks them
        deadline = time.monotonic() + timeout
        found: dict[str, Process] = {}
        problems: dict[str, None] = {}
        for way in ways_for(self.project, request, lambda place: tuple(found)):
            try:
                for process in way.who(request, deadline):
                    found.setdefault(process.name, process)
            except ControlError as error:
                problems[str(error)] = None
        if problem is not None:
            for one in problems:
                problem(one)
        elif problems and not found:
            raise ControlError("; ".join(problems))
        return sorted(found.values(), key=attrgetter("place"))

    def likely_reasons(self) -> list[str]:
        """Return lines that say why a command may not reach processes of this machine; none if it sees none.

        They belong to another user, use another key, or listen in another directory. None of them is asked. With
        BROADCAST on Redis, processes with another key at the broker are counted as well; RabbitMQ cannot list them.
        """
        reasons = likely_reasons(self.project)
        if self.project.settings.broadcast is not None:
            # If the broker cannot be asked, the command itself has reported that.
            with suppress(ControlError):
                deadline = time.monotonic() + LOOK_AROUND
                if count := Elsewhere(self.project).count_others(deadline):
                    use = "1 process uses" if count == 1 else f"{count} processes use"
                    reasons.append(f"{use} another key at the broker: is the secret the same here?")
        return reasons


def ways_for(
    project: Project, request: Request, reached: Callable[[int], Collection[str]]
) -> list[Way]:
    """Return the ways to the processes that *request* names, the nearest first.

    :param reached: takes the place of a way, and returns the names of the processes that the ways before it reach; it
        waits until they are known.
    """
    ways: list[Way] = [Machine(project)]
    # For any host: on this one, too, there may be processes that use another directory.
    broadcasting = (one for one in project.with_former if one.settings.broadcast is not None)
    for place, one in enumerate(broadcasting, 1):
        ways.append(Elsewhere(one, partial(reached, place)))
    return ways


class _InThread:
    """Something under way in a thread of its own, or done already, where there is none."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._ended = threading.Event()
        self._work = work
        self._started = spawn_thread(self._run, THREAD)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()

    def wait(self, deadline: float) -> None:
        """Return when it has ended, or at *deadline*, whichever is first."""
        if not self._started:
            self._run()
        self._ended.wait(max(0.0, deadline - time.monotonic()))


class _Asking:
    """One command on its way."""

    def __init__(
        self,
        project: Project,
        request: Request,
        known: Callable[[list[Process]], object] | None,
        heard: Callable[[Answer], object] | None,
    ) -> None:
        self._project = project
        self._request = request
        self._tell_known = known
        self._tell_heard = heard
        self._known: dict[str, Process] = {}
        self._answers: dict[str, Answer] = {}
        self._problems: list[str] = []
        # Looked up now: gevent or eventlet may have replaced them.
        self._lock = threading.Lock()
        #: For each way, set once it is known which processes it reaches.
        self._known_by: list[threading.Event] = []
        self._deadline = time.monotonic() + request.timeout

    def run(self) -> Answers:
        began = time.monotonic()
        ways = ways_for(self._project, self._request, self._reached)
        self._known_by = [threading.Event() for _ in ways]
        nearest, *others = zip(ways, self._known_by, strict=True)
        under_way = [_InThread(partial(self._go, *one)) for one in others]
        self._go(*nearest)
        for one in under_way:
            one.wait(self._deadline + GRACE)
        with self._lock:
            answers = sorted(self._answers.values(), key=attrgetter("process.place"))
            problems = list(dict.fromkeys(self._problems))
        problems += self._unknown_names(answers)
        seconds = time.monotonic() - began
        return Answers(self._request, tuple(answers), tuple(problems), seconds)

    def _go(self, way: Way, is_known: threading.Event) -> None:
        note_known = partial(self._note_known, is_known)
        try:
            way.ask(self._request, self._deadline, note_known, self._note_answer)
        except ControlError as error:
            with self._lock:
                self._problems.append(str(error))
        finally:
            is_known.set()

    def _reached(self, place: int) -> Collection[str]:
        for is_known in self._known_by[:place]:
            is_known.wait(max(0.0, self._deadline - time.monotonic()))
        with self._lock:
            return tuple(self._known)

    def _note_known(self, is_known: threading.Event, processes: list[Process]) -> None:
        with self._lock:
            new = [one for one in processes if one.name not in self._known]
            self._known.update((one.name, one) for one in new)
        is_known.set()
        if self._tell_known is not None:
            self._tell_known(new)

    def _note_answer(self, answer: Answer) -> None:
        with self._lock:
            first = self._answers.setdefault(answer.process.name, answer) is answer
        if first and self._tell_heard is not None:
            self._tell_heard(answer)

    def _unknown_names(self, answers: list[Answer]) -> list[str]:
        """A line for each process or machine that was named, and is not there."""
        request = self._request
        asked = [answer.process for answer in answers]
        hosts, numbers = named_in_vain(request, asked)
        if not hosts and not numbers:
            return []
        there: dict[str, Process] = {one.name: one for one in asked}
        try:
            left = max(GRACE, self._deadline - time.monotonic())
            there.update((one.name, one) for one in Control(self._project).who(timeout=left))
        except ControlError:
            # It is among the problems already.
            pass
        known_hosts = sorted({one.host for one in there.values()})
        known_numbers = [f"{one.pid}" for one in sorted(there.values(), key=attrgetter("place"))]
        return [
            *(_nobody("host", name, known_hosts) for name in hosts),
            *(_nobody("process", name, known_numbers) for name in numbers),
        ]


def _nobody(what: str, name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    hint = f"{near} " if near else ""
    listed = ", ".join(dict.fromkeys(known)) or "none"
    return f"no process of this project is there as {what} {name!r}; {hint}known: {listed}"
