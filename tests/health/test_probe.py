"""What a probe finds, and how seldom it asks the broker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import UnknownAlias
from kombu_pools_ext.health import AliasReadiness, Condition, Probe, Readiness
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRabbitMQ


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pools(private_rabbitmq: PrivateRabbitMQ) -> Iterator[Pools]:
    made = Pools(
        default={
            "URL": private_rabbitmq.url,
            "LIMIT": 2,
            "CONNECT_TIMEOUT": 2.0,
            "OUTAGE_PATIENCE": 1.0,
        }
    )
    yield made
    made.reset()


def condition(probe: Probe) -> Condition:
    return probe.look().condition


def opened_and_acquires(pools: Pools) -> tuple[int, int]:
    """So far, by all tests: they share a pool, for they share a broker."""
    stats = pools.connections["default"].stats()
    return stats.opened, stats.acquires


def test_a_cold_probe_opens_one_connection_and_a_hundred_warm_ones_none(pools: Pools) -> None:
    opened, acquires = opened_and_acquires(pools)
    probe = Probe(pools, timeout=PATIENCE)
    for _ in range(100):
        assert condition(probe) is Condition.OK
        assert opened_and_acquires(pools) == (opened + 1, acquires + 1)


def test_many_cold_probes_at_once_ask_once(pools: Pools) -> None:
    _, acquires = opened_and_acquires(pools)
    probe = Probe(pools, timeout=PATIENCE)
    found: list[Condition] = []
    threads = [threading.Thread(target=lambda: found.append(condition(probe))) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
    assert found == [Condition.OK] * 20
    assert opened_and_acquires(pools)[1] == acquires + 1


def test_an_answer_that_is_not_fresh_is_believed_while_the_next_comes(
    pools: Pools, clock: Clock, private_rabbitmq: PrivateRabbitMQ
) -> None:
    probe = Probe(pools, fresh=5.0, timeout=PATIENCE, clock=clock)
    assert condition(probe) is Condition.OK
    _, acquires = opened_and_acquires(pools)
    private_rabbitmq.freeze()
    try:
        clock.now += 6
        began = time.monotonic()
        assert condition(probe) is Condition.OK
        assert time.monotonic() - began < PATIENCE / 2
    finally:
        private_rabbitmq.thaw()
    eventually(lambda: opened_and_acquires(pools)[1] == acquires + 1)


def test_a_broker_that_is_killed_is_down_and_back_again(
    pools: Pools, clock: Clock, private_rabbitmq: PrivateRabbitMQ
) -> None:
    probe = Probe(pools, fresh=5.0, timeout=PATIENCE, clock=clock)
    assert condition(probe) is Condition.OK
    private_rabbitmq.kill()
    clock.now += 100
    found = probe.look()
    assert found.condition is Condition.DOWN
    reason = found.aliases[0].reason
    assert reason
    assert "guest:guest" not in reason
    # Without anybody else who asks the pool, it finds the broker again.
    private_rabbitmq.start()

    def is_back() -> bool:
        clock.now += 6
        return condition(probe) is Condition.OK

    eventually(is_back, PATIENCE)


def test_a_silent_broker_takes_no_longer_than_the_time_out(
    pools: Pools, private_rabbitmq: PrivateRabbitMQ
) -> None:
    probe = Probe(pools, timeout=0.3)
    private_rabbitmq.freeze()
    try:
        began = time.monotonic()
        assert condition(probe) is Condition.DOWN
        assert time.monotonic() - began < PATIENCE / 2
    finally:
        private_rabbitmq.thaw()


def test_an_alarm_is_blocked_and_not_down(private_rabbitmq: PrivateRabbitMQ) -> None:
    pools = Pools(default={"URL": private_rabbitmq.url, "CONFIRM": False})
    probe = Probe(pools, fresh=0.1, timeout=PATIENCE)
    assert condition(probe) is Condition.OK
    with private_rabbitmq.memory_alarm():
        # RabbitMQ tells those who publish, and nobody else.
        pools.publish("x", "nowhere", mandatory=False)
        eventually(lambda: condition(probe) is Condition.BLOCKED, PATIENCE)
    eventually(lambda: condition(probe) is Condition.OK, PATIENCE)
    pools.reset()


def test_a_suspended_pool_is_told(pools: Pools) -> None:
    probe = Probe(pools, timeout=PATIENCE)
    pools.suspend()
    assert condition(probe) is Condition.SUSPENDED
    pools.resume()
    eventually(lambda: condition(probe) is Condition.OK, PATIENCE)


def test_callers_that_wait_are_degraded(pools: Pools) -> None:
    probe = Probe(pools, fresh=3600.0, timeout=PATIENCE)
    assert condition(probe) is Condition.OK
    pool = pools.connections["default"]
    with pool.acquire(timeout=5), pool.acquire(timeout=5):
        assert condition(probe) is Condition.OK
        waiter = threading.Thread(target=lambda: pool.acquire(timeout=PATIENCE).release())
        waiter.start()
        eventually(lambda: pool.stats().waiting)
        found = probe.look()
        assert found.condition is Condition.DEGRADED
        assert found.aliases[0].reason == "1 callers wait, for all 2 connections are lent"
    waiter.join(PATIENCE)


def test_a_cold_probe_of_a_pool_whose_connections_are_all_lent_is_degraded(pools: Pools) -> None:
    pool = pools.connections["default"]
    with pool.acquire(timeout=5), pool.acquire(timeout=5):
        assert condition(Probe(pools, timeout=0.3)) is Condition.DEGRADED


def test_an_unknown_alias_is_an_error(pools: Pools) -> None:
    with pytest.raises(UnknownAlias):
        Probe(pools).look(["orders"])


def test_the_worst_of_several_is_told() -> None:
    found = Readiness(
        [
            AliasReadiness("a", Condition.BLOCKED, "low on memory"),
            AliasReadiness("b", Condition.OK),
            AliasReadiness("c", Condition.DEGRADED, "callers wait"),
        ]
    )
    assert found.as_dict(with_reasons=False) == {
        "condition": "blocked",
        "aliases": {"a": "blocked", "b": "ok", "c": "degraded"},
    }
    assert found.as_dict(with_reasons=True)["reasons"] == {
        "a": "low on memory",
        "c": "callers wait",
    }
    assert Readiness([]).condition is Condition.OK


@pytest.mark.forks
def test_a_forked_child_asks_for_itself(pools: Pools) -> None:
    probe = Probe(pools, timeout=PATIENCE)
    assert condition(probe) is Condition.OK
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            before, _ = opened_and_acquires(pools)
            told = f"{condition(probe)} {opened_and_acquires(pools)[0] - before}"
            os.write(writing, told.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert file.read() == "ok 1"
    os.waitpid(pid, 0)
