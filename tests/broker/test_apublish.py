"""``Pools.apublish``: in any event loop, in several at once; and a cancellation says what became of the message."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import EncodeError

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import (
    BrokerUnreachable,
    ConnectTimeout,
    PoolSuspended,
    PoolTimeout,
    PublishNacked,
    PublishReturned,
    UnknownAlias,
)
from kombu_pools_ext.submitting import leased_road
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox

Make = Callable[..., Pools]


@pytest.fixture
def make(url: str) -> Make:
    """Makes pools on each kind of broker."""
    return lambda **settings: Pools(default={"URL": url, "PUBLISH_OVER": "leased", **settings})


async def comes_true(condition: Callable[[], Any]) -> None:
    """Wait until *condition* is true; other tasks run meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def first_waits(pools: Pools, key: str, **keywords: Any) -> asyncio.Task[None]:
    """Return a task whose message 1 is waiting for a producer."""
    first = asyncio.ensure_future(pools.apublish(1, key, acquire_timeout=PATIENCE, **keywords))
    await comes_true(lambda: pools.connections["default"].stats().waiting)
    return first


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


# -- the outcome -------------------------------------------------------------------------------------------------------


def test_a_message_arrives(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()

    async def publish(number: int) -> None:
        assert await pools.apublish({"n": number}, box.name, headers={"a": number}) is None

    # A loop each.
    asyncio.run(publish(1))
    asyncio.run(publish(2))
    messages = box.messages(2)
    assert [message.payload for message in messages] == [{"n": 1}, {"n": 2}]
    assert [message.headers["a"] for message in messages] == [1, 2]


def test_errors_are_those_of_publish(amqp_url: str, queue: str) -> None:
    pools = Pools(default={"URL": amqp_url, "PUBLISH_OVER": "leased"})
    full = Inbox(amqp_url, queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})

    async def fail() -> None:
        with pytest.raises(PublishReturned) as returned:
            await pools.apublish({}, "there-is-no-such-queue", message_id="mine")
        assert returned.value.message_id == "mine"
        with pytest.raises(NotFound):
            await pools.apublish({}, "key", exchange="there-is-no-such-exchange")
        await pools.apublish({}, full.name)
        with pytest.raises(PublishNacked):
            await pools.apublish({}, full.name)
        with pytest.raises(TypeError, match="unknown keyword 'queue'"):
            await pools.apublish({}, queue="q")
        with pytest.raises(EncodeError):
            await pools.apublish({"a": object()}, "q")
        with pytest.raises(UnknownAlias):
            await pools.apublish({}, "q", using="defaul")

    asyncio.run(fail())
    full.delete()


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_cannot_be_reached(scheme: str, nowhere: int) -> None:
    url = f"{scheme}://user:s3cr3t-word@127.0.0.1:{nowhere}/0"
    pools = Pools(default={"URL": url, "ACQUIRE_TIMEOUT": 0.2})
    with pytest.raises(BrokerUnreachable) as told:
        asyncio.run(pools.apublish({}, "q"))
    assert "s3cr3t-word" not in "".join(traceback.format_exception(told.value))


def test_there_has_to_be_a_loop(make: Make) -> None:
    coroutine = make().apublish({}, "q")
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)


