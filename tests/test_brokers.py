from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import kombu
import pytest
from amqp.exceptions import MessageNacked

from tests.broker.common import PATIENCE, eventually
from tests.brokers import (
    PrivateCluster,
    PrivateRabbitMQ,
    PrivateRedis,
    Unavailable,
    free_port,
    rabbitmq,
)
from tests.brokers.server import speaks


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_private_rabbitmq_starts_lists_dies_and_comes_back(
    private_rabbitmq: PrivateRabbitMQ,
) -> None:
    with kombu.Connection(private_rabbitmq.url) as connection:
        connection.ensure_connection(max_retries=1)
        eventually(lambda: len(private_rabbitmq.list_connections()) == 1)
        private_rabbitmq.kill()
        assert not private_rabbitmq.running
        with pytest.raises(connection.recoverable_connection_errors):
            connection.drain_events(timeout=PATIENCE)
    private_rabbitmq.start()
    with kombu.Connection(private_rabbitmq.url) as connection:
        connection.ensure_connection(max_retries=1)
        private_rabbitmq.close_connections()
        with pytest.raises(connection.recoverable_connection_errors):
            connection.drain_events(timeout=PATIENCE)
    # The broker is done with them a moment after its clients are.
    eventually(lambda: private_rabbitmq.list_connections() == [])


@pytest.mark.slow
def test_a_private_rabbitmq_leaves_nothing_behind(private_rabbitmq: PrivateRabbitMQ) -> None:
    with PrivateRabbitMQ({"heartbeat": "7"}) as broker:
        assert broker.port != private_rabbitmq.port
        with kombu.Connection(broker.url) as connection:
            connection.ensure_connection(max_retries=1)
            assert connection.connection.server_heartbeat == 7
        assert broker.process is not None
        assert broker.mapper.process is not None
        pids = [broker.process.pid, broker.mapper.process.pid]
        assert all(map(alive, pids))
        broker.stop()
        assert not broker.running
    assert not any(map(alive, pids))
    assert not broker.folder.exists()


@pytest.mark.slow
def test_a_private_rabbitmq_freezes_and_thaws(private_rabbitmq: PrivateRabbitMQ) -> None:
    with kombu.Connection(private_rabbitmq.url) as connection:
        connection.ensure_connection(max_retries=1)
        private_rabbitmq.freeze()
        try:
            connection.connection.send_method(
                (10, 90), None
            )  # no such method: an answer would come
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
        finally:
            private_rabbitmq.thaw()
        with pytest.raises(connection.connection_errors):
            connection.drain_events(timeout=PATIENCE)


@pytest.mark.slow
def test_a_memory_alarm_blocks_who_publishes(private_rabbitmq: PrivateRabbitMQ) -> None:
    told: list[str] = []
    with kombu.Connection(
        private_rabbitmq.url,
        transport_options={
            "on_blocked": told.append,
            "on_unblocked": lambda: told.append("unblocked"),
        },
    ) as connection:
        connection.ensure_connection(max_retries=1)
        with private_rabbitmq.memory_alarm():
            connection.Producer().publish("x", routing_key="nowhere")
            while not told:
                connection.drain_events(timeout=PATIENCE)
            assert "blocked" in told[0]
        while told[-1] != "unblocked":
            connection.drain_events(timeout=PATIENCE)


@pytest.mark.slow
def test_a_user_may_do_what_he_was_given(private_rabbitmq: PrivateRabbitMQ) -> None:
    private_rabbitmq.add_user("limited", "secret", write="^amq\\.fanout$")
    with kombu.Connection(private_rabbitmq.url_of("limited", "secret")) as connection:
        channel = connection.channel()
        with pytest.raises(connection.channel_errors, match="ACCESS_REFUSED"):
            channel.queue_declare("not-allowed")


