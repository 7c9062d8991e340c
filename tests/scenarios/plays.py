"""The scenarios: what strikes, on which broker, and what it is called in the table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.brokers import PrivateCluster, PrivateRedis
from tests.proxy import Proxy

from .ensemble import Ensemble
from .publisher import HOST
from .stage import MARGIN, OURS, PROMISING, Pace, Record, Stage

__all__ = ["SCENARIOS", "DurableRedis", "Scenario", "play"]

QUORUM = {"x-queue-type": "quorum"}
RABBITMQ, REDIS, CLUSTER = "RabbitMQ", "Redis", "cluster"


#: The default of the setting.
CONFIRM_TIMEOUT = 10.0


class DurableRedis(PrivateRedis):
    """Writes each change to its disk before it answers, so that a restart loses nothing that it has confirmed."""

    def command(self) -> list[str]:
        return [*super().command(), "--appendonly", "yes", "--appendfsync", "always"]


@dataclass(frozen=True)
class Scenario:
    """One fault under load."""

    name: str
    title: str
    fault: Callable[[Ensemble, Any], None]
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
    #: Seconds for a confirm, and for a connection, where the promises need the default of CONFIRM_TIMEOUT.
    confirm: float | None = None
    #: The contenders of ours whose callers get no error at all, because the broker is there all the time. Not so where
    #: the machine was suspended: who was in the middle of a publish may find that its time has passed.
    unnoticed: tuple[str, ...] = ()

    def paced(self, pace: Pace) -> Pace:
        """*pace* as it is for this scenario."""
        if self.confirm is None:
            return pace
        return replace(
            pace,
            confirm=max(self.confirm, pace.confirm_timeout),
            patience=max(self.confirm, pace.patience),
        )

    def contenders(self, contenders: Iterable[str]) -> list[str]:
        """Those of *contenders* that are different ones here: on Redis there is no connection to share."""
        alike = set(PROMISING) - {OURS} if self.broker == REDIS else set()
        return [one for one in contenders if one not in alike]

    def broken_promises(self, record: Record, pace: Pace, margin: float = MARGIN) -> list[str]:
        """What of ours did not hold in *record*."""
        broken = record.broken_promises(self.paced(pace), margin)
        if record.contender in self.unnoticed and record.errors:
            broken.append(f"errors: {record.errors} {record.told}")
        return broken


def restarted(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    node.restart()
    stages.is_over()


def killed(stages: Ensemble, node: Any) -> None:
    node.write_log()
    stages.strikes()
    node.kill()
    stages.outage()
    node.start()
    stages.is_over()


def closed_by_the_operator(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    node.close_connections("maintenance")
    stages.is_over()


def idle(stages: Ensemble, node: Any) -> None:
    with stages.told("pause"):
        # A broker gives up a connection after two to three heartbeats.
        stages.outage(5 * stages.pace.heartbeat)
    stages.strikes()


def forgotten(stages: Ensemble, proxy: Proxy) -> None:
    """What is open falls silent for good, without a FIN or RST; new connections pass."""
    for link in proxy.alive:
        link.hold()
    # What had passed by then is no sign that anybody publishes again.
    stages.outage(0.2)
    stages.strikes()


def memory_alarm(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    with node.memory_alarm():
        stages.outage()
    stages.is_over()


def worker_killed(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    stages.kill_one()


def forked(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    stages.fork()


def wall_clock(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    with stages.told("clock"):
        stages.outage()
    stages.is_over()


def suspended(stages: Ensemble, node: Any) -> None:
    stages.strikes()
    stages.freeze(4 * stages.pace.heartbeat)
    stages.is_over()


def dns_gone(stages: Ensemble, proxy: Proxy) -> None:
    """No name can be looked up, and in this moment every connection breaks."""
    with stages.told("dns"):
        stages.outage(0.2)  # ten looks of the processes at their folder
        stages.strikes()
        proxy.cut(rst=True)
        stages.outage()
    stages.is_over()


def one_of_three_killed(stages: Ensemble, cluster: PrivateCluster) -> None:
    """The first of the failover list, where everybody is; the queue keeps its majority."""
    stages.strikes()
    cluster.kill(cluster.nodes[:1])
    stages.outage()
    stages.recovers()
    cluster.start()


def two_of_three_killed(stages: Ensemble, cluster: PrivateCluster) -> None:
    """One node is left, which takes connections and can confirm nothing."""
    stages.strikes()
    cluster.kill(cluster.nodes[:2])
    stages.outage()
    cluster.start()
    stages.is_over()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("restart", "Broker restarted under load", restarted),
        Scenario("crash", "Broker killed (`kill -9`) and started again", killed),
        Scenario(
            "operator",
            "Every connection closed by the operator",
            closed_by_the_operator,
            unnoticed=PROMISING,
        ),
        Scenario(
            "idle",
            "Idle past the heartbeat",
            idle,
            heartbeat=True,
            polite=True,
            unnoticed=PROMISING,
        ),
        Scenario(
            "firewall",
            "A firewall forgets the connections",
            forgotten,
            heartbeat=True,
            proxied=True,
            polite=True,
            confirm=CONFIRM_TIMEOUT,
            unnoticed=PROMISING,
        ),
        Scenario(
            "node",
            "One node of a three-node cluster killed",
            one_of_three_killed,
            broker=CLUSTER,
            queue_arguments=QUORUM,
            unnoticed=PROMISING,
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
            "worker",
            "`kill -9` of one of three workers",
            worker_killed,
            processes=3,
            polite=True,
            unnoticed=PROMISING,
        ),
        Scenario("fork", "A fork in mid-publish", forked, polite=True, unnoticed=PROMISING),
        Scenario(
            "clock",
            "The wall clock moved by a day, and back",
            wall_clock,
            heartbeat=True,
            polite=True,
            unnoticed=PROMISING,
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


def play(
    scenario: Scenario, contenders: Sequence[str], broker: Any, pace: Pace
) -> dict[str, Record]:
    """Publish as *contenders* on *broker*, all beside each other, let the fault strike, and count."""
    pace = scenario.paced(pace)
    with _entrance(scenario, broker) as (urls, target):
        stages = [
            Stage(
                contender,
                scenario.name,
                pace,
                urls=urls,
                plain_url=lambda: (
                    broker.running[0].url if scenario.broker == CLUSTER else broker.url
                ),
                processes=scenario.processes,
                heartbeat=pace.heartbeat if scenario.heartbeat else None,
                queue_arguments=scenario.queue_arguments,
            )
            for contender in contenders
        ]
        with Ensemble(stages) as ensemble:
            scenario.fault(ensemble, target)
            return {record.contender: record for record in ensemble.settle()}
