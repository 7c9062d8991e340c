"""What the tests of the shared publisher share: pools that publish over it, and many threads at once."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.arguments import checked
from kombu_pools_ext.publisher import road_of
from kombu_pools_ext.publisher.encoding import outgoing
from kombu_pools_ext.publisher.outgoing import Outgoing
from kombu_pools_ext.publisher.publisher import Publisher
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox, inbox, queue  # noqa: F401  # fixtures
from tests.broker.rig import broker_url, node, nowhere, proxied  # noqa: F401  # fixtures
from tests.engine.steps import end_watching  # noqa: F401  # a fixture

MakePools = Callable[..., Pools]


@pytest.fixture
def shared() -> Iterator[MakePools]:
    """Makes an alias that publishes over a shared connection; afterwards nothing of it may be lent."""
    made: list[Pools] = []

    def make(url: str, **settings: Any) -> Pools:
        # A pool of its own, also where other tests use the same URL.
        own = {"TRANSPORT_OPTIONS": {"client_properties": {"test": uuid.uuid4().hex}}}
        made.append(Pools({"default": {"URL": url, "PUBLISH_OVER": "shared", **own, **settings}}))
        return made[-1]

    yield make
    for pools in made:
        publisher = publisher_of(pools)
        eventually(lambda publisher=publisher: not publisher.live)
        eventually(lambda pools=pools: pools.connections["default"].stats().lent == 0)
        pools.connections["default"].force_close_all()


def publisher_of(pools: Pools) -> Publisher:
    """Return what *pools* publish on."""
    road = road_of(pools.producers["default"])
    assert road is not None
    return road.publisher


def message(pools: Pools, body: Any, key: str, exchange: str = "", **kwargs: Any) -> Outgoing:
    """Return a message for the publisher of *pools*."""
    acquire_timeout = kwargs.pop("acquire_timeout", PATIENCE)
    routing_key, to, options = checked(key, exchange or None, kwargs, body)
    made = outgoing(
        pools.producers["default"],
        *(body, routing_key, to, options),
        frame_max=131072,
        acquire_timeout=acquire_timeout,
    )
    assert made is not None
    return made


class Crowd:
    """Threads that do the same at the same time; each has a number."""

    def __init__(self, count: int, work: Callable[[int], Any]) -> None:
        self._work = work
        self._together = threading.Barrier(count)
        #: What each returned, or raised.
        self.outcomes: dict[int, Any] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            self._together.wait(PATIENCE)
            self.outcomes[number] = self._work(number)
        except BaseException as error:
            self.outcomes[number] = error

    def join(self, seconds: float = PATIENCE) -> dict[int, Any]:
        """Wait until all have ended, and return their outcomes."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        hanging = [one for one in self._threads if one.is_alive()]
        assert not hanging, f"{len(hanging)} threads have not come to an end"
        return self.outcomes

    def errors(self, seconds: float = PATIENCE) -> list[BaseException]:
        """Wait likewise, and return what was raised."""
        return [one for one in self.join(seconds).values() if isinstance(one, BaseException)]


class Fanned:
    """Exchanges that pass everything on to one queue each."""

    def __init__(self, url: str, name: str, count: int) -> None:
        self.url = url
        self.names = [f"{name}-{number}" for number in range(count)]
        with kombu.Connection(url) as connection:
            for one in self.names:
                exchange = kombu.Exchange(one, "fanout", durable=False)
                kombu.Queue(one, exchange, durable=False)(connection.default_channel).declare()
        self.boxes = [Inbox.__new__(Inbox) for _ in self.names]
        for box, one in zip(self.boxes, self.names, strict=True):
            box.url, box.name = url, one

    def bodies(self) -> dict[str, list[Any]]:
        """What each has, oldest first."""
        return {box.name: box.bodies() for box in self.boxes}

    def ids(self) -> dict[str, list[tuple[str, Any]]]:
        """The ``message_id`` and the body of what each has, oldest first."""
        return {
            box.name: [(one.properties["message_id"], one.payload) for one in box.messages()]
            for box in self.boxes
        }

    def delete(self) -> None:
        with kombu.Connection(self.url) as connection:
            for one in self.names:
                kombu.Queue(one)(connection.default_channel).delete()
                kombu.Exchange(one)(connection.default_channel).delete()


@pytest.fixture
def fanned(queue: str) -> Iterator[Callable[..., Fanned]]:  # noqa: F811
    """Makes exchanges with a queue each."""
    made: list[Fanned] = []

    def make(url: str, count: int = 4) -> Fanned:
        made.append(Fanned(url, f"{queue}-{len(made)}", count))
        return made[-1]

    yield make
    for one in made:
        one.delete()


def first_arrivals(arrived: list[Any]) -> list[Any]:
    """Return *arrived* without what was there before."""
    return list(dict.fromkeys(arrived))
