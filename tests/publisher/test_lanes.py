"""What is submitted over a shared connection keeps its order and gets its outcome, also when something fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.engine.reentrant_queue import ReentrantQueue
from kombu_pools_ext.errors import PoolClosed, UnknownAlias
from kombu_pools_ext.publisher.reader import Reader
from kombu_pools_ext.submitting.leased_road import LeasedRoad
from kombu_pools_ext.submitting.loop_alarm import LoopAlarm
from kombu_pools_ext.submitting.publish_future import PublishFuture
from kombu_pools_ext.submitting.shared_submissions import SharedSubmissions
from kombu_pools_ext.submitting.unobserved import failures
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import TO_CLIENT, Proxy
from tests.publisher.conftest import Crowd, MakePools, publisher_of

MakeInbox = Callable[[str], Inbox]
MakeProxy = Callable[[str], Proxy]
#: More than what is sent over the shared connection.
LARGE = "x" * 200_000


def done(futures: list[Future[None]]) -> list[BaseException | None]:
    """Wait for the outcomes, and return the errors."""
    assert len(wait(futures, PATIENCE).done) == len(futures)
    return [future.exception() for future in futures]


def road(pools: Pools) -> Any:
    """Return what takes the submitted messages of *pools*."""
    found = pools.road_of("default")
    assert isinstance(found, SharedSubmissions)
    return found


# -- an alias that is gone, or changes ---------------------------------------------------------------------------------


def test_what_is_in_flight_when_its_alias_goes_has_its_outcome(
    amqp_url: str, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    gone = {"URL": through(proxy, amqp_url), "PUBLISH_OVER": "shared"}
    settings: dict[str, Any] = {"default": {"URL": amqp_url}, "gone": gone}
    pools = Pools(lambda: settings)
    pools.publish("warm", box.name, using="gone")
    proxy.hold(TO_CLIENT)
    sent = pools.submit("sent", box.name, using="gone")
    behind = [pools.submit(body, box.name, using="gone") for body in (LARGE, "next", LARGE)]
    eventually(sent.running)
    old = pools.road_of("gone")
    settings = {"default": {"URL": amqp_url}}
    pools.reload(force=True)
    proxy.heal()
    assert done([sent]) == [None]
    assert [type(error) for error in done(behind)] == [UnknownAlias] * 3
    assert old.await_empty(time.monotonic() + PATIENCE)
    with pytest.raises(UnknownAlias):
        pools.submit("too late", box.name, using="gone")
    assert box.bodies(2) == ["warm", "sent"]


def test_a_thousand_that_cannot_be_published_any_more_each_get_the_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    lane = road(pools)
    pools.suspend(mode="wait")
    futures = [pools.submit(body, box.name) for body in ("first", LARGE, *range(900))]

    def fail() -> None:
        raise UnknownAlias("of the test")

    with monkeypatch.context() as patch:
        patch.setattr(lane, "_shared", fail)
        pools.resume()
        errors = done(futures)
    assert errors[0] is None
    assert [type(error) for error in errors[1:]] == [UnknownAlias] * 901
    assert lane.await_empty(time.monotonic() + PATIENCE)
    assert done([pools.submit("after", box.name)]) == [None]
    assert box.bodies(2) == ["first", "after"]


@pytest.mark.parametrize("step", ["counted", "submitted", "sent"])
def test_a_start_that_is_interrupted_leaves_nothing_behind(
    amqp_url: str,
    shared: MakePools,
    inbox: MakeInbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    publisher, lanes = publisher_of(pools), road(pools)
    submit = publisher.submit

    def interrupted(*arguments: Any) -> None:
        if step == "sent":
            submit(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "counted":
            patch.setattr(lanes, "_fly", interrupted)
        else:
            patch.setattr(publisher, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pools.submit("interrupted", box.name)
    assert lanes.await_empty(time.monotonic() + PATIENCE)
    assert done([pools.submit("after", box.name)]) == [None]
    failures.log_all()
    assert "KeyboardInterrupt" not in caplog.text
    assert [one for one in box.bodies(1) if one != "interrupted"] == ["after"]


def test_where_the_reading_thread_cannot_be_started_each_goes_over_a_lease(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    monkeypatch.setattr(publisher_of(pools)._reader, "_spawn", lambda work, name: False)
    assert done([pools.submit(number, box.name) for number in range(20)]) == [None] * 20
    assert box.bodies(20) == list(range(20))


@pytest.mark.parametrize("before", [True, False], ids=["to shared", "to leased"])
def test_a_reload_that_changes_the_road(amqp_url: str, inbox: MakeInbox, before: bool) -> None:
    box = inbox(amqp_url)
    ways = ("leased", "shared") if before else ("shared", "leased")
    settings = {"default": {"URL": amqp_url, "PUBLISH_OVER": ways[0]}}
    pools = Pools(lambda: settings)
    futures = [pools.submit(number, box.name) for number in range(100)]
    old = pools.road_of("default")
    settings = {"default": {"URL": amqp_url, "PUBLISH_OVER": ways[1]}}
    pools.reload()
    futures += [pools.submit(number, box.name) for number in range(100, 200)]
    assert {type(old), type(pools.road_of("default"))} == {LeasedRoad, SharedSubmissions}
    pools.drain(PATIENCE)
    assert all(future.done() for future in futures)
    assert done(futures) == [None] * 200
    bodies = box.bodies(200)
    assert [one for one in bodies if one < 100] == list(range(100))
    assert [one for one in bodies if one >= 100] == list(range(100, 200))


# -- order -------------------------------------------------------------------------------------------------------------


def test_many_that_turn_out_to_need_leases_keep_their_order(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    monkeypatch.setattr(publisher_of(pools), "_share", lambda view: None)
    pools.suspend(mode="wait")
    futures = [pools.submit(number, box.name) for number in range(50)]
    pools.resume()
    assert done(futures) == [None] * 50
    assert box.bodies(50) == list(range(50))


@pytest.mark.parametrize("first", ["prepared", "behind"])
def test_one_that_comes_while_those_before_it_turn_out_to_need_leases(
    amqp_url: str,
    shared: MakePools,
    inbox: MakeInbox,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    publisher, lanes, go_on = publisher_of(pools), road(pools), threading.Event()
    monkeypatch.setattr(publisher, "_share", lambda view: None)
    pools.suspend(mode="wait")
    futures = [pools.submit(number, box.name) for number in range(3)]
    # Keeps the thread that publishes over leases, so that the last of them waits behind.
    futures[0].add_done_callback(lambda _: go_on.wait(PATIENCE))
    shared_road = pools.producers["default"].shared_road
    prepare = shared_road.prepare

    def meanwhile() -> None:
        pools.resume()
        eventually(futures[0].done)
        eventually(lambda: [len(behind) for behind in lanes._behind.values()] == [1])

    def prepared(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(shared_road, "prepare", prepare)
        made = prepare(*arguments, **keywords) if first == "prepared" else None
        meanwhile()
        return made or prepare(*arguments, **keywords)

    monkeypatch.setattr(shared_road, "prepare", prepared)
    futures.append(pools.submit(3, box.name))
    go_on.set()
    assert done(futures) == [None] * 4
    assert box.bodies(4) == [0, 1, 2, 3]


def test_what_was_cancelled_behind_a_lease_costs_the_others_nothing(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    pools.suspend(mode="wait")
    futures = [pools.submit(body, box.name) for body in ("first", LARGE, *range(900))]
    assert all(future.cancel() for future in futures[2:-1])
    pools.resume()
    assert done([futures[0], futures[1], futures[-1]]) == [None] * 3
    assert len(wait(futures, PATIENCE).done) == 902
    assert box.bodies(3) == ["first", LARGE, 899]


# -- the reading thread ------------------------------------------------------------------------------------------------


def test_a_callback_that_submits_does_not_wait_for_room(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kombu_pools_ext.submitting.shared_submissions.MOST_WAITING", 5)
    pools, box = shared(amqp_url), inbox(amqp_url)
    later: list[Future[None]] = []

    def more(_: Future[None]) -> None:
        for number in range(10):
            later.append(pools.submit(number, box.name, acquire_timeout=2.0))

    pools.suspend(mode="wait")
    futures = [pools.submit("first", box.name, acquire_timeout=PATIENCE) for _ in range(5)]
    futures[0].add_done_callback(more)
    pools.resume()
    eventually(lambda: len(later) == 10)
    assert done(futures + later) == [None] * 15
    assert box.bodies(15) == ["first"] * 5 + list(range(10))


@pytest.mark.threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_its_thread_costs_the_others_nothing(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    ended: list[threading.Thread] = []

    def end(_: Future[None]) -> None:
        ended.append(threading.current_thread())
        raise SystemExit

    pools.suspend(mode="wait")
    futures = [pools.submit(number, box.name) for number in range(20)]
    for future in futures[::5]:
        future.add_done_callback(end)
    pools.resume()
    assert done(futures) == [None] * 20
    assert road(pools).await_empty(time.monotonic() + PATIENCE)
    assert done([pools.submit("after", box.name)]) == [None]
    assert box.bodies(21) == [*range(20), "after"]
    # What they raise is this test's, and no other one's.
    for thread in ended:
        thread.join(PATIENCE)


@pytest.mark.threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reading_thread_that_is_killed_is_followed_by_another_one() -> None:
    seen: list[bool] = []
    called = threading.Event()
    inside: set[int] = set()
    killed: list[threading.Thread] = []

    def work(box: ReentrantQueue[Any]) -> float | None:
        seen.append(threading.get_ident() in inside)
        if len(seen) == 1:
            killed.append(threading.current_thread())
            reader.call(called.set)
            raise SystemExit
        return None

    reader = Reader(work, inside=inside)
    reader.wake()
    assert called.wait(PATIENCE)
    assert seen[:2] == [True, True]
    count = len(seen)
    reader.wake()
    eventually(lambda: len(seen) > count)
    assert all(seen)
    killed[0].join(PATIENCE)


def test_a_thread_that_has_ended_is_not_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu_pools_ext.publisher.reader.IDLE", 0.0)
    inside: set[int] = set()
    seen: list[set[int]] = []

    def work(box: ReentrantQueue[Any]) -> None:
        seen.append(set(inside))

    reader = Reader(work, inside=inside)
    reader.wake()
    eventually(lambda: bool(seen) and not inside)
    assert len(seen[0]) == 1


# -- event loops -------------------------------------------------------------------------------------------------------


def test_a_loop_is_woken_although_a_wake_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_both() -> None:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        alarm = LoopAlarm(loop)
        ring = loop.call_soon_threadsafe
        rung: list[Any] = []

        def interrupted(*arguments: Any, **options: Any) -> Any:
            rung.append(arguments)
            if len(rung) == 1:
                raise KeyboardInterrupt
            return ring(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            alarm.wake(first)
        await asyncio.wait_for(first, PATIENCE)
        alarm.wake(second)
        await asyncio.wait_for(second, PATIENCE)

    asyncio.run(wait_for_both())


# -- the end of the process --------------------------------------------------------------------------------------------


def test_what_the_end_of_the_process_has_failed_is_not_sent_any_more(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    pools.suspend(mode="wait")
    futures = [pools.submit(body, box.name) for body in (1, LARGE, 2)]
    road(pools).end(time.monotonic())
    assert [type(error) for error in done(futures)] == [PoolClosed] * 3
    pools.resume()
    assert done([pools.submit("after", box.name)]) == [None]
    assert road(pools).await_empty(time.monotonic() + PATIENCE)
    assert box.bodies(1) == ["after"]
    assert "unexpected state" not in caplog.text


#: On Python 3.12 no thread can be started any more when exit handlers run.
PROGRAM = """
import atexit, sys
from kombu_pools_ext import Pools

