"""``Pools.submit``: each message has one outcome, in its future; and what nobody asks for is in the log, once."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import EncodeError

from kombu_pools_ext import Pools, events
from kombu_pools_ext.errors import (
    BrokerUnreachable,
    PoolClosed,
    PoolFull,
    PoolReentered,
    PoolTimeout,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
    UnknownAlias,
)
from kombu_pools_ext.submitting import leased_road
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import in_child

Make = Callable[..., Pools]


@pytest.fixture
def make(url: str) -> Make:
    """Makes pools on each kind of broker."""
    return lambda **settings: Pools(default={"URL": url, "PUBLISH_OVER": "leased", **settings})


@contextmanager
def held_up(pools: Pools) -> Iterator[None]:
    """Within, nothing is published: what was submitted waits for a producer, or for its turn."""
    pools.suspend(mode="wait")
    try:
        yield
    finally:
        pools.resume()


def unobserved(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kombu_pools_ext" and "a submitted message" in record.getMessage()
    ]


# -- the outcome -------------------------------------------------------------------------------------------------------


def test_a_message_arrives_and_its_future_says_so(make: Make, url: str, inbox: Any) -> None:
    box = inbox(url)
    future = make().submit({"n": 1}, box.name, headers={"a": 1})
    assert isinstance(future, Future)
    assert future.result(PATIENCE) is None
    assert future.exception() is None
    (message,) = box.messages(1)
    assert message.payload == {"n": 1}
    assert message.headers["a"] == 1


def test_the_message_is_made_when_it_is_submitted(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()
    body, headers = {"n": 1}, {"h": [1]}
    with held_up(pools):
        future = pools.submit(body, box.name, headers=headers)
        body["n"] = 2
        headers["h"].append(2)
    future.result(PATIENCE)
    (message,) = box.messages(1)
    assert (message.payload, message.headers["h"]) == ({"n": 1}, [1])


def test_wrong_arguments_raise_at_once(make: Make) -> None:
    pools = make()
    with pytest.raises(TypeError, match="unknown keyword 'queue'; did you mean 'routing_key'"):
        pools.submit({}, queue="q")
    with pytest.raises(ValueError, match="neither a routing_key nor an exchange"):
        pools.submit({})
    with pytest.raises(TypeError, match="acquire_timeout"):
        pools.submit({}, "q", acquire_timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(EncodeError):
        pools.submit({"a": object()}, "q")
    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        pools.submit({}, "q", using="defaul")
    assert pools.connections["default"].stats().opened == 0


def test_a_returned_message_a_missing_exchange_and_a_nack(amqp_url: str, queue: str) -> None:
    pools = Pools(default={"URL": amqp_url, "PUBLISH_OVER": "leased"})
    full = Inbox(amqp_url, queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    futures = [pools.submit(number, full.name) for number in range(2)]
    returned = pools.submit({}, "there-is-no-such-queue", message_id="mine")
    missing = pools.submit({}, "key", exchange="there-is-no-such-exchange")
    assert futures[0].exception(PATIENCE) is None
    assert isinstance(futures[1].exception(PATIENCE), PublishNacked)
    error = returned.exception(PATIENCE)
    assert isinstance(error, PublishReturned)
    assert error.message_id == "mine"
    assert isinstance(missing.exception(PATIENCE), NotFound)
    with pytest.raises(PublishReturned):
        returned.result()
    full.delete()


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_cannot_be_reached(scheme: str, nowhere: int) -> None:
    pools = Pools(default={"URL": f"{scheme}://127.0.0.1:{nowhere}/0", "ACQUIRE_TIMEOUT": 0.2})
    assert isinstance(pools.submit({}, "q").exception(PATIENCE), BrokerUnreachable)


def test_nothing_becomes_free_in_time(make: Make) -> None:
    pools = make(LIMIT=1)
    pools.wait_ready(PATIENCE)
    with pools.producers["default"].acquire(timeout=PATIENCE):
        error = pools.submit({}, "q", acquire_timeout=0.1).exception(PATIENCE)
    assert isinstance(error, PoolTimeout)


def test_it_runs_in_the_context_of_its_caller(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()
    variable: ContextVar[str] = ContextVar("variable")
    seen: list[str | None] = []

    def note(**what: Any) -> None:
        seen.append(variable.get(None))

    variable.set("the caller's")
    pools.suspend(mode="wait")
    events.demand.connect(note)
    try:
        future = pools.submit(1, box.name)
        eventually(lambda: seen)
    finally:
        events.demand.disconnect(note)
        pools.resume()
    future.result(PATIENCE)
    assert seen[0] == "the caller's"


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.threads
def test_what_a_thread_submits_to_an_exchange_arrives_in_its_order(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make()
    futures: list[Future[None]] = []

    def submit_all(thread: int) -> None:
        futures.extend([pools.submit([thread, number], box.name) for number in range(100)])

    threads = [threading.Thread(target=submit_all, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(wait(futures, PATIENCE).done) == 800
    assert [future.exception() for future in futures] == [None] * 800
    bodies = box.bodies(800)
    for thread in range(8):
        assert [number for one, number in bodies if one == thread] == list(range(100))
    assert pools.connections["default"].stats().opened <= 10


@pytest.mark.threads
def test_no_more_threads_publish_than_the_limit_has_connections(make: Make) -> None:
    pools = make(LIMIT=2)
    with held_up(pools):
        futures = [pools.submit({}, "q", exchange=f"x{number}") for number in range(5)]
        eventually(lambda: pools.connections["default"].stats().waiting == 2)
        running = [one for one in threading.enumerate() if one.name == leased_road.THREAD]
        assert sum(future.running() for future in futures) == 2
        assert len(running) >= 2
        for future in futures:
            future.cancel()
    wait(futures, PATIENCE)


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_a_message_can_be_cancelled_until_it_is_begun(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()
    with held_up(pools):
        first = pools.submit(1, box.name)
        eventually(first.running)
        second, third = (pools.submit(number, box.name) for number in (2, 3))
        assert not first.cancel()
        assert second.cancel()
        assert second.cancelled()
    third.result(PATIENCE)
    with pytest.raises(CancelledError):
        second.result(PATIENCE)
    # Who waits for a cancelled one among others is told of it.
    assert len(wait([first, second, third], PATIENCE).done) == 3
    assert box.bodies(2) == [1, 3]


@pytest.mark.threads
def test_many_cancellations_at_random_moments(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make(LIMIT=4)
    futures: dict[str, Future[None]] = {}
    cancelled: set[str] = set()
    chance = random.Random(14)

    def submit(thread: int) -> None:
        for number in range(100):
            body = f"{thread}-{number}"
            futures[body] = pools.submit(body, box.name)

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(4)]
    for one in threads:
        one.start()
    while len(cancelled) < 100 and any(one.is_alive() for one in threads):
        for body, future in list(futures.items()):
            if chance.random() < 0.1 and future.cancel():
                cancelled.add(body)
    for one in threads:
        one.join(PATIENCE)
    wait(list(futures.values()), PATIENCE)
    published = {body for body, future in futures.items() if not future.cancelled()}
    assert len(published) + len(cancelled) == len(futures) == 400
    assert all(futures[body].exception() is None for body in published)
    bodies = box.bodies(len(published))
    assert len(bodies) == len(set(bodies))
    assert set(bodies) == published


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased_road, "MOST_WAITING", 2)
    monkeypatch.setattr(leased_road, "FEW_WAITING", 1)


@pytest.mark.usefixtures("two_wait")
def test_a_full_queue_refuses_after_the_time_and_says_what_to_do(
    make: Make, url: str, inbox: Any
) -> None:
    box, pools = inbox(url), make()
    with held_up(pools):
        futures = [pools.submit(0, box.name)]
        eventually(futures[0].running)
        futures += [pools.submit(number, box.name) for number in (1, 2)]
        with pytest.raises(
            PoolFull, match=r"alias 'default': 2 submitted messages.* within 0.05 s"
        ):
            pools.submit(3, box.name, acquire_timeout=0.05)
        with pytest.raises(PoolFull, match="raise LIMIT"):
            pools.submit(3, box.name, acquire_timeout=0)
        # One that was cancelled takes no room.
        assert futures[1].cancel()
        futures.append(pools.submit(4, box.name, acquire_timeout=PATIENCE))
    wait(futures, PATIENCE)
    assert box.bodies(3) == [0, 2, 4]


@pytest.mark.threads
@pytest.mark.usefixtures("two_wait")
def test_callers_wait_for_room_in_their_order(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()
    pools.submit("warm", box.name).result(PATIENCE)
    road: Any = pools.road_of("default")
    threads = []
    with held_up(pools):
        first = pools.submit("begun", box.name)
        eventually(first.running)
        rest = [pools.submit(f"waits {number}", box.name) for number in range(2)]
        for number in range(5):
            submit = lambda number=number: rest.append(  # noqa: E731
                pools.submit(number, box.name, acquire_timeout=PATIENCE)
            )
            threads.append(threading.Thread(target=submit))
            threads[-1].start()
            eventually(lambda number=number: len(road._callers) == number + 1)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(wait(rest, PATIENCE).done) == 7
    assert sorted(map(str, box.bodies(9))) == sorted(
        ["warm", "begun", "waits 0", "waits 1", "0", "1", "2", "3", "4"]
    )


@pytest.mark.usefixtures("two_wait")
def test_a_callback_that_submits_does_not_wait_for_room(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make(LIMIT=1)
    later: list[Future[None]] = []

    def more(_: Future[None]) -> None:
        later.extend(pools.submit(number, box.name) for number in range(5))

    with held_up(pools):
        pools.submit("first", box.name).add_done_callback(more)
    eventually(lambda: len(later) == 5)
    assert len(wait(later, PATIENCE).done) == 5
    assert box.bodies(6) == ["first", 0, 1, 2, 3, 4]


def test_a_submit_that_interrupts_another_one_is_refused(make: Make) -> None:
    pools = make()
    road: Any = pools.road_of("default")
    with road._lock:
        with pytest.raises(PoolReentered, match="signal handler"):
            pools.submit({}, "q")


# -- what nobody asks for --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(nowhere: int) -> Pools:
    """Pools whose broker is away, without patience."""
    url = f"amqp://user:s3cr3t-word@127.0.0.1:{nowhere}//"
    return Pools(default={"URL": url, "PUBLISH_OVER": "leased", "ACQUIRE_TIMEOUT": 0.05})


def test_a_failure_that_nobody_asks_for_is_logged_once(
    broken: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    broken.submit("the body", "key", exchange="events", message_id="mine")
    assert broken.road_of("default").await_empty(time.monotonic() + PATIENCE)
    gc.collect()
    (line,) = eventually(lambda: unobserved(caplog))
    for told in ("alias 'default'", "exchange 'events'", "routing key 'key'", "message mine"):
        assert told in line
    assert __file__ in line
    assert "the body" not in line
    assert "s3cr3t-word" not in line
    assert [one.levelno for one in caplog.records if "a submitted" in one.msg % one.args] == [
        logging.ERROR
    ]


def test_a_failure_that_is_asked_for_is_not_logged(
    broken: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    by_result, by_exception, by_callback, before = (broken.submit({}, "key") for _ in range(4))
    before.add_done_callback(asked.append)
    with pytest.raises(BrokerUnreachable):
        by_result.result(PATIENCE)
    assert by_exception.exception(PATIENCE)
    wait([by_callback, before], PATIENCE)
    by_callback.add_done_callback(asked.append)
    del by_result, by_exception, by_callback, before
    eventually(lambda: len(asked) == 2)
    asked.clear()
    gc.collect()
    # One that is not asked for is logged after what came before it.
    broken.submit({}, "key", message_id="the last")
    assert broken.road_of("default").await_empty(time.monotonic() + PATIENCE)
    gc.collect()
    (line,) = eventually(lambda: unobserved(caplog))
    assert "message the last" in line


def test_a_time_out_of_who_asks_is_no_answer(
    make: Make, nowhere: int, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(default={"URL": f"amqp://127.0.0.1:{nowhere}//", "ACQUIRE_TIMEOUT": 0.1})
    with held_up(pools):
        future = pools.submit({}, "key")
        with pytest.raises(TimeoutError):
            future.result(0.001)
    wait([future], PATIENCE)
    del future
    gc.collect()
    eventually(lambda: len(unobserved(caplog)) == 1)


def test_a_log_handler_that_submits_what_it_is_told_does_not_go_on_for_ever(
    broken: Pools,
) -> None:
    submitted: list[str] = []

    class Submits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "a submitted message" in record.getMessage():
                submitted.append(record.getMessage())
                broken.submit(record.getMessage(), "logs")

    handler, logger = Submits(), logging.getLogger("kombu_pools_ext")
    logger.addHandler(handler)
    try:
        broken.submit({}, "key")
        broken.drain(PATIENCE)
        gc.collect()
        eventually(lambda: submitted)
        broken.drain(PATIENCE)
        gc.collect()
        broken.submit({}, "key").exception(PATIENCE)
    finally:
        logger.removeHandler(handler)
    assert len(submitted) == 1


# -- where threads cannot be started ---------------------------------------------------------------------------------


@pytest.mark.threads
def test_without_threads_the_caller_publishes(
    make: Make, url: str, inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, pools = inbox(url), make()
    monkeypatch.setattr(leased_road, "spawn_thread", lambda work, name: False)
    for number in range(3):
        future = pools.submit(number, box.name)
        assert future.done()
        assert future.result() is None
    failed = pools.submit({}, "q", declare=[kombu.Queue("q")], user_id="somebody else")
    assert failed.done()
    assert box.bodies(3) == [0, 1, 2]


def test_a_thread_without_work_ends_and_the_next_message_starts_another(
    make: Make, url: str, inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, pools = inbox(url), make()
    monkeypatch.setattr(leased_road, "IDLE", 0.01)
    road: Any = pools.road_of("default")
    for number in range(3):
        pools.submit(number, box.name).result(PATIENCE)
        eventually(lambda: not road._workers)
    assert box.bodies(3) == [0, 1, 2]


def test_drain_waits_for_what_was_submitted(make: Make, url: str, inbox: Any) -> None:
    box, pools = inbox(url), make()
    futures = [pools.submit(number, box.name) for number in range(50)]
    pools.drain(PATIENCE)
    assert all(future.done() for future in futures)
    assert box.bodies(50) == list(range(50))


# -- forks, and the end of a process ---------------------------------------------------------------------------------


@pytest.mark.forks
@pytest.mark.threads
def test_a_child_begins_afresh_and_the_parent_publishes_its_own(
    amqp_url: str, inbox: Callable[..., Inbox]
) -> None:
    box, pools = (
        inbox(amqp_url),
        # As long as the child takes, on a busy machine, the messages of the parent wait.
        Pools(
            default={
                "URL": amqp_url,
                "PUBLISH_OVER": "leased",
                "LIMIT": 2,
                "ACQUIRE_TIMEOUT": 4 * PATIENCE,
            }
        ),
    )
    pools.submit("before", box.name).result(PATIENCE)
    pools.suspend(mode="wait")
    futures = [pools.submit(f"parent {number}", box.name) for number in range(20)]
    eventually(lambda: pools.connections["default"].stats().waiting)

    def work() -> Any:
        pools.resume()
        done = pools.submit("child", box.name).exception(PATIENCE)
        pools.drain(PATIENCE)
        return done, [future.done() for future in futures]

    answer = in_child(work)
    pools.resume()
    assert answer == (None, [False] * 20)
    assert len(wait(futures, PATIENCE).done) == 20
    expected = ["before", "child", *(f"parent {number}" for number in range(20))]
    assert sorted(box.bodies(22)) == sorted(expected)


PROGRAM = """
import sys
from kombu_pools_ext import Pools
from kombu_pools_ext.engine import exit_hooks
from kombu_pools_ext.submitting import leased_road

