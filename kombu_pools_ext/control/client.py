"""Send a command to all processes of a project, and collect their answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from ..engine.threads import spawn_thread
from ..errors import ControlError
from ..settings.problems import did_you_mean
from .answer import Answer, Answers
from .diagnosis import likely_reasons, with_another_key
from .process_info import Process, unknown_names
from .project import Project
from .request import Request
from .socket_client import SocketClient

if TYPE_CHECKING:
    from .remote.client import RemoteClient

__all__ = ["Client", "Control", "clients_for"]

THREAD = "kombu-pools-ask"
#: Seconds after the time-out in which a client may still report answers.
GRACE = 0.5
#: Seconds to count the processes at the broker that use another key.
LOOK_AROUND = 2.0


class Client(Protocol):
    """Reaches processes of a project, over the sockets of this machine or over a broker."""

    def who(self, request: Request, deadline: float) -> list[Process]:
        """Return the processes that *request* is for.

        :param deadline: in seconds of ``time.monotonic``.
        :raises ControlError: if they cannot be determined.
        """
        ...

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """Have the processes carry out *request*, and wait until all have answered, or until *deadline*.

        :param known: called once with the processes that are asked, before waiting for their answers.
        :param heard: called with each answer as it comes, in any thread; silent processes have one as well.
        :raises ControlError: if some processes could not be asked; others may have carried it out.
        """
        ...


class Control:
    """Sends commands to the pools of all processes of a project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        if project.settings.broadcast is not None:
            # Imports its module at once, because later there may be no file descriptor to read it.
            _remote_client(project)

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
        """Send a command to all processes at once, and wait until all have answered, or until the time-out.

        :param command: one of :data:`~.request.COMMANDS`.
        :param using: aliases; none means all.
        :param processes: by number or name; none means all.
        :param hosts: machines, by name; none means all.
        :param timeout: seconds after which a process that has not answered counts as silent.
        :param limit: of each pool, for ``limit``.
        :param mode: ``"wait"`` or ``"fail"``, for ``suspend``.
        :param force: for ``reset`` and ``reload``: close the old connections even if no new one can be opened.
        :param known: called with the processes that were asked, before waiting for them, and again if more are found.
        :param heard: called with each answer as it comes, in any thread.
        :raises ValueError: with everything that is wrong in the arguments.
        """
        request = Request(
            command=command,
            using=using,
            processes=processes,
            hosts=hosts,
            timeout=timeout,
            limit=limit,
            mode=mode,
            force=force,
        )
        return _Command(self.project, request, known, heard).run()

    def who(
        self,
        *,
        processes: Sequence[str] = (),
        hosts: Sequence[str] = (),
        timeout: float = 5.0,
        problem: Callable[[str], object] | None = None,
    ) -> list[Process]:
        """Return the processes that listen, sorted by machine and process number. They get no command.

        :param problem: called with a line for each failure to find processes, such as a broker that is down.
        :raises ValueError: with everything that is wrong in the arguments.
        :raises ControlError: without *problem*, if no process is found because of such a failure.
        """
        request = Request(command="status", processes=processes, hosts=hosts, timeout=timeout)
        deadline = time.monotonic() + timeout
        found: dict[str, Process] = {}
        problems: dict[str, None] = {}
        for client in clients_for(self.project, lambda position: tuple(found)):
            try:
                for process in client.who(request, deadline):
                    found.setdefault(process.name, process)
            except ControlError as error:
                problems[str(error)] = None
        if problem is not None:
            for one in problems:
                problem(one)
        elif problems and not found:
            raise ControlError("; ".join(problems))
        return sorted(found.values(), key=attrgetter("sort_key"))

    def likely_reasons(self) -> list[str]:
        """Return lines that say why a command does not reach some processes; none if no such process is seen.

        They belong to another user, use another key, or listen in another directory. With BROADCAST on Redis,
        processes with another key at the broker are counted as well; RabbitMQ cannot list them. None of them is asked.
        """
        reasons = likely_reasons(self.project)
        if self.project.settings.broadcast is not None:
            # If the broker cannot be asked, the command itself has reported that.
            with suppress(ControlError):
                deadline = time.monotonic() + LOOK_AROUND
                if count := _remote_client(self.project).count_others(deadline):
                    reasons.append(with_another_key(count, " at the broker"))
        return reasons