url, queue, handler = sys.argv[1:]
pools = Pools(default={"URL": url, "PUBLISH_OVER": "shared", "LIMIT": 1})

def publish():
    bodies = *range(50), "x" * 200_000, *range(50, 60)
    return [pools.submit(body, queue) for body in bodies]

if handler == "yes":
    atexit.register(lambda: [future.result(30) for future in publish()])
else:
    publish()
"""


@pytest.mark.parametrize("handler", ["yes", "no"])
def test_the_end_of_the_process_publishes_what_needs_a_lease(
    amqp_url: str, inbox: MakeInbox, handler: str
) -> None:
    box = inbox(amqp_url)
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM, amqp_url, box.name, handler],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
    assert box.bodies(61) == [*range(50), LARGE, *range(50, 60)]


#: Exit handlers run in the reverse order of their registration, and ours is registered with the import.
FROM_AN_EXIT_HANDLER = """
import atexit, sys

url, queue, over, registered, used = sys.argv[1:]

def last():
    pools.submit("last", queue)
    # Nobody asks what became of it.
    pools.submit("nowhere", queue + "-gone", message_id="mine")

if registered == "before the import":
    atexit.register(last)
from kombu_pools_ext import Pools
if registered == "after the import":
    atexit.register(last)
pools = Pools(default={"URL": url, "PUBLISH_OVER": over})
if used == "used":
    pools.submit("first", queue).result(30)
