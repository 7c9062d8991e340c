"""gunicorn, preloaded and forked, under two thousand requests at a time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest

from tests.broker.common import eventually
from tests.brokers import PrivateRabbitMQ

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"
REQUESTS = 2000
WORKERS, THREADS = 2, 4
#: Fewer than threads, so that they have to share.
LIMIT = 3
QUEUE = "orders"

#: What gunicorn serves, and the module for it: the example with the limit, and a first message from the process that
#: forks the workers, so that these inherit a connection.
SERVED = {
    "django": (
        "django_project",
        "wsgi:application",
        f"""
        from settings import *
        KOMBU_POOLS["default"]["LIMIT"] = {LIMIT}
        """,
        "from views import publish_order; publish_order(0)",
    ),
    "flask": (
        "flask_app",
        "limited:app",
        f"""
        import os
        from app import create_app
        app = create_app({{"KOMBU_POOLS": {{"default": {{"URL": os.environ["BROKER_URL"], "LIMIT": {LIMIT}}}}}}})
        """,
        "from app import publish_order; from limited import app; app.app_context().push(); publish_order(0)",
    ),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not Path("/proc/self/net/tcp").exists(), reason="/proc tells whose a connection is"
    ),
]


@contextmanager
def gunicorn(app: str, url: str, folder: Path) -> Iterator[tuple[int, int]]:
    """The port, and the process id of the one that forks the workers."""
    project, served, module, first = SERVED[app]
    (folder / "limited.py").write_text("\n".join(line.strip() for line in module.splitlines()))
    (folder / "gunicorn.conf.py").write_text(
        f"workers, threads, preload_app = {WORKERS}, {THREADS}, True\n"
        "graceful_timeout = 5\n"
        "control_socket_disable = True\n"
        f"def when_ready(server):\n    {first}\n"
    )
    inherited = {key: value for key, value in os.environ.items() if key != "GUNICORN_CMD_ARGS"}
    search = [folder, EXAMPLES / project, *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        socket.create_server(("127.0.0.1", 0), backlog=REQUESTS) as listener,
        (folder / "gunicorn.log").open("wb") as log,
    ):
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", served],
            cwd=folder,
            env={
                **inherited,
                "BROKER_URL": url,
                "ORDERS_QUEUE": QUEUE,
                "DJANGO_SETTINGS_MODULE": "limited",
                "PYTHONPATH": os.pathsep.join(map(str, search)),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        # A worker says so after the fork, and so after it has let go of its parent's connection.
        eventually(lambda: (folder / "gunicorn.log").read_text().count("Booting worker") == WORKERS)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


async def order(port: int, number: int) -> dict[str, Any]:
    """Place one order, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = f"order={number}"
        head = (
            "POST /orders/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(f"{head}{body}".encode())
        answer = await reader.read()
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 201 "), answer
    placed: dict[str, Any] = json.loads(rest.partition(b"\r\n\r\n")[2])
    return placed


async def order_all(port: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(150):
        return await asyncio.gather(*(order(port, number) for number in range(1, REQUESTS + 1)))


def sockets_of(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue  # closed since
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            found.add(match[1])
    return found


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def holders(parent: int) -> dict[int, list[int]]:
    """The processes that have a descriptor of it, by the local port of each TCP connection."""
    ports = {}
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        ports[columns[9]] = int(columns[1].rpartition(":")[2], 16)
    found = defaultdict(list)
    for pid in family(parent):
        for inode in sockets_of(pid):
            if inode in ports:
                found[ports[inode]].append(pid)
    return found


class Sampler:
    """Asks the broker who is connected to it, again and again, while a block runs."""

    def __init__(self, broker: PrivateRabbitMQ, parent: int) -> None:
        self._broker = broker
        self._parent = parent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: The most connections of a process, in any sample.
        self.most: Counter[int] = Counter()
        #: Connections that more than one process had a descriptor of.
        self.shared: list[tuple[int, list[int]]] = []
        self.samples = 0
        self.error: Exception | None = None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is None:
            # Once more when all is answered: by now every worker has a connection, and keeps it.
            self._sample()

    def _run(self) -> None:
        try:
            while not self._over.wait(0.1):
                self._sample()
        except Exception as error:
            self.error = error

    def _sample(self) -> None:
        peers = [int(re.split(r"[: ]", row["name"])[1]) for row in self._broker.list_connections()]
        owners = holders(self._parent)
        count: Counter[int] = Counter()
        for port in peers:
            pids = owners.get(port, [])
            if len(pids) > 1:
                self.shared.append((port, pids))
            count.update(pids)
        self.most |= count
        self.samples += 1


def received(url: str, at_least: int) -> list[dict[str, Any]]:
    """All that is in the queue."""
    bodies: list[dict[str, Any]] = []

    def take(body: dict[str, Any], message: kombu.Message) -> None:
        message.ack()
        bodies.append(body)

    with kombu.Connection(url) as connection, connection.channel() as channel:
        queue = kombu.Queue(QUEUE)(channel)
        with connection.Consumer([queue], channel=channel, callbacks=[take]):
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    if len(bodies) >= at_least:
                        break
        queue.delete()
    return bodies


def in_order(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((one["order"], one["app"], one["worker"]) for one in messages)


@pytest.mark.parametrize("app", ["django", "flask"])
def test_two_thousand_requests_at_once(
    app: str, private_rabbitmq: PrivateRabbitMQ, tmp_path: Path
) -> None:
    with gunicorn(app, private_rabbitmq.url, tmp_path) as (port, parent):
        with Sampler(private_rabbitmq, parent) as sampler:
            answers = asyncio.run(order_all(port))
        processes = family(parent)
    log = (tmp_path / "gunicorn.log").read_text()
    assert sampler.error is None
    assert "Traceback" not in log, log
    assert "ERROR" not in log, log

    workers = Counter(answer["worker"] for answer in answers)
    assert set(workers) == set(processes[1:])
    assert len(workers) == WORKERS
    bodies = received(private_rabbitmq.url, REQUESTS + 1)
    first = {"order": 0, "app": app, "worker": parent}
    assert in_order(bodies) == in_order([first, *answers])

    assert sampler.samples >= 2
    assert set(sampler.most) == set(processes)  # the one that forked kept its connection
    assert max(sampler.most.values()) <= LIMIT
    assert not sampler.shared
