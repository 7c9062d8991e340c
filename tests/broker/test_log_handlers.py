"""A handler on the root logger that publishes each record, while everything on the way to the broker logs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator

import kombu
import pytest

from kombu_pools_ext import Pools
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import Proxy

LEVELS = [logging.WARNING, logging.INFO, logging.DEBUG]


class Publishes(logging.Handler):
    def __init__(self, pools: Pools, queue: str) -> None:
        super().__init__()
        self._pools = pools
        self._queue = queue
        self.lost: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pools.publish(record.getMessage(), self._queue)
        except Exception:
            self.lost.append(record.name)


@pytest.fixture(params=LEVELS, ids=logging.getLevelName)
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(request.param)
    yield request.param
    root.setLevel(before)


def record_three(handler: Publishes) -> None:
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for number in range(3):
            within(
                PATIENCE / 2, lambda number=number: logging.getLogger("app").warning("%d", number)
            )  # type: ignore[misc]
    finally:
        root.removeHandler(handler)


@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ],
)
def test_records_of_the_application_are_published_at_every_level(
    request: pytest.FixtureRequest, level: int, scheme: str, limit: int
) -> None:
    url, name = request.getfixturevalue(f"{scheme}_url"), f"log-handler-{uuid.uuid4().hex}"
    # A time-out that is longer than the test's own patience: whoever waits for itself is found.
    pools = Pools(default={"URL": url, "LIMIT": limit, "ACQUIRE_TIMEOUT": PATIENCE})
    pools.reset()
    with kombu.Connection(url) as connection:
        queue = kombu.Queue(name, channel=connection.default_channel, durable=False)
        queue.declare()
        try:
            handler = Publishes(pools, name)
            record_three(handler)
            bodies = []

            def all_there() -> bool:
                while (message := queue.get(no_ack=True)) is not None:
                    bodies.append(message.payload)
                return {"0", "1", "2"} <= set(bodies)

            eventually(all_there)
        finally:
            queue.delete()
            pools.reset()
    assert "app" not in handler.lost
    assert len([body for body in bodies if body in ("0", "1", "2")]) == 3


@pytest.mark.broker
def test_a_record_whose_publish_is_tried_again_and_says_so_is_published(
    amqp_url: str, proxied: Callable[[str], Proxy], level: int, inbox: Callable[[str], Inbox]
) -> None:
    """What the retry logs is a record for the same handler, while the other connections are as broken."""
    proxy, limit, box = proxied(amqp_url), 4, inbox(amqp_url)
    pools = Pools(default={"URL": through(proxy, amqp_url), "LIMIT": limit, "CHECK_AFTER": 3600})
    try:
        leases = [pools.producers["default"].acquire(timeout=PATIENCE) for _ in range(limit)]
        for lease in leases:
            lease.publish("warm", routing_key=box.name)
        for lease in leases:
            lease.release()
        proxy.reset()
        handler = Publishes(pools, box.name)
        record_three(handler)
    finally:
        pools.reset()
    assert "app" not in handler.lost
    bodies = [str(one.payload) for one in box.messages()]
    assert {"0", "1", "2"} <= set(bodies)
    # What it logs within the publish is sent on an idle connection, or is lost at once.
    told = any("is tried again on another connection" in body for body in bodies)
    assert (told or "kombu_pools_ext" in handler.lost) == (level <= logging.INFO)


def test_while_the_broker_is_away_a_record_costs_no_more_than_the_time_out(level: int) -> None:
    pools = Pools(default={"URL": "amqp://guest:guest@127.0.0.1:1//", "ACQUIRE_TIMEOUT": 0.2})
    handler = Publishes(pools, "nobody")
    record_three(handler)
    assert handler.lost.count("app") == 3