def test_an_error_keeps_no_cycle_alive(amqp_url: str) -> None:
    pools = Pools(default={"URL": amqp_url, "PUBLISH_OVER": "leased"})

    async def fail() -> None:
        with pytest.raises(PublishReturned):
            await pools.apublish({}, "there-is-no-such-queue")

    asyncio.run(fail())
    gc.collect()
    asyncio.run(fail())
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        left = [type(one).__name__ for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert "PublishFuture" not in left


# -- the time ----------------------------------------------------------------------------------------------------------


def test_a_message_whose_turn_does_not_come_fails_in_its_time(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make(LIMIT=1)
    lease = pools.producers["default"].acquire(timeout=PATIENCE)

    async def publish() -> None:
        first = await first_waits(pools, box.name)
        with pytest.raises(PoolTimeout, match=r"alias 'default': message m2 was not sent.* 0.05 s"):
            await pools.apublish(2, box.name, acquire_timeout=0.05, message_id="m2")
        lease.release()
        await first

    asyncio.run(publish())
    assert box.bodies(1) == [1]


def test_a_message_whose_turn_does_not_come_is_told_why_the_others_wait(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make(LIMIT=1)

    async def publish() -> None:
        pools.suspend(mode="wait")
        first = await first_waits(pools, box.name)
        with pytest.raises(PoolSuspended, match=r"not resumed for 0.05 s") as told:
            await pools.apublish(2, box.name, acquire_timeout=0.05, message_id="m2")
        assert "message m2 was not sent" in notes(told.value)
        pools.resume()
        await first

    asyncio.run(publish())
    assert box.bodies(1) == [1]


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_in_an_outage_a_message_whose_turn_does_not_come_is_told_of_it(
    scheme: str, nowhere: int
) -> None:
    pools = Pools(default={"URL": f"{scheme}://127.0.0.1:{nowhere}/0", "LIMIT": 1})

    async def publish() -> None:
        first = asyncio.ensure_future(pools.apublish(1, "q", acquire_timeout=5.0))
        await comes_true(lambda: pools.connections["default"].stats().open_failures)
        with pytest.raises(ConnectTimeout) as told:
            await pools.apublish(2, "q", acquire_timeout=0.05, message_id="m2")
        assert "message m2 was not sent" in notes(told.value)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    asyncio.run(publish())


def test_the_loop_goes_on_while_a_message_waits(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()

    async def publish() -> None:
        pools.suspend(mode="wait")
        task = asyncio.ensure_future(pools.apublish(1, box.name, acquire_timeout=PATIENCE))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        pools.resume()
        await task

    asyncio.run(publish())
    assert box.bodies(1) == [1]


@pytest.mark.threads
def test_more_coroutines_than_may_wait_in_a_queue(
    make: Make, url: str, inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_road, "MOST_WAITING", 3)
    box, pools = inbox(url), make()

    async def publish() -> None:
        await asyncio.gather(
            *(pools.apublish(number, box.name, acquire_timeout=PATIENCE) for number in range(100))
        )

    asyncio.run(publish())
    assert sorted(box.bodies(100)) == list(range(100))


@pytest.mark.usefixtures("monkeypatch")
def test_submit_does_not_wait_for_room_in_a_coroutine(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_road, "MOST_WAITING", 0)
    pools = make()

    async def submit() -> None:
        with pytest.raises(leased_road.PoolFull, match=r"in coroutines await apublish\(\)"):
            pools.submit(1, "q", acquire_timeout=None)

    asyncio.run(submit())


@pytest.mark.threads
def test_without_threads_it_publishes_in_the_thread_of_the_loop(
    make: Make, url: str, inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, pools = inbox(url), make()
    monkeypatch.setattr(leased_road, "spawn_thread", lambda work, name: False)
    # Without a warning: there is no other way.
    asyncio.run(pools.apublish(1, box.name))
    assert box.bodies(1) == [1]


# -- cancellation ------------------------------------------------------------------------------------------------------


def test_a_cancellation_says_that_the_message_was_not_sent(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make(LIMIT=1)

    async def publish() -> None:
        pools.suspend(mode="wait")
        first = await first_waits(pools, box.name)
        second = asyncio.ensure_future(pools.apublish(2, box.name, message_id="m2"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError) as told:
            await second
        assert notes(told.value) == (
            "alias 'default': message m2 was not sent; it is not in the broker"
        )
        pools.resume()
        await first

    asyncio.run(publish())
    pools.drain(PATIENCE)
    assert box.bodies(1) == [1]


def test_a_cancellation_says_that_the_message_may_be_there(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make()

    async def publish() -> None:
        pools.suspend(mode="wait")
        task = await first_waits(pools, box.name, message_id="m1")
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as told:
            await task
        assert "message m1 may be in the broker, or not" in notes(told.value)

    asyncio.run(publish())
    # It goes on after the end of the loop.
    pools.resume()
    assert box.bodies(1) == [1]
    # The confirm may come after the message.
    eventually(lambda: pools.connections["default"].stats().lent == 0)


def test_a_time_out_around_it_has_the_note_on_its_cause(make: Make) -> None:
    pools = make()

    async def publish() -> None:
        pools.suspend(mode="wait")
        with pytest.raises(TimeoutError) as told:
            async with asyncio.timeout(0.05):
                await pools.apublish(1, "q", message_id="m1", acquire_timeout=PATIENCE)
        assert "message m1" in notes(told.value.__cause__)  # type: ignore[arg-type]
        pools.suspend(mode="fail")

    asyncio.run(publish())
    pools.resume()


@pytest.mark.threads
def test_many_cancellations_at_random_moments_have_one_outcome_each(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make(LIMIT=4)
    chance = random.Random(14)
    published: set[int] = set()
    not_sent: set[int] = set()
    maybe: set[int] = set()

    async def one(number: int) -> None:
        try:
            await pools.apublish(number, box.name, acquire_timeout=PATIENCE)
        except asyncio.CancelledError as error:
            told = notes(error)
            assert told.count("message ") == 1
            if "was not sent" in told:
                not_sent.add(number)
            elif "was published" in told:
                published.add(number)
            else:
                assert "may be in the broker" in told
                maybe.add(number)
            raise
        published.add(number)

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one(number)) for number in range(400)]
        cancelled = chance.sample(tasks, 200)
        for task in cancelled:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0.0005 * chance.random())
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    pools.drain(PATIENCE)
    # A task that was cancelled before its first step has published nothing.
    never_begun = set(range(400)) - published - not_sent - maybe
    assert not published & not_sent
    assert not maybe & (published | not_sent)
    bodies = box.bodies(len(published))
    assert len(bodies) == len(set(bodies))
    assert published <= set(bodies) <= published | maybe
    assert not set(bodies) & (not_sent | never_begun)
    stats = pools.connections["default"].stats()
    assert (stats.lent, stats.waiting) == (0, 0)
    assert pools.road_of("default").await_empty(0)


def test_a_loop_that_ends_leaves_no_task_and_no_error(
    make: Make, url: str, inbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    box, pools = inbox(url), make()
    tasks: list[asyncio.Future[None]] = []

    async def publish() -> None:
        pools.suspend(mode="wait")
        tasks.append(await first_waits(pools, box.name))

    # asyncio.run() cancels what is left, and closes the loop before there is an outcome.
    asyncio.run(publish())
    assert tasks[0].cancelled()
    pools.resume()
    assert box.bodies(1) == [1]
    pools.drain(PATIENCE)
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


# -- all at once -------------------------------------------------------------------------------------------------------


@pytest.mark.threads
def test_two_loops_and_sixteen_threads_at_once(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make(LIMIT=8, MAX_WAITING=1000, ACQUIRE_TIMEOUT=PATIENCE)
    reported: list[str] = []
    failed: list[BaseException] = []

    async def coroutine(name: str) -> None:
        for number in range(10):
            await pools.apublish(f"{name} {number}", box.name)
            reported.append(f"{name} {number}")

    async def several(loop: int) -> None:
        await asyncio.gather(*(coroutine(f"loop {loop} task {task}") for task in range(20)))

    def thread(name: str) -> None:
        try:
            futures = []
            for number in range(10):
                pools.publish(f"{name} publish {number}", box.name)
                reported.append(f"{name} publish {number}")
                futures.append(pools.submit(f"{name} submit {number}", box.name))
            for number, future in enumerate(futures):
                future.result(PATIENCE)
                reported.append(f"{name} submit {number}")
        except BaseException as error:
            failed.append(error)

    def loop(number: int) -> None:
        try:
            asyncio.run(several(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(2)]
    threads += [threading.Thread(target=thread, args=(f"thread {n}",)) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(2 * PATIENCE)
    assert failed == []
    assert len(reported) == 2 * 20 * 10 + 16 * 10 * 2
    bodies = box.bodies(len(reported))
    assert sorted(bodies) == sorted(reported)
    # Each task, and what each thread submits, in its order.
    for n in range(16):
        mine = [one for one in bodies if one.startswith(f"thread {n} submit ")]
        assert mine == [f"thread {n} submit {number}" for number in range(10)]
    first = [one for one in bodies if one.startswith("loop 1 task 3 ")]
    assert first == [f"loop 1 task 3 {number}" for number in range(10)]
    eventually(lambda: pools.connections["default"].stats().lent == 0)