url, queue, grace, suspended = sys.argv[1:]
leased_road.GRACE = float(grace)
pools = Pools(default={"URL": url, "PUBLISH_OVER": "leased", "LIMIT": 1})
futures = [pools.submit("first", queue)]
futures[0].result(30)
if suspended == "yes":
    pools.suspend(mode="wait")
for number in range(200):
    futures.append(pools.submit(number, queue, message_id=f"m{number}", acquire_timeout=30))
if suspended == "yes":
    while not pools.connections["default"].stats().waiting:
        pass
if suspended == "late":
    import atexit, threading
    def last():
        future = pools.submit("last", queue)
        assert future.result(30) is None
    # Runs before the pools' own, and one after it.
    atexit.register(last)
    atexit.unregister(exit_hooks.run)
    atexit.register(exit_hooks.run)
print("ends", flush=True)
"""


def run(*arguments: str) -> str:
    """What the program says on its standard error; it ends with success."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.stdout == "ends\n", done.stderr
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.threads
@pytest.mark.parametrize("suspended", ["no", "late"])
def test_what_was_submitted_is_published_when_the_process_ends(
    amqp_url: str, inbox: Callable[..., Inbox], suspended: str
) -> None:
    box = inbox(amqp_url)
    assert run(amqp_url, box.name, "30", suspended) == ""
    last = ["last"] if suspended == "late" else []
    assert box.bodies(201 + len(last)) == ["first", *range(200), *last]