if registered == "late":
    atexit.register(last)
"""


@pytest.mark.parametrize("used", ["used", "unused"])
@pytest.mark.parametrize("registered", ["before the import", "after the import", "late"])
@pytest.mark.parametrize("over", ["auto", "leased"])
def test_an_exit_handler_may_submit_without_waiting(
    amqp_url: str, inbox: MakeInbox, over: str, registered: str, used: str
) -> None:
    box = inbox(amqp_url)
    arguments = (amqp_url, box.name, over, registered, used)
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", FROM_AN_EXIT_HANDLER, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("", 0)
    assert box.bodies(2 if used == "used" else 1) == [
        *(["first"] if used == "used" else []),
        "last",
    ]
    # Each failure is told once.
    assert ended.stderr.count("was not published, or may not have been: message mine") == 1
    assert ended.stderr.count("a submitted message") == 1


def test_what_was_refused_is_not_told_to_be_published(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    pools.suspend(mode="wait")
    futures = [pools.submit(number, box.name) for number in range(3)]
    submissions = list(road(pools)._flying)
    # What writes comes between the two steps of the end of the process.
    assert all(one.refuse() for one in submissions)
    pools.resume()
    assert road(pools).await_empty(time.monotonic() + PATIENCE)
    assert not any(future.done() for future in futures)
    for one in submissions:
        one.fail(PoolClosed("the process ended"))
    assert [type(error) for error in done(futures)] == [PoolClosed] * 3
    assert box.bodies() == []


def test_a_future_is_either_begun_or_refused_or_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(100):
        future = PublishFuture("mine", "to a test")
        steps = [future.begin, future.refuse, future.cancel]
        outcomes = Crowd(3, lambda n, steps=steps: steps[n]()).join()
        begun, refused, cancelled = (outcomes[n] for n in range(3))
        assert future.begin() is begun
        assert not (begun and refused)
        assert not (begun and cancelled)
        if not begun:
            future.fail(PoolClosed("it ended"))
            assert future.done()
            assert future.begin() is False
        assert list(wait([future], 0).done) == ([future] if future.done() else [])
    assert caplog.text == ""