@pytest.mark.slow
def test_a_cluster_survives_one_node_and_comes_back_from_none() -> None:
    def publish(cluster: PrivateCluster) -> bool:
        """Whether the cluster has confirmed a message; until the queue has a new leader it may be silent."""
        connection = kombu.Connection(
            cluster.running[0].url, transport_options={"confirm_publish": True}
        )
        returned: list[object] = []
        producer = connection.Producer(on_return=lambda *told: returned.append(told))
        try:
            producer.publish("x", routing_key="safe", timeout=2, mandatory=True)
        except (MessageNacked, *connection.recoverable_connection_errors):
            return False
        else:
            return not returned
        finally:
            connection.collect()

    def found(node: PrivateRabbitMQ) -> int:
        """How many messages a new client gets; they return to the queue with his end."""
        with kombu.Connection(node.url) as connection:
            try:
                channel = connection.channel()
                return len(list(iter(lambda: channel.basic_get("safe"), None)))
            except (*connection.channel_errors, *connection.connection_errors):
                return 0  # it has not found the queue's leader yet

    with PrivateCluster() as cluster:
        assert len({node.port for node in cluster.nodes}) == 3
        cluster.declare_quorum_queue("safe")
        assert publish(cluster)
        cluster.kill(cluster.nodes[:1])
        eventually(lambda: publish(cluster))
        assert len(cluster.running) == 2
        # Stopped, not killed: RabbitMQ 3.10 was seen to bring back empty a queue that was young when all nodes died.
        for node in cluster.running:
            node.stop()
        assert not cluster.running
        cluster.start()
        eventually(lambda: publish(cluster))
        folders = [node.folder for node in cluster.nodes]
        pids = [node.process.pid for node in cluster.nodes if node.process]
        eventually(lambda: found(cluster.nodes[2]) >= 3)
    assert len(pids) == 3
    assert not any(map(alive, pids))
    assert not any(folder.exists() for folder in folders)


def test_a_private_redis_starts_lists_dies_and_comes_back(private_redis: PrivateRedis) -> None:
    # Whoever asked whether it has started may just be leaving.
    eventually(lambda: private_redis.list_connections() == [])
    with kombu.Connection(private_redis.url) as connection:
        connection.default_channel.client.ping()
        assert len(private_redis.list_connections()) >= 1
    private_redis.restart()
    assert private_redis.running
    private_redis.kill()
    assert not private_redis.running
    private_redis.start()
    eventually(lambda: private_redis.list_connections() == [])


def test_a_frozen_server_is_silent(private_redis: PrivateRedis) -> None:
    with socket.create_connection(("127.0.0.1", private_redis.port), timeout=0.2) as peer:
        private_redis.freeze()
        try:
            peer.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                peer.recv(16)
        finally:
            private_redis.thaw()
        peer.settimeout(PATIENCE)
        assert peer.recv(16) == b"+PONG\r\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be kept like this")
def test_a_port_that_was_given_away_is_nobody_elses(private_redis: PrivateRedis) -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    # Nor is it while the server that it was given to is away.
    private_redis.kill()
    for kept in (port, private_redis.port):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", kept))
    for _ in range(2):
        with socket.create_server(("127.0.0.1", port)):
            socket.create_connection(("127.0.0.1", port)).close()
    private_redis.start()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RABBITMQ", raising=False)
    monkeypatch.setattr(rabbitmq, "RABBITMQ_SCRIPTS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="rabbitmq-server is not installed"), PrivateRabbitMQ():
        pass


def test_a_server_that_ends_at_once_says_why() -> None:
    class Broken(PrivateRedis):
        def command(self) -> list[str]:
            return ["/bin/sh", "-c", "echo out of memory; exit 3"]

    with pytest.raises(Unavailable, match="out of memory"), Broken():
        pass


@pytest.mark.slow
def test_a_private_rabbitmq_has_the_plugins_that_it_is_given() -> None:
    plain = PrivateRabbitMQ()
    assert not plain.has_plugin("rabbitmq_of_nobody")
    if not plain.has_plugin("rabbitmq_stomp"):
        pytest.skip("rabbitmq_stomp is not installed")
    port = free_port()
    config = {"stomp.listeners.tcp.1": f"127.0.0.1:{port}"}
    with PrivateRabbitMQ(config, plugins=["rabbitmq_stomp"]):
        greeting = b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
        assert speaks(port, greeting, b"CONNECTED")
