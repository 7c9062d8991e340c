"""By default a publish takes a lease while there are free ones; a crowd, and what no thread waits for, share one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Queue

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.producers import MOST_LEASED
from kombu_pools_ext.control import local
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import TO_CLIENT, Proxy
from tests.publisher.conftest import Crowd

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


def held(pools: Pools, count: int) -> list[Any]:
    """Return so many leases, which the test has to end."""
    pool = pools.connections["default"]
    return [pool.acquire(timeout=PATIENCE) for _ in range(count)]


@pytest.mark.parametrize(
    "limit, free", [(3, 2), (1, 0), (20, MOST_LEASED - 1), (None, MOST_LEASED - 1)]
)
def test_who_would_be_one_too_many_shares_a_connection(
    amqp_url: str, inbox: MakeInbox, limit: int | None, free: int
) -> None:
    box, pools = inbox(amqp_url), Pools(default={"URL": amqp_url, "LIMIT": limit})
    lent = held(pools, free)
    pools.publish("one more", box.name)
    assert pools.producers["default"].shared_road is None
    lent += held(pools, 1)
    waits = threading.Thread(target=lambda: pools.publish("one too many", box.name))
    waits.start()
    # With a limit it waits for the lease of the shared connection as long as for one of its own.
    if limit == free + 1:
        eventually(lambda: pools.connections["default"].stats().waiting)
    else:
        waits.join(PATIENCE)
    for one in lent:
        one.release()
    waits.join(PATIENCE)
    assert pools.producers["default"].shared_road.publisher.connections == 1
    assert sorted(box.bodies(2)) == ["one more", "one too many"]
    pools.connections["default"].force_close_all()


def test_a_crowd_shares_until_nobody_is_there(
    amqp_url: str, inbox: MakeInbox, proxied: Callable[[str], Proxy]
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = Pools(default={"URL": through(proxy, amqp_url), "LIMIT": 2})
    before = held(pools, 2)
    proxy.hold(TO_CLIENT)
    crowd = Crowd(1, lambda thread: pools.publish("shared", box.name))
    eventually(lambda: over(pools) == ("auto", 1))
    for one in before:
        one.release()
    # There are leases again, and somebody who shares.
    assert box.bodies(1) == ["shared"]
    taken = leases(pools)
    also = Crowd(3, lambda thread: pools.publish("shared", box.name))
    eventually(lambda: over(pools) == ("auto", 4))
    assert leases(pools) == taken
    proxy.heal()
    assert crowd.errors() == also.errors() == []
    assert over(pools) == ("auto", 0)
    pools.publish("alone", box.name)
    assert leases(pools) == taken + 1
    assert box.bodies(4) == ["shared"] * 3 + ["alone"]
    pools.connections["default"].force_close_all()


def test_threads_with_the_default_settings_lose_nothing_and_keep_their_order(
    amqp_url: str, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), Pools(default={"URL": amqp_url, "LIMIT": 3})

    def publish(thread: int) -> None:
        for number in range(40):
            pools.publish((thread, number), box.name)

    assert Crowd(12, publish).errors() == []
    bodies = [tuple(one) for one in box.bodies(12 * 40)]
    for thread in range(12):
        assert [number for who, number in bodies if who == thread] == list(range(40))
    # Over both roads: that is what this is about.
    assert pools.producers["default"].shared_road.publisher.connections >= 1
    assert pools.connections["default"].stats().opened <= 3
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
