"""What Redis sees is what LIMIT says: a pooled connection is one client there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import pytest

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control import local
from tests.broker.certificates import Certificates
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRedis, free_port
from tests.conftest import _private

pytestmark = pytest.mark.redis

LIMIT, THREADS, MESSAGES = 4, 12, 40


class OpenRedis(PrivateRedis):
    """Takes clients by TCP, by TLS and at a socket."""

    certificates: Certificates

    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()

    def command(self) -> list[str]:
        files = self.certificates
        return [
            *super().command(),
            *("--unixsocket", f"{self.folder}/s", "--unixsocketperm", "700"),
            *("--tls-port", str(self.tls_port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", files.path("server"), "--tls-key-file", files.key("server")),
            *("--tls-ca-cert-file", files.path("ca")),
        ]

    def settings_for(self, way: str) -> dict[str, Any]:
        if way == "tls":
            tls = {"ssl_ca_certs": self.certificates.path("ca")}
            return {"URL": f"rediss://localhost:{self.tls_port}/0", "SSL": tls}
        return {"URL": self.url if way == "tcp" else f"redis+socket://{self.folder}/s"}


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[OpenRedis]:
    kind = type("OpenRedis", (OpenRedis,), {"certificates": certificates})
    yield from _private(kind, "Redis")


@pytest.fixture
def clients(server: OpenRedis) -> Callable[[], int]:
    eventually(lambda: not server.list_connections())
    return lambda: len(server.list_connections())


@contextmanager
def opened(server: OpenRedis, most: int) -> Iterator[None]:
    """Within, Redis takes no more than *most* connections, and says so of each further one."""
    import redis

    with redis.Redis(port=server.port) as admin:
        admin.config_set("maxclients", most + 1)
        try:
            yield
        finally:
            admin.config_set("maxclients", 10_000)


def alias(server: OpenRedis, way: str = "tcp", **settings: Any) -> Pools:
    return Pools({
        "default": {
            **server.settings_for(way),
            "LIMIT": LIMIT,
            "ACQUIRE_TIMEOUT": PATIENCE,
            "MAX_WAITING": THREADS,
            "RETRY": None,
            **settings,
        }
    })  # fmt: skip


def at_once(work: Callable[[], object]) -> list[Exception]:
    failed: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return failed


@pytest.mark.parametrize("way", ["tcp", "socket", pytest.param("tls", marks=pytest.mark.threads)])
def test_a_busy_application_is_as_many_clients_as_its_limit_says(
    server: OpenRedis, clients: Callable[[], int], way: str
) -> None:
    pools = alias(server, way)
    exchange = kombu.Exchange("clients", type="topic")
    queue = kombu.Queue("clients", exchange, routing_key="#")

    def work() -> None:
        for number in range(MESSAGES):
            pools.publish({"n": number}, "some.key", exchange=exchange, declare=[queue])
            pools.publish({"n": number}, "clients")

    # In place of a look now and then: each further one would be refused.
    with opened(server, LIMIT):
        assert at_once(work) == []
        assert [row.ok for row in local.ping(pools, timeout=PATIENCE)] == [True]
    assert clients() == pools.connections["default"].stats().size == LIMIT
    pools.connections["default"].force_close_all()


def test_what_is_kept_idle_and_checked_is_one_client_each(
    server: OpenRedis, clients: Callable[[], int]
) -> None:
    pools = alias(server, MIN_IDLE=2, CHECK_AFTER=0, TRANSPORT_OPTIONS={"health_check_interval": 1})
    pools.wait_ready(PATIENCE)
    assert clients() == 2
    for _ in range(3):
        pools.publish({}, "clients")
    assert clients() == 2
    pools.connections["default"].force_close_all()


def test_a_reader_has_a_client_more_for_as_long_as_its_lease(
    server: OpenRedis, clients: Callable[[], int]
) -> None:
    pools = alias(server)
    for _ in range(3):
        with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
            with connection.SimpleQueue("clients.read") as box:
                box.put({"n": 1})
                assert clients() == 1
                box.get(timeout=PATIENCE).ack()
                # It asks for the next message on the one, and acknowledges on the other.
                assert clients() == 2
        assert clients() == 1
    assert pools.connections["default"].stats().opened == 1
    pools.connections["default"].force_close_all()
    eventually(lambda: clients() == 0)


def test_a_read_without_waiting_needs_no_client_more(
    server: OpenRedis, clients: Callable[[], int]
) -> None:
    pools = alias(server)
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        channel = connection.default_channel
        kombu.Queue("clients.get")(channel).declare()
        connection.Producer().publish({"n": 1}, routing_key="clients.get")
        message = kombu.Queue("clients.get")(channel).get()
        assert message is not None
        message.ack()
        assert clients() == 1
    pools.connections["default"].force_close_all()


def test_one_can_consume_again_after_its_spare_client_has_gone(server: OpenRedis) -> None:
    pools = alias(server, LIMIT=1)
    for number in range(5):
        with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
            with connection.SimpleQueue("clients.again") as box:
                box.put({"n": number})
                message = box.get(timeout=PATIENCE)
                assert message.payload == {"n": number}
                message.ack()
        pools.publish({}, "clients.other")
    assert pools.connections["default"].stats().opened == 1
    pools.connections["default"].force_close_all()


def test_as_many_connections_may_be_open_at_once_as_the_option_says_twice(
    server: OpenRedis,
) -> None:
    # As it was with two pools: one that waits for messages, and one that acknowledges.
    pools = alias(server, TRANSPORT_OPTIONS={"max_connections": 1})
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        with connection.SimpleQueue("clients.most") as box:
            box.put({"n": 1})
            box.get(timeout=PATIENCE).ack()
    pools.connections["default"].force_close_all()


@pytest.mark.forks
def test_a_forked_child_has_clients_of_its_own(
    server: OpenRedis, clients: Callable[[], int]
) -> None:
    pools = alias(server, LIMIT=1)
    pools.publish({}, "clients.fork")
    child = os.fork()
    if not child:  # pragma: no cover - the child
        code = 1
        try:
            pools.publish({}, "clients.fork")
            code = 0 if clients() == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pools.publish({}, "clients.fork")
    eventually(lambda: clients() == 1)
    assert pools.connections["default"].stats().opened == 1
    pools.connections["default"].force_close_all()
