"""The promises in every scenario, short: `make reliability` plays them longer, and as kombu.pools too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.scenarios.common import TOGETHER, judge, names, pace_of
from tests.scenarios.plays import RABBITMQ, REDIS, SCENARIOS, DurableRedis, play
from tests.scenarios.stage import OURS, PROMISING, Record

pytestmark = pytest.mark.slow

#: By the scenario, what came of each contender.
Played = dict[str, Future[dict[str, Record]]]


@pytest.fixture(scope="module")
def beside_others(_own_rabbitmq: PrivateRabbitMQ) -> Played:
    """What came of the polite ones, played all at once: they wait for most of their time."""
    together = names(RABBITMQ, polite=True)
    with ThreadPoolExecutor(len(together)) as stages:
        return {
            name: stages.submit(
                play, SCENARIOS[name], PROMISING, _own_rabbitmq, pace_of(name, TOGETHER)
            )
            for name in together
        }


@pytest.fixture(scope="module")
def alone(_own_rabbitmq: PrivateRabbitMQ) -> Iterator[Callable[[str], dict[str, Record]]]:
    """Plays one of the others, once for all contenders."""

    @functools.cache
    def played(name: str) -> dict[str, Record]:
        _own_rabbitmq.start()
        return play(SCENARIOS[name], PROMISING, _own_rabbitmq, pace_of(name))

    yield played
    played.cache_clear()


@pytest.fixture(scope="module")
def durable_redis() -> Iterator[DurableRedis]:
    with DurableRedis() as server:
        yield server


@pytest.mark.parametrize("contender", PROMISING)
@pytest.mark.parametrize("name", names(RABBITMQ, polite=True))
@pytest.mark.broker
def test_beside_others(name: str, contender: str, beside_others: Played) -> None:
    judge(beside_others[name].result()[contender])


@pytest.mark.parametrize("contender", PROMISING)
@pytest.mark.parametrize("name", names(RABBITMQ))
@pytest.mark.broker
def test_alone(name: str, contender: str, alone: Callable[[str], dict[str, Record]]) -> None:
    judge(alone(name)[contender])


@pytest.mark.parametrize("name", names(REDIS))
def test_on_redis(name: str, durable_redis: DurableRedis) -> None:
    judge(play(SCENARIOS[name], [OURS], durable_redis, pace_of(name))[OURS])
