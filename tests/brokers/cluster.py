"""Three RabbitMQ nodes of the tests' own that are one cluster."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Self

import kombu

from .rabbitmq import PortMapper, PrivateRabbitMQ
from .server import speaks

__all__ = ["PrivateCluster"]

#: Has each quorum queue elect a leader. RabbitMQ 3.10 sometimes never does after all of its nodes were down at once.
ELECT = (
    "[ra:trigger_election(amqqueue:get_pid(Q)) "
    "|| Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue]"
)


class PrivateCluster:
    """A cluster on loopback: nodes with one cookie and one port mapper, and each with a port of its own.

    `nodes` are `PrivateRabbitMQ`; one that was stopped or killed joins again when it is started. `config` goes into
    the rabbitmq.conf of each.
    """

    def __init__(self, config: Mapping[str, str] | None = None, *, size: int = 3) -> None:
        self.mapper = PortMapper()
        cookie = secrets.token_hex(16)
        self.nodes = [
            PrivateRabbitMQ(config, mapper=self.mapper, cookie=cookie) for _ in range(size)
        ]
        peers = {
            f"cluster_formation.classic_config.nodes.{number}": node.nodename
            for number, node in enumerate(self.nodes, 1)
        }
        for node in self.nodes:
            node.config |= {
                "cluster_formation.peer_discovery_backend": "classic_config",
                "cluster_formation.discovery_retry_interval": "100",
                **peers,
            }
        self._stack = ExitStack()
        self._declared = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.mapper.stop)
            # Entering one waits for it; so they are entered last, when all are on their way.
            for node in self.nodes:
                node.make_folder()
                stack.push(node)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __repr__(self) -> str:
        return f"<PrivateCluster of {len(self.nodes)} nodes, {len(self.running)} running>"

    @property
    def running(self) -> list[PrivateRabbitMQ]:
        """The nodes whose processes run."""
        return [node for node in self.nodes if node.running]

    @property
    def urls(self) -> list[str]:
        """A failover list."""
        return [node.url for node in self.nodes]

    def start(self) -> None:
        """Start all nodes that don't run, at the same time, and return when the cluster is whole.

        :raises Unavailable: if one does not start, with the end of its log.
        """
        cold = not self.running
        for node in self.nodes:
            if not node.running:
                node.launch()
        for node in self.nodes:
            node.wait_until(lambda node=node: speaks(node.port, node.greeting, node.answer))
        self.nodes[0].ctl("await_online_nodes", str(len(self.nodes)), "--timeout", "60")
        if cold and self._declared:
            self.nodes[0].evaluate(ELECT)

    def kill(self, nodes: Iterable[PrivateRabbitMQ]) -> None:
        """SIGKILL to each."""
        for node in nodes:
            node.kill()

    def declare_quorum_queue(self, name: str) -> None:
        """A queue with a replica on each node, which lives on while most of them do.

        When all nodes are killed within seconds of this, RabbitMQ 3.10 was seen to bring it back empty.
        """
        with kombu.Connection(self.running[0].url) as connection:
            connection.default_channel.queue_declare(
                name, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
            )
        self._declared = True
