"""Asking the processes of other machines, by way of a broker."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from ..errors import ControlError
from .answer import Answer, Process, named_in_vain
from .broadcast import GOODBYE, Seldom, seal_of, settings_of
from .local import tell
from .mailbox import Mailbox, open_mailbox
from .project import Project
from .request import Request
from .seal import Message, Refused, Seal

__all__ = ["Elsewhere"]

#: Seconds for everybody to say who he is, at the most and as a part of what there is. All the others have their answer
#: in milliseconds: it is the time that one which has got stuck costs.
WHO, WHO_PART = 2.0, 0.5
#: The part of the time that is left which a process gets for what it does: its answer has to come back as well.
DO_PART = 0.9

_seldom = Seldom()


class Elsewhere:
    """The way to a project's processes that leads through the broker of BROADCAST.

    :param leave_out: returns the names of processes that are reached otherwise. It is called once it is known who is
        there, and may wait.
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
        """As :meth:`.Way.who`."""
        with self._call(deadline) as call:
            call.find()
            call.choose(request, self._leave_out())
            return sorted(call.asked.values(), key=attrgetter("place"))

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """As :meth:`.Way.ask`."""
        with self._call(deadline) as call:
            call.find()
            call.choose(request, self._leave_out())
            known(sorted(call.asked.values(), key=attrgetter("place")))
            call.tell(request, heard)
            missing = call.missing(request)
        if missing:
            raise ControlError(missing)

    def count_others(self, deadline: float) -> int:
        """Return how many processes of other projects are at the broker, if it can tell; else 0.

        :raises ControlError: if the broker cannot be asked.
        """
        with self._call(deadline) as call:
            return call.count_others([one.name for one in self._project.with_former])

    @contextlib.contextmanager
    def _call(self, deadline: float) -> Iterator[_Call]:
        """A mailbox of our own, for as long as it lasts; what goes wrong with it is told."""
        settings = settings_of(self._project)
        alias = self._project.settings.broadcast
        mailbox: Mailbox | None = None
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no time is left")
            mailbox = open_mailbox(settings, self._project.name, left)
            mailbox.await_answers()
            yield _Call(mailbox, seal_of(self._project, mailbox.place, self._clock), deadline)
        except ControlError:
            raise
        except Exception as error:
            raise ControlError(
                f"other machines cannot be asked by way of the broker of pool {alias!r} ({settings.uri}): "
                f"{tell(error, settings)}"
            ) from error
        finally:
            if mailbox is not None:
                mailbox.close(GOODBYE)


class _Call:
    """One asking: who is there, and then those who are meant."""

    def __init__(self, mailbox: Mailbox, seal: Seal, deadline: float) -> None:
        self._mailbox = mailbox
        self._seal = seal
        self._deadline = deadline
        self._count: int | None = None
        #: By name, who is there, and why those do nothing who don't.
        self._found: dict[str, Process] = {}
        self._late: dict[str, str] = {}
        self._reached: Collection[str] = ()
        #: By name, those who are meant.
        self.asked: dict[str, Process] = {}

    def find(self) -> None:
        """Ask everybody who he is, until as many have answered as the broker counts."""
        began = time.monotonic()
        until = min(self._deadline, began + min(WHO, (self._deadline - began) * WHO_PART))
        data, number = self._made("who", {})
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
                    self._late[process.name] = str(message.content.get("error"))

    def count_others(self, names: Collection[str]) -> int:
        """Return how many processes have joined under none of these *names*."""
        return self._mailbox.count_others(names)

    def choose(self, request: Request, reached: Collection[str]) -> None:
        """Of those who are there, find the ones that are meant, and not *reached* otherwise."""
        self._reached = reached
        self.asked = {
            name: process
            for name, process in self._found.items()
            if process.is_named(request) and name not in reached
        }

    def tell(self, request: Request, heard: Callable[[Answer], None]) -> None:
        """Have those who are meant do it, and hear each of them, or that it is silent."""
        began = time.monotonic()
        waiting = dict(self.asked)
        for name in self._late:
            if name in waiting:
                process = waiting.pop(name)
                heard(
                    Answer(process, "failed", error=f"it ignores the command: {self._late[name]}")
                )
        try:
            if waiting:
                self._tell(request, waiting, heard, began)
        finally:
            for process in waiting.values():
                heard(Answer(process, "silent"))

    def _tell(
        self,
        request: Request,
        waiting: dict[str, Process],
        heard: Callable[[Answer], None],
        began: float,
    ) -> None:
        left = max(0.001, self._deadline - began)
        request = replace(request, timeout=min(request.timeout, left * DO_PART))
        data, number = self._made("do", {"names": list(waiting), "request": request.as_dict()})
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

    def missing(self, request: Request) -> str | None:
        """What to say about those whom the broker counts, and who have not said who they are."""
        if self._count is None or _all_found(request, self.asked.values()):
            return None
        counted = {*self._found, *self._reached}
        missing = self._count - len(counted)
        if missing <= 0:
            return None
        blocked = self._mailbox.blocked
        why = (
            f"the broker takes no messages: {blocked}"
            if blocked
            else "they are stuck, have another key, or their connection is dead"
        )
        listeners = "process listens" if missing == 1 else "processes listen"
        return (
            f"{missing} more {listeners} at the broker, and did not say who they are in time: {why}"
        )

    def _made(self, kind: str, content: Mapping[str, Any]) -> tuple[bytes, str]:
        return self._seal.make(
            kind,
            {
                **content,
                "answer_to": self._mailbox.address,
                "by": f"{socket.gethostname()}:{os.getpid()}",
            },
        )

    def _received(self, until: float, number: str) -> Iterator[Message]:
        """The next answers to the message of this *number*; none when the time is up."""
        while messages := self._mailbox.receive(until):
            found = False
            for data in messages:
                try:
                    message = self._seal.open(data)
                except Refused as error:
                    _seldom("forged", "an answer by way of the broker is ignored: %s", error)
                    continue
                if message.about == number:
                    found = True
                    yield message
            if found:
                return


def _all_found(request: Request, asked: Collection[Process]) -> bool:
    """Whether nobody else can have been meant."""
    return bool(request.processes) and not named_in_vain(request, asked)[1]


def _process_of(message: Message) -> Process | None:
    try:
        return Process.from_dict(message.content.get("process"))
    except ValueError as error:
        _seldom("damaged", "an answer by way of the broker is ignored: %s", error)
        return None
