"""Processes that meet at a broker: several of them played by threads of this one, and real ones to be killed."""

from __future__ import annotations

import contextlib
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
from kombu_pools_ext.control.answer import Answer, Process
from kombu_pools_ext.control.broadcast import Listener
from kombu_pools_ext.control.elsewhere import Elsewhere
from kombu_pools_ext.control.mailbox import Mailbox, open_mailbox
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.project import Project
from kombu_pools_ext.control.request import Request
from kombu_pools_ext.control.seal import Seal
from tests.broker.common import PATIENCE

__all__ = ["Asked", "Meeting", "Played", "a_project", "real_process"]

#: Joins, says so, and waits to be killed; ends by itself when the test is gone.
LISTENS = """
import sys
from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control.broadcast import listen
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.process import here
from kombu_pools_ext.control.project import Project
url, secret = sys.argv[1:]
pools = Pools(default={"url": url})
project = Project(ControlSettings(broadcast="default"), secret)
project.pools.add(pools)
listener = listen(project)
assert listener.joined.wait(60)
print(here().name, flush=True)
sys.stdin.read()
"""


def a_project(url: str, secret: str | None = None, **settings: Any) -> tuple[Project, Pools]:
    """A project that meets at *url*, by default one that nobody else has, with the pools of one process of it."""
    pools = Pools({"default": {"URL": url, **settings}})
    project = Project(ControlSettings(broadcast="default"), secret or secrets.token_hex())
    project.pools.add(pools)
    return project, pools


class Played:
    """What a process that a thread plays has done; *answers* stands in for what it would do."""

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
    """What came of asking."""

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
    """A project of the test's own, and the threads that play its processes."""

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
        """One more process, which has joined."""
        played = Played(name, host)
        listener = Listener(
            self.project, here=lambda: played.process, perform=played.perform, clock=clock
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
        """Ask all, or whom *request* names."""
        asked = Asked()
        with contextlib.ExitStack() as stack:
            if problem is not None:
                stack.enter_context(_expecting(problem, asked))
            Elsewhere(self.project, leave_out).ask(
                request or Request(command="status"),
                time.monotonic() + seconds,
                asked.know,
                asked.hear,
            )
        return asked

    @contextlib.contextmanager
    def mailbox(self) -> Iterator[tuple[Mailbox, Seal]]:
        """What somebody with the project's key, and access to the broker, has."""
        mailbox = open_mailbox(self.pools.settings["default"], self.project.name, PATIENCE)
        try:
            mailbox.await_answers()
            key = self.project.key("broadcast")
            assert key is not None
            yield mailbox, Seal(key, mailbox.place)
        finally:
            mailbox.close(1.0)

    def left(self) -> list[str]:
        """What there is at the broker with the project's name on it, as far as everybody may see that."""
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
    """A process of its own that has joined, and its name."""
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
