"""What an operator does to the pools of some aliases, or of all: suspend, resume, wait until they are ready, drain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_pools_ext import Pools, events
from kombu_pools_ext.errors import ConnectTimeout, PoolSuspended, UnknownAlias
from tests.engine.fakes import in_thread

from .common import PATIENCE, eventually
from .conftest import Inbox

MakeInbox = Callable[[str], Inbox]


@pytest.fixture
def resets() -> Iterator[list[str]]:
    """The reasons of all resets."""
    seen: list[str] = []

    def note(*, reason: str, **others: Any) -> None:
        seen.append(reason)

    events.pools_reset.connect(note)
    yield seen
    events.pools_reset.disconnect(note)


def fill(pool: Any, count: int) -> None:
    """Leave *count* connections idle."""
    for lent in [pool.acquire(timeout=PATIENCE) for _ in range(count)]:
        lent.release()


def test_suspend_and_resume_are_for_the_aliases(memory_url: str) -> None:
    pools = Pools(a={"url": memory_url}, twin={"url": memory_url}, b={"url": f"{memory_url}b"})
    pools.suspend(["a"], "fail")
    with pytest.raises(PoolSuspended):
        pools.publish({}, "orders", using="a")
    assert pools.connections["twin"].stats().suspended
    pools.publish({}, "orders", using="b")
    pools.suspend()
    with in_thread(lambda: pools.publish({}, "orders", using="b")) as published:
        eventually(lambda: pools.connections["b"].stats().waiting == 1)
        pools.resume()
    assert published.error is None
    pools.publish({}, "orders", using="a")


def test_a_mode_or_an_alias_that_does_not_exist_suspends_nothing(memory_url: str) -> None:
    pools = Pools(a=memory_url, b=f"{memory_url}b")
    with pytest.raises(ValueError, match="'fail' or 'wait', not 'pause'"):
        pools.suspend(mode="pause")  # type: ignore[arg-type]
    for operation in (pools.suspend, pools.resume, lambda using: pools.drain(using=using)):
        with pytest.raises(UnknownAlias, match="'c'"):
            operation(["a", "c"])  # type: ignore[operator]
    assert not any(pool.stats().suspended for pool in pools.pools_of().values())


def test_wait_ready_has_one_deadline_for_all(memory_url: str, nowhere: int) -> None:
    pools = Pools(
        a={"url": memory_url, "min_idle": 3},
        down=f"amqp://127.0.0.1:{nowhere}//",
        downer=f"amqp://u:p@127.0.0.1:{nowhere}//",
    )
    pools.wait_ready(PATIENCE, ["a"])
    assert pools.connections["a"].stats().idle == 3
    began = time.monotonic()
    with pytest.raises(ConnectTimeout, match=r"127\.0\.0\.1") as caught:
        pools.wait_ready(0.3)
    assert time.monotonic() - began < PATIENCE / 2
    assert "refused" in str(caught.value.__cause__).lower()
    pools.suspend(["a"], "fail")
    pools.connections["a"].drain()
    with pytest.raises(PoolSuspended):
        pools.wait_ready(PATIENCE)


@pytest.mark.parametrize(
    "timeout, error", [(-1, ValueError), (float("inf"), ValueError), ("5", TypeError)]
)
def test_an_operation_takes_seconds(memory_url: str, timeout: Any, error: type[Exception]) -> None:
    pools = Pools(default=memory_url)
    pool = pools.connections["default"]
    for operation in (pools.wait_ready, pools.drain, pool.wait_ready, pool.drain):
        with pytest.raises(error, match="timeout must be"):
            operation(timeout)
    with pytest.raises(ValueError, match="timeout must be"):
        pools.wait_ready(None)  # type: ignore[arg-type]


def test_drain_waits_for_all_that_is_lent(memory_url: str, resets: list[str]) -> None:
    pools = Pools(a=memory_url, twin=memory_url, b=f"{memory_url}b")
    held = pools.pools_of()
    for pool in (held["a"], held["b"]):
        fill(pool, 2)
    lent = held["a"].acquire(), held["b"].acquire()
    assert pools.drain() == {"a": (1, 1), "twin": (1, 1), "b": (1, 1)}
    assert pools.drain(0.05) == {"a": (0, 1), "twin": (0, 1), "b": (0, 1)}
    with in_thread(lambda: pools.drain(PATIENCE)) as drained:
        eventually(lambda: held["a"].engine.state.watchers)
        for one in lent:
            one.release()
    assert drained.value == {"a": (1, 0), "twin": (1, 0), "b": (1, 0)}
    assert resets == ["api"] * 3
    assert pools.drain(PATIENCE, ["a"]) == {"a": (0, 0)}
    pools.publish({}, "orders", using="a")


def test_a_maintenance_costs_a_publisher_time_and_no_error(amqp_url: str, inbox: MakeInbox) -> None:
    box = inbox(amqp_url)
    # With a limit of its own, the pool is of this test alone.
    pools = Pools(default={"url": amqp_url, "limit": 6, "min_idle": 2, "acquire_timeout": PATIENCE})
    pools.wait_ready(PATIENCE)
    pool = pools.connections["default"]
    pools.suspend()
    [done] = pools.drain(PATIENCE).values()
    assert done.lent == 0
    # An opening that was under way is closed on arrival.
    eventually(lambda: pool.stats().size == 0)
    with in_thread(lambda: pools.publish({"order": 1}, box.name)) as published:
        eventually(lambda: pool.stats().waiting == 1)
        assert pool.stats().size == 0
        pools.resume()
    assert published.error is None
    assert box.bodies(1) == [{"order": 1}]
    pools.wait_ready(PATIENCE)
    assert pool.stats().idle >= 2
    # Else it would open two more when it is reset.
    pool.force_close_all()
