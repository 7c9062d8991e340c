"""Two machines that reach one broker, and nothing of each other."""

from __future__ import annotations

import hmac
import json
import os
import pickle
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import kombu
import pytest

from kombu_pools_ext import Pools, control
from kombu_pools_ext.control.remote.mailbox import PREFIX
from tests.brokers import PrivateRabbitMQ
from tests.conftest import _private
from tests.integration.machines import Machine, OpenRabbitMQ, machine, private_network
from tests.integration.rig import CLIENTS, Served, connected, eventually, family, kill_one
from tests.integration.servers import WORKERS, gunicorn
from tests.integration.steering import SECRET, Steering

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta")
#: What kombu calls a pickle.
PICKLE = "application/x-python-serialize"


@dataclass
class Site:
    """A broker, machines with a server each, and somebody who steers them by broadcast."""

    node: PrivateRabbitMQ
    steered: Steering
    servers: dict[str, Served]
    #: The processes, by machine.
    workers: dict[str, set[int]]

    def reset_so_far(self) -> dict[int, int]:
        """How many connections each process has closed for a reset."""
        return {
            pid: sum(row["closed"].get("drained", 0) for row in answer.rows)
            for pid, answer in self.steered.processes().items()
        }

    def work(self) -> None:
        """Have them publish."""
        for served in self.servers.values():
            served.publish_all(range(CLIENTS))

    def warm_up(self) -> None:
        """Have them publish until each has a connection, for a reset to close."""

        def all_have() -> bool:
            self.work()
            processes = self.steered.processes().values()
            return all(row["size"] for one in processes for row in one.rows)

        eventually(all_have, self.steered.processes)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with private_network(), ExitStack() as stack:
        node = stack.enter_context(contextmanager(_private)(OpenRabbitMQ, "RabbitMQ"))
        machines = [stack.enter_context(machine(name, n)) for n, name in enumerate(NAMES, 1)]
        servers = {
            one.name: stack.enter_context(_server(one, node, tmp_path_factory.mktemp(one.name)))
            for one in machines
        }
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kp-")))
        pools = Pools({"default": {"URL": node.url}})
        settings = {"DIRECTORY": str(directory), "BROADCAST": "default"}
        site = Site(
            node, Steering(directory, control.attach(pools, settings, secret=SECRET)), servers, {}
        )
        found = site.steered.wait_for(WORKERS * len(NAMES), site.work)
        for name in NAMES:
            site.workers[name] = {pid for pid, one in found.items() if one.process.host == name}
        yield site


@contextmanager
def _server(one: Machine, node: OpenRabbitMQ, folder: Path) -> Iterator[Served]:
    # A disk of its own: what listens here is not seen there.
    with tempfile.TemporaryDirectory(prefix="kp-") as directory:
        environment = {
            "SERVED_URL": node.url_at(one.gateway),
            "QUEUE": "served",
            "CONTROL": directory,
            "SECRET": SECRET,
            "BROADCAST": "default",
            "LIMIT": "1",
        }
        with gunicorn(environment, folder, "--threads", "4", within=one.within) as served:
            served.wait_for_workers(WORKERS)
            yield served
            served.signal(signal.SIGTERM)
            served.ends()
        assert "Traceback" not in served.log, served.log


def test_all_of_them_answer_each_from_its_machine(site: Site) -> None:
    for name, served in site.servers.items():
        assert len(site.workers[name]) == WORKERS
        assert site.workers[name] <= set(family(served.process.pid))
    assert set(site.steered.processes()) == set().union(*site.workers.values())


@pytest.mark.parametrize("name", NAMES)
def test_one_machine_is_asked(site: Site, name: str) -> None:
    found = site.steered.processes(hosts=[name])
    assert set(found) == site.workers[name]
    assert {one.process.host for one in found.values()} == {name}


def test_a_reset_reaches_both(site: Site) -> None:
    site.warm_up()
    everybody = set().union(*site.workers.values())
    before = {pid: connected(pid, site.node.port) for pid in everybody}
    closed = site.reset_so_far()
    assert set(site.steered.processes("reset")) == everybody
    for pid, old in before.items():
        # But for the connection that the broadcast came by.
        eventually(lambda pid=pid, old=old: len(old & connected(pid, site.node.port)) == 1)
    after = site.reset_so_far()
    assert all(after[pid] > closed[pid] for pid in everybody), (closed, after)
    site.warm_up()


