"""Fixtures for the tests of control."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext.control.remote import client as remote_client
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import node, nowhere
from tests.control.meeting import Meeting
from tests.control.rig import base

__all__ = ["base", "node", "nowhere"]


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """Give processes more time to say which ones they are, because the machine may be busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_client, "DISCOVERY_TIMEOUT", PATIENCE)
        yield


@pytest.fixture(
    params=[
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def meeting_url(request: pytest.FixtureRequest) -> str:
    """The URL of each kind of broker that carries commands."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def meeting(meeting_url: str) -> Iterator[Meeting]:
    """A project of this test, on each kind of broker. Nothing of it may be left there."""
    with Meeting(meeting_url) as meeting:
        yield meeting
    # A broker takes a moment to find that somebody has hung up.
    eventually(lambda: not meeting.left())
