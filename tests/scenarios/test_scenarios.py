"""The promises in every scenario, short: `make reliability` plays them longer, and as kombu.pools too."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.scenarios.common import PACE, TOGETHER, judge, names
from tests.scenarios.plays import RABBITMQ, REDIS, SCENARIOS, DurableRedis, play
from tests.scenarios.stage import OURS, Record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ensemble(_module_rabbitmq: PrivateRabbitMQ) -> dict[str, Future[Record]]:
    """What came of the polite ones, played all at once: they wait for most of their time."""
    together = names(RABBITMQ, polite=True)
    with ThreadPoolExecutor(len(together)) as stages:
        return {
            name: stages.submit(play, SCENARIOS[name], OURS, _module_rabbitmq, TOGETHER)
            for name in together
        }


@pytest.fixture(scope="module")
def durable_redis() -> Iterator[DurableRedis]:
    with DurableRedis() as server:
        yield server


@pytest.mark.parametrize("name", names(RABBITMQ, polite=True))
@pytest.mark.broker
def test_beside_others(name: str, ensemble: dict[str, Future[Record]]) -> None:
    judge(ensemble[name].result())


@pytest.mark.parametrize("name", names(RABBITMQ))
def test_alone(name: str, private_rabbitmq: PrivateRabbitMQ) -> None:
    judge(play(SCENARIOS[name], OURS, private_rabbitmq, PACE))


@pytest.mark.parametrize("name", names(REDIS))
def test_on_redis(name: str, durable_redis: DurableRedis) -> None:
    judge(play(SCENARIOS[name], OURS, durable_redis, PACE))
