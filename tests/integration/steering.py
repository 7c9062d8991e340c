"""Whoever steers servers under test, and the requests that these serve meanwhile."""

from __future__ import annotations

import itertools
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from kombu_pools_ext.control import Control, Project
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.options import parse_control
from tests.integration.rig import CLIENTS, Served, eventually

__all__ = ["PROMPT", "SECRET", "Load", "Steering", "steering"]

SECRET = "of the servers under test alone"
#: Seconds within which all processes answer, on a busy machine; on an idle one it is milliseconds.
PROMPT = 20.0


class Steering:
    """Somebody beside the servers who knows their directory and their secret.

    :param directory: of their sockets.
    """

    def __init__(self, directory: Path, control: Control) -> None:
        self._directory = directory
        self._control = control
        #: What the servers have to be told.
        self.environment = {"CONTROL": str(directory), "SECRET": SECRET}

    def ask(self, command: str, timeout: float = PROMPT, **arguments: Any) -> Answers:
        """What the processes answer; none of them may fail or be silent."""
        answers = self.try_to_ask(command, timeout, **arguments)
        assert answers.ok, answers
        return answers

    def try_to_ask(self, command: str, timeout: float = PROMPT, **arguments: Any) -> Answers:
        """The same, whatever comes of it."""
        return self._control.ask(command, timeout=timeout, **arguments)

    @property
    def project(self) -> Project:
        """Whose processes these are."""
        return self._control.project

    def processes(self, command: str = "status", **arguments: Any) -> dict[int, Answer]:
        """The processes that answer, by their numbers."""
        answers = self.ask(command, **arguments)
        found = {answer.process.pid: answer for answer in answers.answers}
        assert len(found) == len(answers.answers), answers
        return found

    def wait_for(self, count: int, work: Callable[[], object]) -> dict[int, Answer]:
        """Have them *work*, until so many processes answer."""

        def there() -> dict[int, Answer] | None:
            work()
            found = self.processes()
            return found if len(found) >= count else None

        found: dict[int, Answer] = eventually(there, self.processes)
        assert len(found) == count, found
        return found

    @property
    def sockets(self) -> list[Path]:
        """What the processes listen on."""
        return [one for one in self._directory.rglob("*") if _is_socket(one)]


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def steering(directory: Path, secret: str = SECRET) -> Steering:
    """Whoever steers what listens in *directory*."""
    project = Project(parse_control({"DIRECTORY": str(directory)}, ()), secret)
    return Steering(directory, Control(project))


class Load:
    """Requests to publish, by several clients of each server at once, number after number, until :meth:`stop`."""

    def __init__(self, servers: Sequence[Served]) -> None:
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._answers: list[dict[str, Any]] = []
        self._errors: list[Exception] = []
        self._clients = [
            threading.Thread(target=self._send, args=(server,))
            for server in servers
            for _ in range(CLIENTS)
        ]

    def _send(self, server: Served) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            try:
                self._answers.append(server.get(f"/publish?number={number}"))
            except Exception as error:
                self._errors.append(error)
                return

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def wait_for(self, count: int) -> None:
        """Wait until so many have been answered in all; none may fail."""
        # A step is a few seconds' work on a busy machine.
        eventually(lambda: self._errors or len(self._answers) >= count)
        assert not self._errors, self._errors

    def stop(self) -> list[dict[str, Any]]:
        """All the answers, by number; none may have failed."""
        self._over.set()
        for client in self._clients:
            client.join()
        assert not self._errors, self._errors
        return sorted(self._answers, key=lambda answer: answer["number"])