def test_a_reset_of_one_machine_leaves_the_other_alone(site: Site) -> None:
    site.warm_up()
    closed = site.reset_so_far()
    assert set(site.steered.processes("reset", hosts=["alpha"])) == site.workers["alpha"]
    after = site.reset_so_far()
    assert {pid for pid in after if after[pid] != closed[pid]} == site.workers["alpha"]


def test_a_machine_that_nobody_is(site: Site) -> None:
    answers = site.steered.try_to_ask("reset", hosts=["gamma"])
    assert not answers.ok
    assert answers.answers == ()
    assert "gamma" in " ".join(answers.problems)


class Stranger:
    """Somebody who may use the broker, hears all, says what he likes, and does not know the secret."""

    def __init__(self, site: Site) -> None:
        self._connection = kombu.Connection(site.node.url)
        self._key = f"{PREFIX}.{site.steered.project.name}"
        self._exchange = kombu.Exchange("amq.direct", "direct", passive=True)
        queue = kombu.Queue("", self._exchange, self._key, exclusive=True, auto_delete=True)
        self._queue = queue(self._connection.default_channel)
        self._queue.declare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.release()

    def hear(self) -> bytes:
        """The next message."""
        message = eventually(lambda: self._queue.get(no_ack=True))
        return bytes(message.body)

    def say(self, body: bytes, **properties: Any) -> None:
        with self._connection.Producer(exchange=self._exchange) as producer:
            producer.publish(body, self._key, **properties)


def kind_of(message: bytes) -> str:
    """Whether it asks who is there, or has them do something."""
    return str(json.loads(message.partition(b" ")[2])["kind"])


def forgeries(genuine: bytes) -> dict[str, bytes]:
    """What somebody makes of a message that he has heard."""
    proof, _, text = genuine.partition(b" ")
    message = json.loads(text)
    fresh = json.dumps({**message, "number": uuid.uuid4().hex, "at": time.time()}).encode()
    own = hmac.digest(b"somebody else's secret", fresh, "sha256").hex().encode()
    return {
        "replayed": genuine,
        "changed": proof + b" " + fresh,
        "signed by somebody else": own + b" " + fresh,
        "unsigned": text,
        "signed by nobody": b" " + text,
        "cut": genuine[:-1],
        "continued": genuine + b" ",
        "empty": b"",
        "garbage": os.urandom(1000),
        "a pickle": pickle.dumps(message),
        "large": b"0" * (5 << 20),
    }


def test_what_is_forged_or_replayed_does_nothing(site: Site) -> None:
    site.warm_up()
    before = site.reset_so_far()
    with Stranger(site) as stranger:
        site.steered.ask("reset")
        heard = [stranger.hear()]
        while kind_of(heard[-1]) != "do":
            heard.append(stranger.hear())
        after = site.reset_so_far()
        assert all(after[pid] > before[pid] for pid in after)
        # What a reset would close.
        site.warm_up()
        for message in heard:
            for what, data in forgeries(message).items():
                content_type = PICKLE if what == "a pickle" else "application/octet-stream"
                stranger.say(data, content_type=content_type, content_encoding="binary")
        # These come after all of that.
        assert site.reset_so_far() == after
    for served in site.servers.values():
        assert "Traceback" not in served.log, served.log
        assert "it was sent a second time" in served.log, served.log
        assert "it is not signed" in served.log, served.log


def test_an_exhausted_pool_can_be_asked(site: Site) -> None:
    site.warm_up()
    with site.servers["alpha"].holding(1) as held:
        rows = {pid: one.rows[0] for pid, one in site.steered.processes(hosts=["alpha"]).items()}
        [busy] = [pid for pid, row in rows.items() if row["lent"] == row["limit"] == 1]
        done = site.steered.processes("reset", processes=[str(busy)], hosts=["alpha"])
        assert [row["lent"] for row in done[busy].rows] == [1]
    assert held == [{"number": 1, "pid": busy}]


def test_a_process_that_was_killed_is_missed_at_once(site: Site) -> None:
    dead = min(site.workers["beta"])
    kill_one(dead, site.servers["beta"].process.pid)
    everybody = set().union(*site.workers.values())
    # The broker finds out when it reads from the socket.
    eventually(lambda: set(site.steered.processes()) == everybody - {dead})
    again = site.steered.wait_for(len(everybody), site.work)
    site.workers["beta"] = {pid for pid, one in again.items() if one.process.host == "beta"}
