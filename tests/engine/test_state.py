"""What a pool tells of itself, and whom it tells."""

from __future__ import annotations

import logging

import pytest

from kombu_pools_ext.engine import ErrorFamily, Pool, Share
from kombu_pools_ext.engine.errors import PoolExhausted, PoolTimeout
from kombu_pools_ext.engine.stats import CLOSE_REASONS
from tests.engine.fakes import Driver, Item, Listener, rig


def test_the_repr_tells_the_state() -> None:
    tested = rig(5)
    assert repr(tested.pool) == "<Pool 'tested': 0 of 5 (0 idle, 0 lent), 0 waiting>"
    leases = tested.take(3)
    leases.pop().end()
    share = Share(0)
    tested.ask(share)
    assert repr(tested.pool) == "<Pool 'tested': 3 of 5 (1 idle, 2 lent), 1 waiting>"
    tested.pool.resize_share(share, 1)
    tested.ask()
    assert repr(tested.pool) == "<Pool 'tested': 4 of 5 (0 idle, 3 lent, 1 opening), 1 waiting>"
    tested.pool.close()
    assert repr(tested.pool) == "<Pool 'tested': 3 of 5 (0 idle, 3 lent), 0 waiting, closed>"
    assert tested.pool.describe() in repr(tested.pool)


def test_the_numbers_add_up() -> None:
    tested = rig(2)
    tested.driver.opening.append(OSError("refused"))
    assert tested.ask(blocking=False).error is None
    tested.spawner.run()
    leases = tested.take(2)
    leases.pop().end("broken")
    with pytest.raises(PoolTimeout):
        tested.pool.acquire(timeout=0.0)
    tested.spawner.run()
    lease = tested.pool.acquire()
    with pytest.raises(PoolExhausted):
        tested.pool.acquire()
    lease.end()
    stats = tested.pool.stats()
    assert (stats.name, stats.limit) == ("tested", 2)
    assert (stats.size, stats.idle, stats.lent, stats.opening, stats.waiting) == (2, 1, 1, 0, 0)
    # The rig's own waiters come past `acquire`.
    assert (stats.acquires, stats.waits) == (3, 4)
    assert (stats.timeouts, stats.refused) == (1, 1)
    assert (stats.opened, stats.open_failures) == (3, 1)
    assert stats.closed == {"broken": 1}
    assert stats.seconds_waited == 0.0


def test_the_seconds_that_callers_wait_are_counted() -> None:
    tested = rig(1)
    tested.spawner.able = False
    # An opening that takes two seconds, in the borrower's own thread.
    tested.driver.opening.append(lambda: tested.clock.advance(2.0))
    tested.pool.release(tested.pool.acquire())
    assert tested.pool.stats().seconds_waited == 2.0
    tested.pool.release(tested.pool.acquire())
    assert tested.pool.stats().seconds_waited == 2.0


def test_a_snapshot_does_not_change() -> None:
    tested = rig(1)
    before = tested.pool.stats()
    (lease,) = tested.take()
    lease.end("broken")
    assert before.opened == 0
    assert before.closed == {}
    with pytest.raises(AttributeError):
        before.idle = 3  # type: ignore[misc]


def test_the_listener_hears_of_each_event_outside_the_lock() -> None:
    tested = rig(1)
    owned: list[bool] = []

    class Listening(Listener):
        def __getattribute__(self, name: str) -> object:
            if name == "events":
                owned.append(tested.pool.owned())
            return super().__getattribute__(name)

    tested.pool.reports.listener = listener = Listening()
    (lease,) = tested.take()
    with pytest.raises(PoolExhausted):
        tested.pool.acquire()
    with pytest.raises(PoolTimeout):
        tested.pool.acquire(timeout=0.0)
    lease.end("broken")
    assert owned == [False] * 4
    assert listener.events == [
        ("opened",),
        ("exhausted", "exhausted"),
        ("exhausted", "timeout"),
        ("closed", "broken"),
    ]


def test_the_listener_hears_what_is_wanted_before_it_is_there() -> None:
    tested = rig(1)
    wanted: list[int] = []

    class Listening(Listener):
        def wanted(self) -> None:
            assert not tested.pool.owned()
            wanted.append(len(tested.driver.opened))

    tested.pool.reports.listener = Listening()
    (lease,) = tested.take()
    assert wanted == [0]
    lease.end()
    (lease,) = tested.take()
    lease.end()
    # A pool that has what is asked for says nothing.
    assert wanted == [0]
    tested.pool.suspend("fail")
    with pytest.raises(tested.pool.errors.suspended):
        tested.pool.acquire()
    assert wanted == [0, 1]


def test_a_listener_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tested = rig(1)

    class Raising:
        def wanted(self) -> None:
            raise RuntimeError("a receiver's own trouble")

        def opened(self) -> None:
            raise RuntimeError("a receiver's own trouble")

        def closed(self, reason: str) -> None:
            raise RuntimeError("a receiver's own trouble")

        def exhausted(self, reason: str) -> None:
            raise RuntimeError("a receiver's own trouble")

    tested.pool.reports.listener = Raising()
    with caplog.at_level(logging.ERROR, "kombu_pools_ext"):
        (lease,) = tested.take()
        with pytest.raises(PoolExhausted):
            tested.pool.acquire()
        lease.end("broken")
        (lease,) = tested.take()
    assert tested.pool.lent == 1
    assert not lease.ended
    assert [record.getMessage() for record in caplog.records] == [
        "pool 'tested': a listener failed at 'wanted'",
        "pool 'tested': a listener failed at 'opened'",
        "pool 'tested': a listener failed at 'exhausted'",
        "pool 'tested': a listener failed at 'closed'",
        "pool 'tested': a listener failed at 'wanted'",
        "pool 'tested': a listener failed at 'opened'",
    ]


def test_a_pool_works_without_a_listener() -> None:
    pool: Pool[Item] = Pool(Driver(), limit=1)
    pool.release(pool.acquire())
    pool.close()
    assert pool.stats().closed == {"closed": 1}


def test_the_host_chooses_the_errors() -> None:
    class Exhausted(Exception):
        pass

    class Family(ErrorFamily):
        exhausted = Exhausted

    pool: Pool[Item] = Pool(Driver(), limit=1, errors=Family())
    lease = pool.acquire()
    with pytest.raises(Exhausted, match="pass a timeout, or raise LIMIT"):
        pool.acquire()
    lease.end()
    pool.close()


def test_each_reason_for_closing_is_described() -> None:
    tested = rig(4, check_after=0.0)
    leases = tested.take(4)
    leases[0].end("broken")
    leases[1].item.alive = False
    leases[1].end()
    tested.spawner.able = False
    tested.pool.acquire()
    tested.pool.end_deferred()
    leases[2].end()
    tested.pool.drain()
    tested.pool.close()
    leases[3].end()
    closed = tested.pool.stats().closed
    assert closed == {"broken": 1, "dead": 1, "dropped": 1, "drained": 1, "closed": 1}
    assert set(closed) <= set(CLOSE_REASONS)
