"""kombu's batch on Redis: an error of it says which messages are confirmed, which may be there, and which are not."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis
from kombu.exceptions import EncodeError

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.errors import LeaseError
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(
        not hasattr(kombu.Producer, "batch"), reason="this kombu has no batches on Redis"
    ),
]

#: Messages that are sent together.
SIZE = 10


@pytest.fixture
def box(redis_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(redis_url)


@pytest.fixture
def proxy(redis_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(redis_url)


@pytest.fixture
def aliases(redis_url: str, proxy: Proxy) -> Pools:
    return Pools(default={"url": through(proxy, redis_url), "confirm_timeout": 0.5})


def ids_in(box: Inbox) -> list[int]:
    return [int(message.properties["message_id"]) for message in box.messages()]


def note_of(caught: Any) -> str:
    (note,) = caught.value.__notes__
    return str(note).partition("of the ")[2]


def publish(producer: Any, name: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        producer.publish(number, routing_key=name, message_id=str(number))


@pytest.mark.parametrize("by", ["the size", "flush", "the block's end"])
@pytest.mark.parametrize("how", ["cut", "silent"])
def test_it_breaks_while_some_are_sent(
    aliases: Pools, proxy: Proxy, box: Inbox, how: str, by: str
) -> None:
    with pytest.raises(kombu.exceptions.BatchPublishError) as caught:
        with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
            with producer.batch(SIZE) as batch:
                publish(producer, box.name, 0, SIZE + 2)
                batch.flush()
                if how == "cut":
                    # While they are sent: a connection that was cut before redis-py opens anew.
                    for link in proxy.alive:
                        place = len(link.sent(TO_SERVER)) + 20
                        link.play([(TO_SERVER, place, "reset")])
                else:
                    proxy.hold(TO_CLIENT)
                publish(producer, box.name, SIZE + 2, 3)
                if by == "the size":
                    publish(producer, box.name, SIZE + 5, SIZE)
                elif by == "flush":
                    batch.flush()
    given, last = (2 * SIZE + 2, SIZE) if by == "the size" else (SIZE + 5, 3)
    assert note_of(caught) == (
        f"{given} messages that the batch was given, the last {last}, from message {SIZE + 2} on, may be in the "
        "broker, or not; those before were confirmed"
    )
    proxy.heal()
    proxy.cut()
    assert set(range(SIZE + 2)) <= set(ids_in(box)) <= set(range(given))


def test_those_before_are_not_spoken_of_where_there_are_none(
    aliases: Pools, proxy: Proxy, box: Inbox
) -> None:
    with pytest.raises(kombu.exceptions.BatchPublishError) as caught:
        with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=box.name, message_id="-1")
            proxy.drop(TO_SERVER)
            with producer.batch():
                publish(producer, box.name, 0, 2)
    assert note_of(caught) == (
        "2 messages that the batch was given, the last 2, from message 0 on, may be in the broker, or not"
    )
    assert ids_in(box) == [-1]


@pytest.mark.parametrize("error", ["of the block", "of a message"])
def test_an_exception_says_what_is_not_sent_any_more(
    aliases: Pools, box: Inbox, error: str
) -> None:
    with pytest.raises((KeyError, EncodeError)) as caught:
        with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
            with producer.batch(SIZE), producer.batch():
                publish(producer, box.name, 0, SIZE + 3)
                if error == "of the block":
                    raise KeyError("a bug")
                producer.publish(object(), routing_key=box.name)
    assert note_of(caught) == (
        f"{SIZE + 3} messages that the batch was given, the last 3, from message {SIZE} on, were not sent; those "
        "before were confirmed"
    )
    assert ids_in(box) == list(range(SIZE))


def test_who_goes_on_after_a_mistake_loses_nothing(aliases: Pools, box: Inbox) -> None:
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        with producer.batch(SIZE):
            publish(producer, box.name, 0, 3)
            with pytest.raises(EncodeError) as caught:
                producer.publish(object(), routing_key=box.name)
            publish(producer, box.name, 3, 3)
        publish(producer, box.name, 6, 1)
    assert not hasattr(caught.value, "__notes__")
    assert ids_in(box) == list(range(7))


@pytest.fixture
def lone(redis_url: str) -> Pools:
    return Pools(default={"url": redis_url, "limit": 1})


def leave_open(pool: Any, name: str, how: str) -> Any:
    """Publish in a block that the lease ends in, and return what keeps the block from ending."""

    def work(producer: Any) -> Iterator[None]:
        with producer.batch(SIZE):
            publish(producer, name, 0, SIZE + 2)
            yield

    with contextlib.ExitStack() as block, pool.acquire(timeout=PATIENCE) as producer:
        if how == "release":
            block.enter_context(producer.batch(SIZE))
            publish(producer, name, 0, SIZE + 2)
            producer.release()
        elif how == "a stack":
            block.enter_context(producer.batch(SIZE))
            publish(producer, name, 0, SIZE + 2)
            return block.pop_all()
        elif how == "a generator":
            steps = work(producer)
            next(steps)
            return steps
        else:
            steps = work(producer)
            thread = threading.Thread(target=next, args=(steps,))
            thread.start()
            thread.join()
            return steps
    return None


@pytest.mark.parametrize("how", ["release", "a stack", "a generator", "another thread"])
def test_a_lease_that_ends_in_the_block_sends_and_leaves_the_next_alone(
    lone: Pools, box: Inbox, how: str
) -> None:
    pool = lone.producers["default"]
    kept = leave_open(pool, box.name, how)
    assert ids_in(box) == list(range(SIZE + 2))
    for number in (20, 21):
        lone.publish(number, box.name, message_id=str(number))
        assert ids_in(box) == [number]
    with pool.acquire(timeout=PATIENCE) as producer:
        with producer.batch():
            publish(producer, box.name, 22, 1)
            if kept is not None:
                # The end of the block says and sends nothing any more, and does not end the next borrower's.
                kept.close()
            publish(producer, box.name, 23, 1)
            assert ids_in(box) == []
    assert ids_in(box) == [22, 23]


def test_what_cannot_be_sent_at_the_leases_end_is_told_in_the_log(
    aliases: Pools, proxy: Proxy, box: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        batch = producer.batch()
        batch.__enter__()
        publish(producer, box.name, 0, 3)
        batch.flush()
        publish(producer, box.name, 3, 2)
        proxy.hold(TO_CLIENT)
    (record,) = (one for one in caplog.records if one.levelno == logging.WARNING)
    assert (
        "of the 5 messages that the batch was given, the last 2, from message 3 on, may be in the broker, or not; "
        "those before were confirmed: "
    ) in record.getMessage()
    with pytest.raises(LeaseError):
        batch.flush()
    batch.__exit__(None, None, None)
    proxy.heal()


def test_an_aborted_batch_is_not_the_next_borrowers(lone: Pools, box: Inbox) -> None:
    with lone.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.batch().__enter__()
        with pytest.raises(KeyError), producer.batch():
            publish(producer, box.name, 0, 1)
            raise KeyError("a bug")
    with lone.producers["default"].acquire(timeout=PATIENCE) as producer, producer.batch():
        publish(producer, box.name, 1, 1)
    assert ids_in(box) == [1]


def test_elsewhere_the_end_of_a_block_after_the_release_is_no_error() -> None:
    pools = Pools(default={"url": "memory://", "limit": 1})
    for _ in range(2):
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            with producer.batch():
                producer.publish("x", routing_key="a")
                producer.release()
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            with pytest.raises(KeyError), producer.batch():
                raise KeyError("a bug")
            producer.publish("y", routing_key="a")


class Soft(Exception):
    """As Celery's soft time limit."""


