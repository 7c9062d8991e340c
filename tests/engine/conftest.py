"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext.engine import Pool, fork
from kombu_pools_ext.engine.upkeep import NoUpkeep, Upkeep
from tests.engine.fakes import wait_until


@pytest.fixture(autouse=True)
def _nothing_is_left_in_an_inbox() -> Iterator[None]:
    """What a test has dropped comes home with it; where no upkeep runs, the process would tell of it at its end."""
    yield
    for pool in fork.live_pools(Pool):
        if isinstance(pool.keeper, NoUpkeep):
            pool.settle()


@pytest.fixture
def keeper() -> Iterator[Upkeep]:
    """A maintenance thread of the test's own, which has ended in the end."""
    keeper = Upkeep()
    yield keeper
    keeper.nudge()
    wait_until(lambda: not keeper._running)
