"""A fork in mid-publish, and operations on the pool while many threads publish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kombu_pools_ext.errors import PoolClosed, PoolSuspended
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import in_child, through
from tests.proxy import TO_CLIENT, Proxy
from tests.publisher.conftest import Crowd, MakePools, publisher_of

MakeInbox = Callable[[str], Inbox]

#: Seconds within which a drain ends under load.
SOON = 8.0


class Load:
    """Eight threads that publish until they are told to end."""

    def __init__(self, publish: Callable[[int, int], object]) -> None:
        self.ended = threading.Event()
        self.done = [0] * 8
        self._publish = publish
        self._crowd = Crowd(8, self._run)

    def _run(self, thread: int) -> None:
        while not self.ended.is_set():
            self._publish(thread, self.done[thread])
            self.done[thread] += 1

    def goes_on(self) -> None:
        """Wait until each has published some more."""
        before = list(self.done)
        eventually(lambda: all(now > old + 3 for now, old in zip(self.done, before, strict=True)))

    def end(self) -> list[BaseException]:
        self.ended.set()
        return self._crowd.errors()


@pytest.mark.forks
def test_a_fork_in_mid_publish(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: Callable[[str], Proxy]
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    pools = shared(through(proxy, amqp_url))
    pools.publish((-1, 0), box.name)
    proxy.hold(TO_CLIENT)
    crowd = Crowd(8, lambda thread: pools.publish((thread, 0), box.name))
    publisher = publisher_of(pools)
    eventually(lambda: publisher.live == 8 and not publisher._queue)

    assert in_child(lambda: publisher_of(pools).live) == 0
    proxy.heal()
    assert crowd.errors() == []

    def publish() -> int:
        for number in range(5):
            pools.publish((100, number), box.name)
        return pools.connections["default"].stats().opened

    load = Load(lambda thread, number: pools.publish((thread, number + 1), box.name))
    load.goes_on()
    for _ in range(5):
        in_child(publish)
    load.goes_on()
    assert load.end() == []
    bodies = [tuple(one) for one in box.bodies()]
    assert [n for t, n in bodies if t == 100] == list(range(5)) * 5
    for thread in range(8):
        assert [n for t, n in bodies if t == thread] == list(range(load.done[thread] + 1))
    assert pools.connections["default"].stats().opened == 1


def test_a_drain_ends_under_load_and_costs_no_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url, ACQUIRE_TIMEOUT=PATIENCE), inbox(amqp_url)
    load = Load(lambda thread, number: pools.publish((thread, number), box.name))
    load.goes_on()
    for _ in range(2):
        pools.suspend()
        drained = within(SOON * 2, lambda: pools.drain(timeout=SOON))
        assert drained, drained
        assert pools.connections["default"].stats().lent == 0
        pools.resume()
        load.goes_on()
    assert load.end() == []
    bodies = [tuple(one) for one in box.bodies(sum(load.done))]
    for thread in range(8):
        assert [n for t, n in bodies if t == thread] == list(range(load.done[thread]))


def test_a_reset_ends_the_connection_soon_and_costs_no_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    load = Load(lambda thread, number: pools.publish((thread, number), box.name))
    for _ in range(3):
        load.goes_on()
        before = pools.connections["default"].stats()
        pools.reset()
        eventually(
            lambda before=before: (
                sum(pools.connections["default"].stats().closed.values())
                > sum(before.closed.values())
            ),
            SOON,
        )
    load.goes_on()
    assert load.end() == []
    assert len(box.bodies(sum(load.done))) == sum(load.done)


def test_a_pool_that_is_suspended_says_so(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url, ACQUIRE_TIMEOUT=0.5), inbox(amqp_url)
    pools.publish("warm", box.name)
    pools.suspend()
    errors = Crowd(8, lambda thread: pools.publish("x", box.name)).errors()
    pools.resume()
    assert {type(one) for one in errors} == {PoolSuspended}
    assert len(errors) == 8
    pools.publish("after", box.name)
    assert box.bodies(2) == ["warm", "after"]


def test_a_pool_that_is_closed_under_load_says_so_or_goes_on(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    load = Load(lambda thread, number: pools.publish((thread, number), box.name))
    load.goes_on()
    began = time.monotonic()
    pools.connections["default"].force_close_all()
    errors = load.end()
    assert time.monotonic() - began < PATIENCE
    for error in errors:
        assert isinstance(error, PoolClosed), repr(error)
    bodies = [tuple(one) for one in box.bodies(sum(load.done))]
    for thread in range(8):
        mine = [n for t, n in bodies if t == thread]
        assert mine[: load.done[thread]] == list(range(load.done[thread]))
