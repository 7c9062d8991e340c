"""Processes that listen at a broker: threads of this process that play several, and real ones to be killed."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import amqp.exceptions
import kombu

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control.answer import Answer
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.project import Project
from kombu_pools_ext.control.remote.client import RemoteClient
from kombu_pools_ext.control.remote.connect import open_mailbox
from kombu_pools_ext.control.remote.listener import Listener
from kombu_pools_ext.control.remote.mailbox import Mailbox
from kombu_pools_ext.control.remote.signing import Signer
from kombu_pools_ext.control.request import Request
from tests.broker.common import PATIENCE

__all__ = ["Asked", "Meeting", "Played", "a_project", "real_process"]

#: Joins, says so, and waits to be killed; ends by itself when the test is gone.
LISTENS = """
import sys
from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control.remote.listener import listen
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.process_info import this_process
from kombu_pools_ext.control.project import Project
url, secret = sys.argv[1:]
pools = Pools(default={"url": url})
project = Project(ControlSettings(broadcast="default"), secret)
project.pools.add(pools)
listener = listen(project)
assert listener.joined.wait(60)
print(this_process().name, flush=True)
sys.stdin.read()
"""


_lifetimes = itertools.count(3600)


def a_project(url: str, secret: str | None = None, **settings: Any) -> tuple[Project, Pools]:
    """Return a project on the broker *url*, by default a new one, with the pools of one process of it."""
    # Settings of no other test: pools with the same settings are the same, as long as somebody has them.
    pools = Pools({"default": {"URL": url, "MAX_LIFETIME": next(_lifetimes), **settings}})
    project = Project(ControlSettings(broadcast="default"), secret or secrets.token_hex())
    project.pools.add(pools)
    return project, pools


class Played:
    """A process that a thread plays: what it has done, and *answers* in place of what it would do."""

    def __init__(self, name: str, host: str) -> None:
        self.process = Process(name, host, 4711)
        self.done: list[Request] = []
        self.answers: Callable[[Request], Answer] = lambda request: Answer(
            self.process, "done", ({"alias": "default", "ok": True},)
        )

    def perform(self, request: Request, project: Project) -> Answer:
        self.done.append(request)
        return self.answers(request)


class Asked:
    """The result of a command."""

    def __init__(self) -> None:
        self.known: list[Process] | None = None
        self.answers: dict[str, Answer] = {}
        self.problem: str | None = None

    def know(self, processes: list[Process]) -> None:
        assert self.known is None, "told twice"
        self.known = processes

    def hear(self, answer: Answer) -> None:
        assert self.known is not None, "heard before anybody was known"
        assert answer.process.name not in self.answers, "heard twice"
        self.answers[answer.process.name] = answer

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: answer.outcome for name, answer in self.answers.items()}


class Meeting:
    """A project of one test, and the threads that play its processes."""

    def __init__(self, url: str, secret: str | None = None, **settings: Any) -> None:
        self.url = url
        self.project, self.pools = a_project(url, secret, **settings)
        self.listeners: list[Listener] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for listener in self.listeners:
            listener.stop(PATIENCE)

    def play(self, name: str, host: str = "here", clock: Callable[[], float] = time.time) -> Played:
        """Add a process, and wait until it has joined."""
        played = Played(name, host)
        listener = Listener(
            self.project, this_process=lambda: played.process, perform=played.perform, clock=clock
        )
        self.listeners.append(listener)
        listener.start()
        assert listener.joined.wait(PATIENCE)
        return played

    def ask(
        self,
        request: Request | None = None,
        *,
        seconds: float = PATIENCE,
        leave_out: Callable[[], Any] = tuple,
        problem: type[Exception] | None = None,
    ) -> Asked:
        """Send *request* to all, or to those that it names."""
        asked = Asked()
        with contextlib.ExitStack() as stack:
            if problem is not None:
                stack.enter_context(_expecting(problem, asked))
            RemoteClient(self.project, leave_out).ask(
                request or Request(command="status"),
                time.monotonic() + seconds,
                asked.know,
                asked.hear,
            )
        return asked

    @contextlib.contextmanager
    def mailbox(self) -> Iterator[tuple[Mailbox, Signer]]:
        """Return what anybody with the project's key and access to the broker could have."""
        mailbox = open_mailbox(self.pools.settings["default"], self.project.name, PATIENCE)
        try:
            mailbox.await_answers()
            key = self.project.key("broadcast")
            assert key is not None
            yield mailbox, Signer(key, mailbox.scope)
        finally:
            mailbox.close(1.0)

    def left(self) -> list[str]:
        """Return what exists at the broker under the project's name, as far as every user can see it."""
        settings = replace(self.pools.settings["default"], transport_options={})
        with settings.connection() as connection:
            if settings.is_amqp:
                return _left_at_rabbitmq(connection, f"kombu-pools.{self.project.name}.roll")
            client = connection.default_channel.client
            # Without the prefix of kombu's client, which is there for keys.
            found = [*client.scan_iter(f"*{self.project.name}*")]
            found += client.execute_command("PUBSUB CHANNELS", f"*{self.project.name}*")
            return [one.decode() for one in found]


def _left_at_rabbitmq(connection: kombu.Connection, roll: str) -> list[str]:
    channel: Any = connection.channel()
    try:
        channel.queue_declare(roll, passive=True)
    except amqp.exceptions.NotFound:
        return []
    return [roll]


@contextlib.contextmanager
def _expecting(kind: type[Exception], asked: Asked) -> Iterator[None]:
    try:
        yield
    except kind as error:
        asked.problem = str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextlib.contextmanager
def real_process(url: str, secret: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a real process that joins, and return it with its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS, url, secret],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name, "it has ended"
        yield process, name
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