def clients_for(project: Project, reached: Callable[[int], Collection[str]]) -> list[Client]:
    """Return the clients of *project*: one for this machine, and with BROADCAST one for each secret.

    :param reached: takes the position of a client in the list, and returns the names of the processes that the
        clients before it reach. It may wait until they are known.
    """
    clients: list[Client] = [SocketClient(project)]
    # Also if only this host is named, because processes on it may use another directory.
    broadcasting = (one for one in project.with_former if one.settings.broadcast is not None)
    for position, one in enumerate(broadcasting, 1):
        clients.append(_remote_client(one, partial(reached, position)))
    return clients


def _remote_client(
    project: Project, leave_out: Callable[[], Collection[str]] = tuple
) -> RemoteClient:
    # Imported only with BROADCAST.
    from .remote.client import RemoteClient

    return RemoteClient(project, leave_out)


class _Background:
    """Runs *work* in a thread; if none can be started, :meth:`wait` runs it."""

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
        """Return when the work has ended, or at *deadline*, whichever is first."""
        if not self._started:
            self._run()
        self._ended.wait(max(0.0, deadline - time.monotonic()))


class _Command:
    """One command to all clients of a project, and the answers so far."""

    def __init__(
        self,
        project: Project,
        request: Request,
        known: Callable[[list[Process]], object] | None,
        heard: Callable[[Answer], object] | None,
    ) -> None:
        self._project = project
        self._request = request
        self._on_known = known
        self._on_answer = heard
        self._known: dict[str, Process] = {}
        self._answers: dict[str, Answer] = {}
        self._problems: list[str] = []
        # Looked up now, because gevent or eventlet may have replaced it.
        self._lock = threading.Lock()
        #: For each client, set once it is known which processes it reaches.
        self._known_events: list[threading.Event] = []
        self._deadline = time.monotonic() + request.timeout

    def run(self) -> Answers:
        began = time.monotonic()
        clients = clients_for(self._project, self._reached)
        self._known_events = [threading.Event() for _ in clients]
        nearest, *others = zip(clients, self._known_events, strict=True)
        running = [_Background(partial(self._ask, *one)) for one in others]
        self._ask(*nearest)
        for one in running:
            one.wait(self._deadline + GRACE)
        with self._lock:
            answers = sorted(self._answers.values(), key=attrgetter("process.sort_key"))
            problems = list(dict.fromkeys(self._problems))
        problems += self._unknown_names(answers)
        seconds = time.monotonic() - began
        return Answers(self._request, tuple(answers), tuple(problems), seconds)

    def _ask(self, client: Client, is_known: threading.Event) -> None:
        note_known = partial(self._note_known, is_known)
        try:
            client.ask(self._request, self._deadline, note_known, self._note_answer)
        except ControlError as error:
            with self._lock:
                self._problems.append(str(error))
        finally:
            is_known.set()

    def _reached(self, position: int) -> Collection[str]:
        for is_known in self._known_events[:position]:
            is_known.wait(max(0.0, self._deadline - time.monotonic()))
        with self._lock:
            return tuple(self._known)

    def _note_known(self, is_known: threading.Event, processes: list[Process]) -> None:
        with self._lock:
            new = [one for one in processes if one.name not in self._known]
            self._known.update((one.name, one) for one in new)
        is_known.set()
        if self._on_known is not None:
            self._on_known(new)

    def _note_answer(self, answer: Answer) -> None:
        with self._lock:
            first = self._answers.setdefault(answer.process.name, answer) is answer
        if first and self._on_answer is not None:
            self._on_answer(answer)

    def _unknown_names(self, answers: list[Answer]) -> list[str]:
        """Return a line for each process or machine that the request names but that does not exist."""
        request = self._request
        asked = [answer.process for answer in answers]
        hosts, numbers = unknown_names(request, asked)
        if not hosts and not numbers:
            return []
        there: dict[str, Process] = {one.name: one for one in asked}
        try:
            left = max(GRACE, self._deadline - time.monotonic())
            there.update((one.name, one) for one in Control(self._project).who(timeout=left))
        except ControlError:
            # The command has reported it already.
            pass
        known_hosts = sorted({one.host for one in there.values()})
        known_numbers = [f"{one.pid}" for one in sorted(there.values(), key=attrgetter("sort_key"))]
        return [
            *(_not_found("host", name, known_hosts) for name in hosts),
            *(_not_found("process", name, known_numbers) for name in numbers),
        ]


def _not_found(what: str, name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    hint = f"{near} " if near else ""
    listed = ", ".join(dict.fromkeys(known)) or "none"
    return f"no process of this project is there as {what} {name!r}; {hint}known: {listed}"
