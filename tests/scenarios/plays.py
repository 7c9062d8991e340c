"""The scenarios: what strikes, on which broker, and what it is called in the table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.brokers import PrivateCluster, PrivateRedis
from tests.proxy import Proxy

from .publisher import HOST
from .stage import Pace, Record, Stage

__all__ = ["SCENARIOS", "DurableRedis", "Scenario", "play"]

QUORUM = {"x-queue-type": "quorum"}
RABBITMQ, REDIS, CLUSTER = "RabbitMQ", "Redis", "cluster"


class DurableRedis(PrivateRedis):
    """Writes each change to its disk before it answers, so that a restart loses nothing that it has confirmed."""

    def command(self) -> list[str]:
        return [*super().command(), "--appendonly", "yes", "--appendfsync", "always"]


@dataclass(frozen=True)
class Scenario:
    """One fault under load."""

    name: str
    title: str
    fault: Callable[[Stage, Any], None]
    #: Which kind of broker it is played on.
    broker: str = RABBITMQ
    #: Whether the fault hurts nobody but its own publishers, so that others may play on the same broker.
    polite: bool = False
    processes: int = 1
    #: Whether the publishers are to have a short heartbeat.
    heartbeat: bool = False
    #: Whether the publishers reach the broker through a proxy, which the fault gets in the broker's place.
    proxied: bool = False
    #: The host that the publishers know it by.
    host: str = "127.0.0.1"
    queue_arguments: Mapping[str, Any] = field(default_factory=dict)


def restarted(stage: Stage, node: Any) -> None:
    stage.strikes()
    node.restart()
    stage.is_over()


def killed(stage: Stage, node: Any) -> None:
    node.write_log()
    stage.strikes()
    node.kill()
    stage.outage()
    node.start()
    stage.is_over()


def closed_by_the_operator(stage: Stage, node: Any) -> None:
    stage.strikes()
    node.close_connections("maintenance")
    stage.is_over()


def idle(stage: Stage, node: Any) -> None:
    with stage.told("pause"):
        # A broker gives up a connection after two to three heartbeats.
        stage.outage(5 * stage.pace.heartbeat)
    stage.strikes()


def forgotten(stage: Stage, proxy: Proxy) -> None:
    """What is open falls silent for good, without a FIN or RST; new connections pass."""
    stage.strikes()
    for link in proxy.alive:
        link.hold()


def memory_alarm(stage: Stage, node: Any) -> None:
    stage.strikes()
    with node.memory_alarm():
        stage.outage()
    stage.is_over()


def worker_killed(stage: Stage, node: Any) -> None:
    stage.strikes()
    stage.kill(stage.names[0])


def forked(stage: Stage, node: Any) -> None:
    stage.strikes()
    for name in stage.names:
        stage.expect(f"{name}f")
    (stage.folder / "fork").touch()


def wall_clock(stage: Stage, node: Any) -> None:
    stage.strikes()
    with stage.told("clock"):
        stage.outage()
    stage.is_over()


def suspended(stage: Stage, node: Any) -> None:
    stage.strikes()
    stage.freeze(4 * stage.pace.heartbeat)
    stage.is_over()


def dns_gone(stage: Stage, proxy: Proxy) -> None:
    """No name can be looked up, and in this moment every connection breaks."""
    with stage.told("dns"):
        stage.outage(0.2)  # ten looks of the processes at their folder
        stage.strikes()
        proxy.cut(rst=True)
        stage.outage()
    stage.is_over()


def one_of_three_killed(stage: Stage, cluster: PrivateCluster) -> None:
    """The first of the failover list, where everybody is; the queue keeps its majority."""
    stage.strikes()
    cluster.kill(cluster.nodes[:1])
    stage.outage()
    stage.recovers()
    cluster.start()


def two_of_three_killed(stage: Stage, cluster: PrivateCluster) -> None:
    """One node is left, which takes connections and can confirm nothing."""
    stage.strikes()
    cluster.kill(cluster.nodes[:2])
    stage.outage()
    cluster.start()
    stage.is_over()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("restart", "Broker restarted under load", restarted),
        Scenario("crash", "Broker killed (`kill -9`) and started again", killed),
        Scenario("operator", "Every connection closed by the operator", closed_by_the_operator),
        Scenario("idle", "Idle past the heartbeat", idle, heartbeat=True, polite=True),
        Scenario(
            "firewall",
            "A firewall forgets the connections",
            forgotten,
            heartbeat=True,
            proxied=True,
            polite=True,
        ),
        Scenario(
            "node",
            "One node of a three-node cluster killed",
            one_of_three_killed,
            broker=CLUSTER,
            queue_arguments=QUORUM,
        ),
        Scenario(
            "majority",
            "Two nodes of a three-node cluster killed",
            two_of_three_killed,
            broker=CLUSTER,
            queue_arguments=QUORUM,
        ),
        Scenario("alarm", "Memory alarm", memory_alarm),
        Scenario("redis", "Redis restarted", restarted, broker=REDIS),
        Scenario(
            "worker", "`kill -9` of one of three workers", worker_killed, processes=3, polite=True
        ),
        Scenario("fork", "A fork in mid-publish", forked, polite=True),
        Scenario(
            "clock",
            "The wall clock moved by a day, and back",
            wall_clock,
            heartbeat=True,
            polite=True,
        ),
        Scenario(
            "suspended",
            "The machine suspended for four heartbeats",
            suspended,
            heartbeat=True,
            polite=True,
        ),
        Scenario(
            "dns",
            "DNS gone while every connection breaks",
            dns_gone,
            proxied=True,
            host=HOST,
            polite=True,
        ),
    )
}


@contextlib.contextmanager
def _entrance(scenario: Scenario, broker: Any) -> Iterator[tuple[list[str], Any]]:
    """The URLs for the publishers, and what the fault is done to."""
    if not scenario.proxied:
        yield broker.urls if scenario.broker == CLUSTER else [broker.url], broker
        return
    with Proxy("127.0.0.1", broker.port) as proxy:
        yield [f"amqp://guest:guest@{scenario.host}:{proxy.port}//"], proxy


def play(scenario: Scenario, contender: str, broker: Any, pace: Pace) -> Record:
    """Publish as *contender* on *broker*, let the fault strike, and count."""
    with (
        _entrance(scenario, broker) as (urls, target),
        Stage(
            contender,
            scenario.name,
            pace,
            urls=urls,
            plain_url=lambda: broker.running[0].url if scenario.broker == CLUSTER else broker.url,
            processes=scenario.processes,
            heartbeat=pace.heartbeat if scenario.heartbeat else None,
            queue_arguments=scenario.queue_arguments,
        ) as stage,
    ):
        scenario.fault(stage, target)
        return stage.settle()