@pytest.mark.threads
def test_what_has_no_outcome_after_the_grace_fails_and_is_logged(
    amqp_url: str, inbox: Callable[..., Inbox]
) -> None:
    box = inbox(amqp_url)
    said = run(amqp_url, box.name, "0.2", "yes")
    lines = [line for line in said.splitlines() if "a submitted message" in line]
    assert len(lines) == 200
    # The one that was begun waits for the pool.
    (begun,) = [line for line in lines if PublishUnknown.__name__ in line]
    assert "message m0 " in begun
    assert "may be in the broker, or not: the process ended" in begun
    assert sum(f"{PoolClosed.__name__}: alias 'default'" in line for line in lines) == 199
    assert sum("was not sent; it is not in the broker" in line for line in lines) == 199
    assert box.bodies(1) == ["first"]


@pytest.mark.forks
@pytest.mark.threads
def test_a_child_of_multiprocessing_publishes_before_it_ends(
    amqp_url: str, inbox: Callable[..., Inbox]
) -> None:
    import multiprocessing

    box, pools = inbox(amqp_url), Pools(default={"URL": amqp_url, "PUBLISH_OVER": "leased"})

    def work() -> None:
        for number in range(50):
            pools.submit(number, box.name)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    within(PATIENCE, child.join)
    assert child.exitcode == 0
    assert box.bodies(50) == list(range(50))
