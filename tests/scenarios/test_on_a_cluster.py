"""The promises while nodes of a cluster are killed. A module of its own: no other node runs beside the three."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from tests.brokers import PrivateCluster
from tests.scenarios.common import judge, names, pace_of
from tests.scenarios.plays import CLUSTER, SCENARIOS, play
from tests.scenarios.stage import PROMISING, Record

pytestmark = [pytest.mark.slow, pytest.mark.broker]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with PrivateCluster() as three:
        yield three


@pytest.fixture(scope="module")
def played(cluster: PrivateCluster) -> Callable[[str], dict[str, Record]]:
    """Plays a scenario, once for all contenders."""

    @functools.cache
    def played(name: str) -> dict[str, Record]:
        cluster.start()
        return play(SCENARIOS[name], PROMISING, cluster, pace_of(name))

    return played


@pytest.mark.parametrize("contender", PROMISING)
@pytest.mark.parametrize("name", names(CLUSTER))
def test_on_a_cluster(
    name: str, contender: str, played: Callable[[str], dict[str, Record]]
) -> None:
    judge(played(name)[contender])
