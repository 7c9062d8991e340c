"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext.engine import Pool, fork
from kombu_pools_ext.engine.maintenance import Maintenance, NoMaintenance
from tests.engine.fakes import wait_until
from tests.engine.steps import end_watching  # noqa: F401  # a fixture


@pytest.fixture(autouse=True)
def _no_release_is_left_deferred() -> Iterator[None]:
    """What a test has dropped comes home; where no maintenance runs, the process would tell of it at its end."""
    yield
    for pool in fork.live_pools(Pool):
        if isinstance(pool.keeper, NoMaintenance):
            pool.end_deferred()


@pytest.fixture
def keeper() -> Iterator[Maintenance]:
    """A maintenance thread of the test's own, which has ended in the end."""
    keeper = Maintenance()
    yield keeper
    keeper.nudge()
    wait_until(lambda: not keeper._running)
