"""Servers under test: started, asked by many at once, ended; and what the broker says of their connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import celery
import kombu

from tests.brokers import PrivateRabbitMQ

__all__ = [
    "CLIENTS",
    "HERE",
    "LIMIT",
    "PATIENCE",
    "Log",
    "Served",
    "Tasks",
    "connected",
    "eventually",
    "family",
    "kill_one",
    "received",
]

HERE = Path(__file__).parent
#: Of each pool, in each process.
LIMIT = 3
#: Requests at a time: more than two workers of four threads serve.
CLIENTS = 12
#: Seconds that anything may take on a busy machine.
PATIENCE = 60.0
#: Seconds within which a server has to end, a few of them on an idle machine; uWSGI would kill one that hangs after 60.
ENDS_WITHIN = 30.0


def eventually(condition: Callable[[], Any], what: Callable[[], object] = lambda: "") -> Any:
    """What *condition* returns, once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
    return found


class Log:
    """What a node has logged of AMQP connections since this was made."""

    def __init__(self, node: PrivateRabbitMQ) -> None:
        self._path = node.folder / "output.log"
        self._begins = self._path.stat().st_size

    @property
    def text(self) -> str:
        """All of it."""
        return self._path.read_bytes()[self._begins :].decode(errors="replace")

    def _connections(self, what: str, levels: str = "info|warning|error") -> set[str]:
        """The processes of RabbitMQ that logged that; each has one connection."""
        return set(re.findall(rf"\[(?:{levels})\] (<\S+>) {what} AMQP connection", self.text))

    @property
    def accepted(self) -> set[str]:
        """Connections that clients opened."""
        return self._connections("accepting")

    @property
    def open(self) -> set[str]:
        """Those of them that have not ended."""
        return self.accepted - self._connections("closing")

    @property
    def mourned(self) -> set[str]:
        """Those that ended without a goodbye: their client closed unexpectedly, or missed heartbeats."""
        return self.accepted & self._connections("closing", "warning|error")

    def assert_all_said_goodbye(self) -> None:
        """No connection is left, and none ended otherwise than by its client's goodbye."""
        eventually(lambda: not self.open, lambda: self.text)
        assert not self.mourned, self.text


def received(url: str, queue: str, count: int) -> list[Any]:
    """All that is in *queue*, once there are *count*; the queue is deleted."""
    with kombu.Connection(url) as connection:
        bound = kombu.Queue(queue)(connection.default_channel)

        def there() -> bool:
            return int(bound.queue_declare(passive=True).message_count) >= count

        eventually(there, lambda: bound.queue_declare(passive=True))
        found = []
        while (message := bound.get(no_ack=True)) is not None:
            found.append(message.payload)
        bound.delete()
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def _sockets(pid: int) -> set[str]:
    try:
        links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()  # it has ended, or has just closed one
    return {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}


def _established(port: int, table: Path = Path("/proc/self/net/tcp")) -> set[str]:
    lines = [line.split() for line in table.read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "01"}


def connections_of(parent: int, port: int) -> Counter[int]:
    """How many connections to *port* each process of a family has."""
    established = _established(port)
    return Counter({pid: len(established & _sockets(pid)) for pid in family(parent)})


def connected(pid: int, port: int) -> set[str]:
    """The sockets of a process that are connected to *port*, by numbers that no other socket ever has."""
    return _established(port, Path(f"/proc/{pid}/net/tcp")) & _sockets(pid)


def kill_one(pid: int, parent: int) -> None:
    """Without a last word; return when nothing is left of it."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in family(parent))


class Served:
    """A server process, from entering the ``with`` block to leaving it.

    :param command: starts it; it listens on *port* of this machine.
    :param environment: is added to this process's.
    :param folder: where it runs, and where its output goes.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        folder: Path,
        port: int,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        search = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        leave_out = ("GUNICORN_CMD_ARGS", "DJANGO_SETTINGS_MODULE", "FLASK_APP")
        inherited = {key: value for key, value in os.environ.items() if key not in leave_out}
        self.port = port
        self.folder = folder
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={
                    **inherited,
                    "PYTHONPATH": os.pathsep.join(search),
                    "LIMIT": str(LIMIT),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> dict[str, Any]:
        """What a request is answered, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        assert response.status == 200, (response.status, body, self.log)
        found: dict[str, Any] = json.loads(body)
        return found

    def wait_for_workers(self, count: int, other_than: Collection[int] = ()) -> None:
        """Wait until so many processes have answered that are none of these; a server may make its socket anew."""
        answered: set[int] = set()

        def ask(_: int) -> None:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                answered.add(self.get("/")["pid"])

        def all_have() -> bool:
            assert self.process.poll() is None, self.log
            # At once, so that one alone cannot take them all.
            with ThreadPoolExecutor(CLIENTS) as executor:
                list(executor.map(ask, range(CLIENTS)))
            return len(answered.difference(other_than)) >= count

        eventually(all_have, lambda: self.log)

    def publish_all(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Have each number published, by several clients at once."""
        with ThreadPoolExecutor(CLIENTS) as executor:
            return list(executor.map(lambda n: self.get(f"/publish?number={n}"), numbers))

    @contextlib.contextmanager
    def counting(self, broker_port: int) -> Iterator[Counter[int]]:
        """Within, the most connections that a process has had at a time are counted."""
        most: Counter[int] = Counter()
        over = threading.Event()

        def count() -> None:
            again = True
            while again:
                again = not over.wait(0.02)
                for pid, number in connections_of(self.process.pid, broker_port).items():
                    most[pid] = max(most[pid], number)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield most
        finally:
            over.set()
            thread.join()

    @contextlib.contextmanager
    def holding(self, number: int) -> Iterator[list[Any]]:
        """Within, a request holds a lease; after that it publishes. What it is answered, or its error."""
        file = self.folder / f"hold-{number}"
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(self.get(f"/hold?number={number}&file={file}"))
            except Exception as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            eventually(lambda: file.exists() or answers, lambda: self.log)
            yield answers
        finally:
            file.unlink(missing_ok=True)
            thread.join()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended:\n{self.log}") from None


class Tasks:
    """What the Celery worker of ``tasks.py`` gets to do, through files in *folder*."""

    #: Starts a worker with two children.
    command = (
        *(sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2"),
        *("--pool", "prefork", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--loglevel", "INFO"),
    )

    def __init__(self, folder: Path) -> None:
        self._tasks, self._outbox = folder / "tasks", folder / "outbox"
        (self._tasks / "control").mkdir(parents=True)
        self._outbox.mkdir()
        #: What the worker has to be told.
        self.environment = {"TASKS": str(self._tasks)}
        self._sender = celery.Celery("sender", broker="filesystem://", set_as_current=False)
        self._sender.conf.broker_transport_options = {
            "data_folder_in": str(self._outbox),
            "data_folder_out": str(self._outbox),
            "control_folder": str(self._tasks / "control"),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sender.close()

    def send(self, name: str, *arguments: object) -> None:
        """Have a task done."""
        self._sender.send_task(name, arguments)
        # Whole: a worker that finds a message's file before its text is written takes an empty message away.
        for file in self._outbox.iterdir():
            file.rename(self._tasks / file.name)
