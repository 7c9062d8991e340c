"""What the tests of control share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext.control import elsewhere
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import node, nowhere
from tests.control.meeting import Meeting
from tests.control.rig import base

__all__ = ["base", "node", "nowhere"]


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """On a busy machine it may take longer to say who one is; where all do, nobody waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elsewhere, "WHO", PATIENCE)
        yield


@pytest.fixture(
    params=[
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def meeting_url(request: pytest.FixtureRequest) -> str:
    """Each kind of broker that carries commands."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def meeting(meeting_url: str) -> Iterator[Meeting]:
    """A project of the test's own, at each kind of broker; nothing of it must be left there."""
    with Meeting(meeting_url) as meeting:
        yield meeting
    # A broker takes a moment to find that somebody has hung up.
    eventually(lambda: not meeting.left())
