"""The promises while nodes of a cluster are killed. A module of its own: no other node runs beside the three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers import PrivateCluster
from tests.scenarios.common import PACE, judge, names
from tests.scenarios.plays import CLUSTER, SCENARIOS, play
from tests.scenarios.stage import OURS

pytestmark = [pytest.mark.slow, pytest.mark.broker]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with PrivateCluster() as three:
        yield three


@pytest.mark.parametrize("name", names(CLUSTER))
def test_on_a_cluster(name: str, cluster: PrivateCluster) -> None:
    cluster.start()
    judge(play(SCENARIOS[name], OURS, cluster, PACE))
