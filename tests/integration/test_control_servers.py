"""One who steers the pools of running servers: gunicorn's, uWSGI's, uvicorn's and Celery's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kombu
import pytest

from tests.brokers import PrivateRabbitMQ
from tests.conftest import ROOT
from tests.integration.rig import (
    CLIENTS,
    PATIENCE,
    Log,
    Served,
    Tasks,
    connected,
    eventually,
    family,
    kill_one,
    received,
)
from tests.integration.servers import WORKERS, gunicorn, under_uvicorn, under_uwsgi
from tests.integration.steering import Load, Steering

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/net/tcp").exists(), reason="/proc tells whose a connection is"
    ),
]

#: Requests, at the least, and how many are answered between one reset and the next.
REQUESTS, BETWEEN = 5000, 500


def connections(processes: Iterable[int], port: int) -> dict[int, set[str]]:
    """Those that each process has to the broker."""
    return {pid: connected(pid, port) for pid in processes}


def wait_for_others_than(old: set[str], pid: int, port: int) -> None:
    """Until a process that publishes has connections, and none of these."""
    eventually(
        lambda: (now := connected(pid, port)) and not old & now,
        lambda: f"{pid}: {connected(pid, port)}, and had {old}",
    )


def suspended(steered: Steering) -> set[bool]:
    return {row["suspended"] for one in steered.ask("status").answers for row in one.rows}


@pytest.mark.timeout(600)
def test_two_servers_under_load(
    private_rabbitmq: PrivateRabbitMQ, queue: str, tmp_path: Path, steered: Steering
) -> None:
    node = private_rabbitmq
    environment = {"SERVED_URL": node.url, "QUEUE": queue, **steered.environment}
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            served = gunicorn(environment, tmp_path / name, "--threads", "4")
            servers.append(stack.enter_context(served))
        for server in servers:
            server.wait_for_workers(WORKERS)
        # Nobody has used a pool yet.
        assert steered.processes() == {}

        with Load(servers) as load:
            load.wait_for(BETWEEN)
            workers = eventually(lambda: (p := steered.processes()) and len(p) == 4 and p)
            assert {answer.process.server for answer in workers.values()} == {"gunicorn"}
            for answered in range(2 * BETWEEN, REQUESTS + 1, BETWEEN):
                before = connections(workers, node.port)
                assert set(steered.processes("reset")) == set(workers)
                for pid, old in before.items():
                    wait_for_others_than(old, pid, node.port)
                load.wait_for(answered)
            answers = load.stop()
        numbers = [answer["number"] for answer in answers]
        assert numbers == list(range(1, len(numbers) + 1))
        assert {one["pid"] for one in answers} == set(workers)

        node.stop()
        assert set(steered.processes()) == set(workers)
        assert set(steered.processes("suspend")) == set(workers)
        assert suspended(steered) == {True}
        assert set(steered.processes("resume")) == set(workers)
        assert suspended(steered) == {False}
        node.start()

        assert len(steered.sockets) == len(workers)
        dead = next(pid for pid in workers if pid in family(servers[0].process.pid))
        kill_one(dead, servers[0].process.pid)
        assert set(steered.processes()) == set(workers) - {dead}
        assert len(steered.sockets) == len(workers) - 1

        # The one in its place, with the pools of all.
        servers[0].wait_for_workers(WORKERS, other_than={dead})
        extra = itertools.count(len(numbers) + 1)

        def work() -> None:
            for server in servers:
                more = list(itertools.islice(extra, CLIENTS))
                server.publish_all(more)
                numbers.extend(more)

        again = steered.wait_for(len(workers), work)
        assert set(again) >= set(workers) - {dead}
        for server in servers:
            server.signal(signal.SIGTERM)
        for server in servers:
            assert server.ends() == 0, server.log
            assert "Traceback" not in server.log, server.log
        assert steered.sockets == []
    assert sorted(received(node.url, queue, len(numbers))) == numbers


@dataclass
class Site:
    """A server of a kind, or a worker of Celery."""

    served: Served
    #: Has its processes publish, and returns how many messages.
    work: Callable[[], int]
    #: Whom to kill, if that is not all the same.
    victim: Callable[[], int | None] = lambda: None


def publishing(served: Served) -> Callable[[], int]:
    """Requests to a server, as many at once as make all its workers work, sooner or later."""
    return lambda: len(served.publish_all(range(CLIENTS)))


@contextmanager
def gunicorn_gevent(environment: dict[str, str], folder: Path) -> Iterator[Site]:
    with gunicorn(environment, folder, "--worker-class", "gevent") as served:
        yield Site(served, publishing(served))


@contextmanager
def uvicorn(environment: dict[str, str], folder: Path) -> Iterator[Site]:
    with under_uvicorn(environment, folder) as served:
        served.wait_for_workers(WORKERS)
        yield Site(served, publishing(served))


@contextmanager
def celery_prefork(environment: dict[str, str], folder: Path) -> Iterator[Site]:
    held = folder / "held"

    def busy() -> int:
        # One that waits for a task holds what the others need to get one, and billiard does not give it back.
        tasks.send("hold", 0, str(held))
        return int(eventually(lambda: held.exists() and held.read_text()))

    with Tasks(folder) as tasks:

        def done() -> int:
            return served.log.count(" succeeded in ")

        def work() -> int:
            before = done()
            for number in range(CLIENTS):
                tasks.send("publish", number)
            eventually(lambda: done() >= before + CLIENTS, lambda: served.log)
            return CLIENTS

        with Served([*tasks.command], {**tasks.environment, **environment}, folder, 0) as served:
            yield Site(served, work, busy)


def course(
    site: Site,
    name: str,
    node: PrivateRabbitMQ,
    queue: str,
    steered: Steering,
    *,
    replaced: bool = True,
) -> None:
    """All of them are seen, reset, and missed when one was killed; and there is nothing left in the end.

    :param replaced: whether another one comes in the place of the one that was killed, and there is an end.
    """
    sent, log = 0, Log(node)

    def work() -> None:
        nonlocal sent
        sent += site.work()

    workers = steered.wait_for(WORKERS, work)
    assert {answer.process.server for answer in workers.values()} == {name}
    assert set(workers) <= set(family(site.served.process.pid))

    before = connections(workers, node.port)
    assert all(before.values())
    assert set(steered.processes("reset")) == set(workers)
    work()
    for pid, old in before.items():
        eventually(lambda pid=pid, old=old: not old & connected(pid, node.port))

    dead = site.victim() or min(workers)
    assert dead in workers
    cut = len(connected(dead, node.port))
    kill_one(dead, site.served.process.pid)
    assert set(steered.processes()) == set(workers) - {dead}
    assert len(steered.sockets) == WORKERS - 1
    if not replaced:
        return
    again = steered.wait_for(WORKERS, work)
    assert set(again) >= set(workers) - {dead}
    assert all(connections(again, node.port).values())
    site.served.signal(signal.SIGTERM)
    site.served.ends()
    if name == "uvicorn":
        # Its workers die of the signal. Whoever looks next tidies up.
        assert steered.processes() == {}
    assert steered.sockets == []
    eventually(lambda: not log.open, lambda: log.text)
    assert len(log.mourned) == cut, log.text
    assert len(received(node.url, queue, sent)) == sent


SITES = {
    "gunicorn": (gunicorn_gevent, "gunicorn"),
    "uvicorn": (uvicorn, "uvicorn"),
    "celery": (celery_prefork, "celery"),
}


@pytest.mark.parametrize("site_of, name", SITES.values(), ids=SITES)
def test_any_server(
    node: PrivateRabbitMQ,
    queue: str,
    tmp_path: Path,
    steered: Steering,
    site_of: Callable[[dict[str, str], Path], AbstractContextManager[Site]],
    name: str,
) -> None:
    environment = {"SERVED_URL": node.url, "QUEUE": queue, **steered.environment}
    with site_of(environment, tmp_path) as site:
        course(site, name, node, queue, steered)


@pytest.mark.parametrize("first", ["", "1"], ids=["", "published-at-import"])
def test_uwsgi(
    node: PrivateRabbitMQ,
    queue: str,
    tmp_path: Path,
    steered: Steering,
    uwsgi: list[str],
    first: str,
) -> None:
    environment = {"SERVED_URL": node.url, "QUEUE": queue, "FIRST": first, **steered.environment}
    with under_uwsgi(uwsgi, environment, tmp_path, "--enable-threads") as served:
        # Its master may have published, but has no thread that listens.
        assert steered.processes() == {}
        work = publishing(served)
        if first:
            assert len(received(node.url, queue, 1)) == 1
        # On Python 3.12 what 2.0.26 starts anew never answers, whatever the application.
        replaced = sys.version_info < (3, 12) or "Starting uWSGI 2.0.26" not in served.log
        course(Site(served, work), "uwsgi", node, queue, steered, replaced=replaced)


def test_uwsgi_without_threads_is_listed_as_silent(
    node: PrivateRabbitMQ, queue: str, tmp_path: Path, steered: Steering, uwsgi: list[str]
) -> None:
    environment = {"SERVED_URL": node.url, "QUEUE": queue, **steered.environment}
    with under_uwsgi(uwsgi, environment, tmp_path) as served:
        if "threads support is disabled" not in served.log:
            pytest.skip("no uWSGI without threads here: from 2.0.27 on it always runs them")
        work = publishing(served)
        sent = work()
        # Nothing runs in a worker that waits for requests.
        answers = steered.try_to_ask("reset", 1.0)
        assert {answer.outcome for answer in answers.answers} == {"silent"}
        sent += work()
        served.signal(signal.SIGTERM)
        assert served.ends() == 0, served.log
        assert steered.sockets == []
    assert len(received(node.url, queue, sent)) == sent


def test_djangos_command_steers_what_uvicorn_serves(
    node: PrivateRabbitMQ, queue: str, tmp_path: Path, directory: Path
) -> None:
    project = ROOT / "docs" / "examples" / "django_project"
    environment = {
        "BROKER_URL": node.url,
        "ORDERS_QUEUE": queue,
        "SECRET_KEY": queue,
        "XDG_RUNTIME_DIR": str(directory),
    }

    def order(served: Served) -> int:
        """The worker that placed one."""
        address = f"http://127.0.0.1:{served.port}/orders/"
        with urllib.request.urlopen(address, b"order=7", timeout=PATIENCE) as response:
            return int(json.load(response)["worker"])

    def command(name: str) -> dict[int, dict[str, Any]]:
        """What each process did."""
        done = subprocess.run(
            [sys.executable, "manage.py", "kombu_pools", name, "--format", "json"],
            cwd=project,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        told = json.loads(done.stdout)
        assert told["ok"], told
        return {answer["process"]["pid"]: answer for answer in told["processes"]}

    options = ("--app-dir", str(project))
    with under_uvicorn(environment, tmp_path, *options, application="asgi:application") as served:
        workers: set[int] = set()

        def all_have() -> bool:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                workers.add(order(served))
            return len(workers) == WORKERS

        eventually(all_have, lambda: served.log)
        eventually(lambda: set(command("status")) == workers)
        before = connections(workers, node.port)
        done = command("reset")
        assert set(done) == workers
        assert all(row["ok"] for answer in done.values() for row in answer["rows"])
        for pid, old in before.items():
            assert old
            eventually(lambda pid=pid, old=old: not old & connected(pid, node.port))
        assert order(served) in workers
    with kombu.Connection(node.url) as connection:
        kombu.Queue(queue)(connection.default_channel).delete()
