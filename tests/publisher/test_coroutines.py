"""What the coroutines of one event loop have in common: one write, one timer, and the order of a task."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.broker.amqp.transport import Transport
from kombu_pools_ext.submitting.loop_alarm import MOST_AT_ONCE, LoopAlarm
from kombu_pools_ext.submitting.loop_deadlines import LoopDeadlines
from kombu_pools_ext.submitting.loop_side import loop_sides
from kombu_pools_ext.submitting.loop_writes import LoopWrites
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import TO_SERVER, Proxy
from tests.publisher.conftest import MakePools
from tests.publisher.test_lanes import LARGE, road

MakeInbox = Callable[[str], Inbox]


class Hurrying(selectors.DefaultSelector):
    """Waits for nothing: the clock of its loop goes forward instead."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class HurryingLoop(asyncio.SelectorEventLoop):
    """An event loop in which hours pass at once."""

    def __init__(self) -> None:
        self.hurrying = Hurrying()
        super().__init__(self.hurrying)

    def time(self) -> float:
        return self.hurrying.now


class Timed:
    """Notes when it was told that its time is up."""

    def __init__(self, told: list[tuple[str, float]], name: str, more: float | None = None) -> None:
        self._told, self._name, self._more = told, name, more

    def time_is_up(self) -> float | None:
        self._told.append((self._name, asyncio.get_running_loop().time() - 1000.0))
        more, self._more = self._more, None
        return more


def played(play: Callable[[LoopDeadlines, list[Any]], None]) -> list[tuple[str, float]]:
    """Return who was told, and when, within an hour."""
    told: list[tuple[str, float]] = []

    async def run() -> None:
        play(LoopDeadlines(), told)
        await asyncio.sleep(3600)

    with asyncio.Runner(loop_factory=HurryingLoop) as runner:
        runner.run(run())
    return [(name, round(at, 3)) for name, at in told]


def test_each_is_told_in_its_time_whatever_the_order() -> None:
    def play(deadlines: LoopDeadlines, told: list[Any]) -> None:
        for seconds in (5.0, 1.0, 5.0, 3.0, 1.0):
            deadlines.add(Timed(told, f"after {seconds:g} s"), seconds)

    expected = [(f"after {n:g} s", n) for n in (1.0, 1.0, 3.0, 5.0, 5.0)]
    assert played(play) == expected


def test_what_is_discarded_is_not_told() -> None:
    def play(deadlines: LoopDeadlines, told: list[Any]) -> None:
        ended, going_on = Timed(told, "ended"), Timed(told, "going on")
        deadlines.add(ended, 1.0)
        deadlines.add(going_on, 2.0)
        deadlines.discard(ended)

    assert played(play) == [("going on", 2.0)]


def test_what_asks_for_more_time_is_told_again() -> None:
    def play(deadlines: LoopDeadlines, told: list[Any]) -> None:
        deadlines.add(Timed(told, "twice", more=0.5), 1.0)
        deadlines.add(Timed(told, "once"), 1.2)

    assert played(play) == [("twice", 1.0), ("once", 1.2), ("twice", 1.5)]


def test_an_earlier_look_leaves_no_second_row_of_looks_behind() -> None:
    looks: list[float] = []

    class Counting(LoopDeadlines):
        def _look(self, at: float) -> None:
            looks.append(at)
            super()._look(at)

    def play(deadlines: LoopDeadlines, told: list[Any]) -> None:
        counting = Counting()
        for seconds in (5.0, 1.0):
            counting.add(Timed(told, f"{seconds:g}"), seconds)
        for number in range(100):
            counting.add(Timed(told, "later"), 10.0 + number)

    assert len(played(play)) == 102
    # One for each time, and one that came to nothing.
    assert len(looks) == 103


def test_the_writes_of_one_turn_are_one() -> None:
    writes: list[str] = []

    def first() -> None:
        writes.append("first")

    def second() -> None:
        writes.append("second")

    async def run() -> None:
        together = LoopWrites()
        for _ in range(3):
            together.soon(first)
            together.soon(second)
        assert writes == []
        await asyncio.sleep(0)
        assert writes == ["first", "second"]
        together.soon(first)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert writes == ["first", "second", "first"]


def test_each_loop_has_a_side_of_its_own_and_is_not_kept() -> None:
    async def side() -> Any:
        return loop_sides.of(asyncio.get_running_loop())

    async def twice() -> None:
        assert await side() is await side()

    asyncio.run(twice())
    assert asyncio.run(side()) is not asyncio.run(side())


def test_a_thousand_who_are_woken_leave_the_loop_to_others_in_between() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        alarm, waiters = LoopAlarm(loop), [loop.create_future() for _ in range(1000)]
        await asyncio.to_thread(lambda: [alarm.wake(one) for one in waiters])
        done = sum(one.done() for one in waiters)
        while not all(one.done() for one in waiters):
            await asyncio.sleep(0)
            before, done = done, sum(one.done() for one in waiters)
            assert done - before <= MOST_AT_ONCE

    asyncio.run(run())


def test_a_waiter_that_cannot_be_woken_keeps_nobody_else_asleep() -> None:
    class Bad:
        def done(self) -> bool:
            raise ValueError("a waiter of the test")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda loop, context: problems.append(context))
        alarm, waiters = LoopAlarm(loop), [loop.create_future() for _ in range(3)]
        for one in (waiters[0], Bad(), *waiters[1:]):
            alarm.wake(one)  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*waiters)
        assert len(problems) == 1

    asyncio.run(run())


def test_what_a_hundred_coroutines_publish_is_written_together(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    pools.publish("warm", box.name)
    sizes: list[int] = []
    write = Transport.write_at_once

    def counting(self: Transport, data: bytes) -> bool:
        sizes.append(len(data))
        return write(self, data)

    async def publish() -> None:
        await asyncio.gather(*(pools.apublish(number, box.name) for number in range(100)))

    monkeypatch.setattr(Transport, "write_at_once", counting)
    asyncio.run(publish())
    assert sorted(box.bodies(101)[1:]) == list(range(100))
    # Or two, if the reading thread came in between.
    assert len(sizes) <= 5


def test_a_task_that_waits_no_longer_keeps_its_order(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: Callable[[str], Proxy]
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    pools = shared(through(proxy, amqp_url), LIMIT=4)
    pools.publish("warm", box.name)
    [link] = proxy.alive
    link.hold(TO_SERVER)

    async def publish() -> None:
        with pytest.raises(TimeoutError) as told:
            async with asyncio.timeout(0.1):
                await pools.apublish("first", box.name, acquire_timeout=PATIENCE)
        assert "goes on" in "".join(told.value.__cause__.__notes__)  # type: ignore[union-attr]
        # Over another connection, which nothing holds up.
        await pools.apublish(LARGE, box.name, acquire_timeout=PATIENCE)

    async def heal() -> None:
        while not road(pools)._behind:
            await asyncio.sleep(0.001)
        on_their_way = len(road(pools)._flying)
        link.heal()
        assert on_their_way == 1

    async def both() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(publish(), heal())

    asyncio.run(both())
    assert box.bodies(3) == ["warm", "first", LARGE]
    eventually(lambda: not road(pools)._flying and not road(pools)._in_lane)
