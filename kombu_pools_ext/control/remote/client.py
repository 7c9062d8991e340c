"""Send a command to the processes of other machines, over the broker of BROADCAST."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from ...errors import ControlError
from ..answer import Answer
from ..local import error_text
from ..log import RateLimitedLog
from ..process_info import Process, unknown_names
from ..project import Project
from ..request import Request
from .connect import broadcast_settings, open_mailbox, signer_for
from .mailbox import GOODBYE_TIMEOUT, Mailbox
from .signing import Message, RejectedMessage, Signer

__all__ = ["RemoteClient"]

#: The most seconds, and the part of the time-out, in which processes must say which ones they are. They answer within
#: milliseconds, so this time passes only if one is stuck.
DISCOVERY_TIMEOUT, DISCOVERY_PART = 2.0, 0.5
#: The part of the remaining time that a process gets for the command. The rest is for its answer to arrive.
COMMAND_PART = 0.9

_log = RateLimitedLog()


class RemoteClient:
    """Reaches the processes of a project over the broker of BROADCAST. See :class:`~.client.Client`.

    :param leave_out: returns the names of processes that another client reaches. It is called once all processes have
        said which ones they are, and may wait.
    :param clock: in seconds since 1970.
    """

    def __init__(
        self,
        project: Project,
        leave_out: Callable[[], Collection[str]] = tuple,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._project = project
        self._leave_out = leave_out
        self._clock = clock

    def who(self, request: Request, deadline: float) -> list[Process]:
        """See :meth:`.Client.who`."""
        with self._exchange(deadline) as exchange:
            exchange.discover()
            exchange.select(request, self._leave_out())
            return sorted(exchange.asked.values(), key=attrgetter("sort_key"))

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """See :meth:`.Client.ask`."""
        with self._exchange(deadline) as exchange:
            exchange.discover()
            exchange.select(request, self._leave_out())
            known(sorted(exchange.asked.values(), key=attrgetter("sort_key")))
            exchange.execute(request, heard)
            problem = exchange.missing_processes(request)
        if problem:
            raise ControlError(problem)

    def count_others(self, deadline: float) -> int:
        """Return how many processes of other projects are at the broker, if it can tell; else 0.

        :raises ControlError: if the broker cannot be asked.
        """
        with self._exchange(deadline) as exchange:
            return exchange.count_others([one.name for one in self._project.with_former])

    @contextlib.contextmanager
    def _exchange(self, deadline: float) -> Iterator[_Exchange]:
        """Open a mailbox for one exchange, and turn its failures into :class:`ControlError`."""
        settings = broadcast_settings(self._project)
        alias = self._project.settings.broadcast
        mailbox: Mailbox | None = None
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no time is left")
            mailbox = open_mailbox(settings, self._project.name, left)
            mailbox.await_answers()
            yield _Exchange(
                mailbox, signer_for(self._project, mailbox.scope, self._clock), deadline
            )
        except ControlError:
            raise
        except Exception as error:
            raise ControlError(
                f"other machines cannot be reached over the broker of pool {alias!r} ({settings.uri}): "
                f"{error_text(error, settings)}"
            ) from error
        finally:
            if mailbox is not None:
                mailbox.close(GOODBYE_TIMEOUT)


class _Exchange:
    """One exchange: ask which processes listen, and send the command to those that it is for."""

    def __init__(self, mailbox: Mailbox, signer: Signer, deadline: float) -> None:
        self._mailbox = mailbox
        self._signer = signer
        self._deadline = deadline
        self._count: int | None = None
        #: By name, the processes that listen, and why some of them ignore the command.
        self._found: dict[str, Process] = {}
        self._expired: dict[str, str] = {}
        self._reached_otherwise: Collection[str] = ()
        #: By name, the processes that the command is for.
        self.asked: dict[str, Process] = {}

    def discover(self) -> None:
        """Ask all processes which ones they are, until as many have answered as the broker counts."""
        began = time.monotonic()
        until = min(
            self._deadline,
            began + min(DISCOVERY_TIMEOUT, (self._deadline - began) * DISCOVERY_PART),
        )
        data, number = self._sign("who", {})
        self._count = self._mailbox.send_to_all(data)
        while self._count is None or len(self._found) < self._count:
            messages = list(self._received(until, number))
            if not messages:
                return
            for message in messages:
                process = _process_of(message)
                if process is not None:
                    self._found[process.name] = process
                if process is not None and message.kind == "late":
                    self._expired[process.name] = str(message.content.get("error"))

    def count_others(self, names: Collection[str]) -> int:
        """Return how many processes have joined under none of these *names*."""
        return self._mailbox.count_others(names)

    def select(self, request: Request, reached_otherwise: Collection[str]) -> None:
        """Select the processes that *request* is for, except those that another client reaches."""
        self._reached_otherwise = reached_otherwise
        self.asked = {
            name: process
            for name, process in self._found.items()
            if process.is_named(request) and name not in reached_otherwise
        }

    def execute(self, request: Request, heard: Callable[[Answer], None]) -> None:
        """Send the command to the selected processes, and report the answer of each, or that it is silent."""
        began = time.monotonic()
        waiting = dict(self.asked)
        for name in self._expired:
            if name in waiting:
                process = waiting.pop(name)
                heard(
                    Answer(
                        process, "failed", error=f"it ignores the command: {self._expired[name]}"
                    )
                )
        try:
            if waiting:
                self._execute(request, waiting, heard, began)
        finally:
            for process in waiting.values():
                heard(Answer(process, "silent"))

    def _execute(
        self,
        request: Request,
        waiting: dict[str, Process],
        heard: Callable[[Answer], None],
        began: float,
    ) -> None:
        left = max(0.001, self._deadline - began)
        request = replace(request, timeout=min(request.timeout, left * COMMAND_PART))
        data, number = self._sign("do", {"names": list(waiting), "request": request.as_dict()})
        self._mailbox.send_to_all(data)
        while waiting:
            messages = list(self._received(self._deadline, number))
            if not messages:
                return
            for message in messages:
                process = _process_of(message)
                if process is None or waiting.pop(process.name, None) is None:
                    continue
                seconds = round(time.monotonic() - began, 6)
                try:
                    answer = Answer.from_dict(message.content.get("answer"), process, seconds)
                except ValueError as error:
                    answer = Answer(process, "failed", error=str(error), seconds=seconds)
                heard(answer)

    def missing_processes(self, request: Request) -> str | None:
        """Return a line about processes that the broker counts but that have not answered; ``None`` if none."""
        if self._count is None or _all_found(request, self.asked.values()):
            return None
        counted = {*self._found, *self._reached_otherwise}
        missing = self._count - len(counted)
        if missing <= 0:
            return None
        blocked = self._mailbox.blocked
        why = (
            f"the broker accepts no messages: {blocked}"
            if blocked
            else "they are stuck, have another key, or their connection is dead"
        )
        listeners = "process listens" if missing == 1 else "processes listen"
        return f"{missing} more {listeners} at the broker, and did not answer in time: {why}"

    def _sign(self, kind: str, content: Mapping[str, Any]) -> tuple[bytes, str]:
        return self._signer.make(
            kind,
            {
                **content,
                "answer_to": self._mailbox.address,
                "by": f"{socket.gethostname()}:{os.getpid()}",
            },
        )

    def _received(self, until: float, number: str) -> Iterator[Message]:
        """Yield the next answers to the message *number*; nothing if none come until *until*."""
        while messages := self._mailbox.receive(until):
            found = False
            for data in messages:
                try:
                    message = self._signer.open(data)
                except RejectedMessage as error:
                    _log.warning("forged", "an answer over the broker is ignored: %s", error)
                    continue
                if message.about == number:
                    found = True
                    yield message
            if found:
                return


def _all_found(request: Request, asked: Collection[Process]) -> bool:
    """Return whether *request* names processes, and all of them were found."""
    return bool(request.processes) and not unknown_names(request, asked)[1]


def _process_of(message: Message) -> Process | None:
    try:
        return Process.from_dict(message.content.get("process"))
    except ValueError as error:
        _log.warning("damaged", "an answer over the broker is ignored: %s", error)
        return None