class Alarm(TimeoutError):
    """A time-out of the application's: a class that counts as the socket's."""


@pytest.fixture
def alarm(proxy: Proxy) -> Iterator[Callable[[Exception], None]]:
    """Has a signal handler raise an error once the server was sent what names it."""
    raised: list[Exception] = []
    threads: list[threading.Thread] = []

    def handler(number: int, frame: Any) -> None:
        raise raised[0]

    def strike() -> None:
        eventually(lambda: any(b"the last" in link.sent(TO_SERVER) for link in proxy.alive))
        os.kill(os.getpid(), signal.SIGUSR1)

    def arm(error: Exception) -> None:
        raised.append(error)
        threads.append(threading.Thread(target=strike))
        threads[0].start()

    before = signal.signal(signal.SIGUSR1, handler)
    yield arm
    threads[0].join(PATIENCE)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.threads
@pytest.mark.parametrize("kind", [Soft, Alarm])
@pytest.mark.parametrize("by", ["the size", "flush", "the block's end", "the lease's end"])
def test_what_a_signal_handler_raises_comes_through_as_it_is_with_a_note(
    redis_url: str,
    proxy: Proxy,
    box: Inbox,
    alarm: Callable[[Exception], None],
    by: str,
    kind: type[Exception],
) -> None:
    pools = Pools(default={"url": through(proxy, redis_url), "confirm_timeout": PATIENCE})
    pool, error = pools.producers["default"], kind("mine")
    with pytest.raises(kind) as caught:
        with pool.acquire(timeout=PATIENCE) as producer:
            with producer.batch(3 if by == "the size" else SIZE) as batch:
                publish(producer, box.name, 0, 1)
                batch.flush()
                publish(producer, box.name, 1, 2)
                proxy.hold(TO_CLIENT)
                alarm(error)
                producer.publish(3, routing_key=box.name, message_id="the last")
                if by == "flush":
                    batch.flush()
                if by == "the lease's end":
                    producer.release()
    assert caught.value is error
    assert error.__cause__ is None
    assert note_of(caught) == (
        "4 messages that the batch was given, the last 3, from message 1 on, may be in the broker, or not; those "
        "before were confirmed"
    )
    assert pool.connections.stats().closed == {"broken": 1}
    assert pool.connections.stats().lent == 0
    proxy.heal()


def test_raised_between_two_steps_of_the_client_it_comes_through_once(
    lone: Pools, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Soft("mine")

    def interrupted(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        raise error

    with lone.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(kombu.exceptions.BatchPublishError, match="reused"):
            with producer.batch() as batch:
                publish(producer, box.name, 0, 2)
                monkeypatch.setattr(redis.client.Pipeline, "_execute_pipeline", interrupted)
                with pytest.raises(Soft) as caught:
                    batch.flush()
                assert caught.value is error
                assert note_of(caught).endswith("from message 0 on, may be in the broker, or not")
                publish(producer, box.name, 2, 1)
