"""By default a publish takes a lease, and what no thread waits for goes over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kombu import Queue

from kombu_pools_ext import Pools
from kombu_pools_ext.control import local
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox

MakeInbox = Callable[[str], Inbox]


def leases(pools: Pools) -> int:
    """Return how many there were."""
    return pools.connections["default"].stats().acquires


def over(pools: Pools) -> tuple[str, int]:
    """Return what the status row says."""
    [row] = local.status(pools)
    return row.publish_over, row.in_flight


def test_a_publish_takes_a_lease_and_needs_no_shared_road(amqp_url: str, inbox: MakeInbox) -> None:
    box, pools = inbox(amqp_url), Pools(default={"URL": amqp_url, "LIMIT": 7})
    for number in range(3):
        pools.publish(number, box.name)
    assert pools.producers["default"].shared_road is None
    assert leases(pools) == 3
    assert over(pools) == ("auto", 0)
    assert box.bodies(3) == [0, 1, 2]
    pools.connections["default"].force_close_all()


def test_coroutines_and_what_is_submitted_share_one_connection(
    amqp_url: str, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), Pools(default={"URL": amqp_url, "LIMIT": 7})

    async def publish() -> None:
        await asyncio.gather(*(pools.apublish(number, box.name) for number in range(100)))

    asyncio.run(publish())
    for future in [pools.submit(number, box.name) for number in range(100, 200)]:
        future.result(PATIENCE)
    assert sorted(box.bodies(200)) == list(range(200))
    stats = pools.connections["default"].stats()
    assert stats.opened == 1
    # One for many.
    assert stats.acquires < 200
    eventually(lambda: over(pools) == ("auto", 0))
    pools.connections["default"].force_close_all()


def test_what_a_publish_has_declared_is_declared_for_the_others(amqp_url: str, queue: str) -> None:
    pools = Pools(default={"URL": amqp_url, "LIMIT": 7})
    box = Queue(queue, durable=False, auto_delete=False)
    # The second one finds a connection for which nothing is noted.
    for body in ("first", "second", "third"):
        pools.submit(body, queue, declare=box).result(PATIENCE)
    road: Any = pools.producers["default"].shared_road
    assert road.prepare("no lease", queue, None, {"declare": [box]}, PATIENCE) is not None
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        bound = box(connection.default_channel)
        bodies = [bound.get(no_ack=True).decode() for _ in range(3)]
        bound.delete()
    assert bodies == ["first", "second", "third"]
    pools.connections["default"].force_close_all()
