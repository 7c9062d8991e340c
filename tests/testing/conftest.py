"""What the tests of the broker in memory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext import Pools, configure, pools
from kombu_pools_ext.testing import Broker, ManualClock, brokers


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No broker, and no connection to one, is there in the next test."""
    yield
    pools.reset()
    brokers.clear()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> Broker:
    """The broker behind the alias ``default``."""
    made = Broker("default", clock=clock)
    brokers.add(made)
    return made


@pytest.fixture
def aliases(broker: Broker) -> Pools:
    """Two aliases, each with a broker of its own."""
    return configure(default="test://default", audit="test://audit")
