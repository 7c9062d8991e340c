"""What the tests of the pools on a broker share: names of their own, and groups and limits put back."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import kombu.pools
import pytest

from kombu_pools_ext.broker import groups
from kombu_pools_ext.broker.amqp.publisher import ChannelPublisher
from tests.broker.certificates import certificates  # noqa: F401  # a fixture
from tests.broker.common import PATIENCE
from tests.broker.rig import broker_url, mute, node, nowhere, proxied  # noqa: F401  # fixtures
from tests.engine.steps import end_watching  # noqa: F401  # a fixture

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    """Limits, registered groups and aliases are global: the next test finds them as this one did."""
    registered = [(one, list(one._groups)) for one in (groups, kombu.pools)]
    yield
    for one, before in registered:
        one.reset()
        one._groups[:] = before
        one.set_limit(10)
    for group in (groups.connections, groups.producers):
        # A pool that something still holds would come back, with the limit that a test gave it.
        group._former.clear()
    groups.name_aliases({})


@pytest.fixture
def queue() -> str:
    """The name of a queue that nobody else uses."""
    return f"broker-{uuid.uuid4().hex}"


@pytest.fixture
def memory_url() -> str:
    """A broker in memory whose pools are of this test alone."""
    return f"memory://broker{next(_numbers)}"


@pytest.fixture(
    params=[
        "memory",
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each kind of broker in turn."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def inbox(queue: str) -> Iterator[Callable[[str], Inbox]]:
    """Makes, for a URL, a queue on that broker that goes with the test."""
    made: list[Inbox] = []

    def make(url: str) -> Inbox:
        made.append(Inbox(url, queue))
        return made[-1]

    yield make
    for one in made:
        one.delete()


class Inbox:
    """A queue that exists, seen by a client of no pool."""

    def __init__(self, url: str, name: str, **arguments: Any) -> None:
        self.url, self.name = url, name
        queue = kombu.Queue(name, durable=False, queue_arguments=arguments or None)
        with kombu.Connection(url) as connection:
            queue(connection.default_channel).declare()

    def messages(self, count: int = 0) -> list[kombu.Message]:
        """All messages in it, oldest first, once there are *count*: unconfirmed ones may still be on their way."""
        found: list[kombu.Message] = []
        deadline = time.monotonic() + PATIENCE
        with kombu.Connection(self.url) as connection:
            bound = kombu.Queue(self.name, durable=False)(connection.default_channel)
            while True:
                message = bound.get(no_ack=True)
                if message is not None:
                    found.append(message)
                elif len(found) >= count or time.monotonic() > deadline:
                    return found
                else:
                    time.sleep(0.002)

    def bodies(self, count: int = 0) -> list[Any]:
        """What they say."""
        return [message.payload for message in self.messages(count)]

    def delete(self) -> None:
        with kombu.Connection(self.url) as connection:
            kombu.Queue(self.name, durable=False)(connection.default_channel).delete()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What takes the fast path."""
    taken: list[bytes] = []
    put = ChannelPublisher.put

    def note(self: Any, frames: bytes) -> None:
        taken.append(frames)
        put(self, frames)

    monkeypatch.setattr(ChannelPublisher, "put", note)
    return taken
