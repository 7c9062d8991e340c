"""Whatever was handed to a batch has an outcome, the message that was being published when it broke included."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from amqp.exceptions import MessageNacked
from kombu.exceptions import EncodeError

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import publisher
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishNacked
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.test_confirms import full, make, proxy, sound  # noqa: F401  # fixtures
from tests.broker.test_gathering import patient  # noqa: F401  # a fixture
from tests.proxy import TO_CLIENT, TO_SERVER, Frame, Proxy

pytestmark = pytest.mark.broker

MakePool = Callable[..., pools.ProducerPool]
ACKED, NACKED, RETURNED, UNKNOWN = Outcome


@pytest.fixture
def producers(make: MakePool) -> pools.ProducerPool:  # noqa: F811  # a fixture
    return make()


@pytest.fixture
def box(amqp_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    return inbox(amqp_url)


def publish(producer: Any, name: str, *message_ids: object) -> None:
    for one in message_ids:
        producer.publish(one, routing_key=name, message_id=str(one))


def ids_in(box: Inbox) -> set[str]:
    return {message.properties["message_id"] for message in box.messages()}


# -- the message at which it breaks ----------------------------------------------------------------


@pytest.mark.parametrize("max_size", [2, 20, 1000])
@pytest.mark.parametrize("which", [0, 1, 7, 30])
def test_each_that_was_handed_to_it_has_an_outcome(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    max_size: int,
    which: int,
) -> None:
    """Cut within the answer to one of the first, or where that comes with another's, after that."""
    proxy.play([(TO_CLIENT, Frame("basic.ack", 3 + which * 21), "reset")], coming=1)
    handed = []
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch(max_size) as batch:
            for number in range(2000):
                handed.append(str(number))
                publish(producer, box.name, number)
            proxy.cut(rst=True)
    results = caught.value.results
    assert list(results) == list(batch.results) == handed
    assert set(results.values()) <= {ACKED, UNKNOWN}
    assert UNKNOWN in results.values()
    there = ids_in(box)
    assert {one for one, outcome in results.items() if outcome is ACKED} <= there <= set(handed)
    assert not caught.value.unsent & there
    sound(producers, box.name)


@pytest.mark.parametrize("answer", ["channel.open-ok", "confirm.select-ok"])
def test_the_first_message_when_there_is_no_channel_for_it(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    answer: str,
) -> None:
    # Opened before anybody was likely to publish on it.
    producers.connections.acquire(timeout=PATIENCE).release()
    proxy.play([(TO_CLIENT, Frame(answer, 5), "cut")])
    with pytest.raises(BatchFailed, match=r"1 of 1 .* 1 of those UNKNOWN were not sent") as caught:
        with producers.acquire(timeout=PATIENCE) as producer, producer.batch() as batch:
            publish(producer, box.name, 0)
    assert caught.value.results == batch.results == {"0": UNKNOWN}
    assert caught.value.unsent == {"0"}
    assert isinstance(caught.value.__cause__, OSError)
    proxy.heal()
    sound(producers, box.name)
    assert "0" not in ids_in(box)


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_the_message_after_a_refusal_when_the_channel_cannot_be_opened_anew(
    make: MakePool,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    full: str,  # noqa: F811
    box: Inbox,
    how: str,
) -> None:
    producers = make(confirm_timeout=0.3 if how == "silent" else None)
    with pytest.raises(BatchFailed, match="1 of 1 messages") as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            with pytest.raises(PublishNacked):
                producer.publish("x", routing_key=full, timeout=PATIENCE)
            if how == "cut":
                proxy.cut(rst=True)
            else:
                proxy.hold(TO_CLIENT)
            with producer.batch():
                publish(producer, box.name, 0)
    assert (caught.value.results, caught.value.unsent) == ({"0": UNKNOWN}, {"0"})
    proxy.heal()
    assert ids_in(box) == set()


def test_a_message_on_a_channel_that_was_interrupted_before(
    make: MakePool,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    producers = make(confirm_timeout=0.2)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name, timeout=PATIENCE)
        proxy.hold(TO_CLIENT)
        with pytest.raises(BatchFailed) as first, producer.batch():
            publish(producer, box.name, 0)
        assert (first.value.results, first.value.unsent) == ({"0": UNKNOWN}, set())
        with pytest.raises(BatchFailed) as second, producer.batch():
            publish(producer, box.name, 1)
        assert "not used any more" in str(second.value.__cause__)
        assert (second.value.results, second.value.unsent) == ({"1": UNKNOWN}, {"1"})


@pytest.mark.parametrize("breaks", [False, True])
def test_on_a_channel_of_the_borrowers_own_each_has_its_outcome_too(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    full: str,  # noqa: F811
    box: Inbox,
    breaks: bool,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.revive(producer.connection.channel())
        batch = producer.batch()
        with pytest.raises(BatchFailed) if breaks else nullcontext() as caught, batch:
            publish(producer, box.name, 0)
            with pytest.raises(MessageNacked):
                publish(producer, full, 1)
            if breaks:
                proxy.cut(rst=True)
                publish(producer, box.name, 2)
        expected = {"0": ACKED, "1": NACKED}
        if breaks:
            expected["2"] = UNKNOWN
            assert caught.value.results == expected
        assert batch.results == expected


# -- an error that is not the connection's ---------------------------------------------------------


def test_the_callers_own_mistake_goes_through_with_a_note_of_those_before_it(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(EncodeError) as caught, producer.batch() as batch:
            publish(producer, box.name, 0, 1, 2)
            publish(producer, box.name, object())
        (note,) = caught.value.__notes__
        assert note == (
            f"pool {producers.name!r}: all 3 messages that the batch had been given were confirmed"
        )
        assert batch.results == {"0": ACKED, "1": ACKED, "2": ACKED}
        # A block that has published nothing has nothing to say.
        with pytest.raises(KeyError) as other, producer.batch():
            raise KeyError("a bug")
    assert not hasattr(other.value, "__notes__")
    assert ids_in(box) == {"0", "1", "2"}
    assert producers.connections.stats().closed == {}


class Limit(Exception):
    """Of the time of a task, as Celery's."""


@pytest.fixture
def alarm(proxy: Proxy) -> Iterator[Callable[[Exception], None]]:  # noqa: F811
    """Has a signal handler raise an error once the server was sent what names it."""
    raised: list[Exception] = []
    threads: list[threading.Thread] = []

    def handler(number: int, frame: Any) -> None:
        raise raised[0]

    def strike() -> None:
        (link,) = proxy.alive
        eventually(lambda: b"the last" in link.sent(TO_SERVER))
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
@pytest.mark.parametrize("kind", [Limit, TimeoutError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["publish", "the block's end"])
def test_what_a_signal_handler_raises_goes_through_as_it_is_with_a_note(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    alarm: Callable[[BaseException], None],
    where: str,
    kind: type[BaseException],
) -> None:
    error = kind("mine")
    with pytest.raises(kind, match="mine") as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=box.name)
            with producer.batch(max_size=3 if where == "publish" else 10) as batch:
                publish(producer, box.name, 0, 1)
                batch.flush()
                proxy.hold(TO_CLIENT)
                alarm(error)
                publish(producer, box.name, 2, 3, "the last")
    assert caught.value is error
    (note,) = caught.value.__notes__
    assert note == (
        f"pool {producers.name!r}: 3 of 5 messages of the batch were not confirmed (2 ACKED, 3 UNKNOWN); those UNKNOWN "
        "may be in the broker"
    )
    assert batch.results == {
        "0": ACKED,
        "1": ACKED,
        "2": UNKNOWN,
        "3": UNKNOWN,
        "the last": UNKNOWN,
    }
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()


@pytest.mark.threads
def test_who_swallows_it_within_the_block_is_told_at_its_end(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
    alarm: Callable[[Exception], None],
) -> None:
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch(max_size=2):
            proxy.hold(TO_CLIENT)
            alarm(Limit("mine"))
            with pytest.raises(Limit):
                publish(producer, box.name, 0, "the last")
            with pytest.raises(RuntimeError, match="aborted"):
                publish(producer, box.name, 2)
    assert caught.value.results == {"0": UNKNOWN, "the last": UNKNOWN}
    proxy.heal()


# -- what was not sent, and what is another's ------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_what_was_gathered_and_never_written_is_told_apart(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        producers.acquire(timeout=PATIENCE) as producer,
    ):
        producer.publish("warm", routing_key=box.name)
        with producer.batch():
            publish(producer, box.name, *range(publisher.AT_ONCE + 5))
            # Once they are there: the end of the connection may overtake what is on its way.
            arrived = box.messages(1 + publisher.AT_ONCE)
            raise KeyboardInterrupt
    assert "; 5 of those UNKNOWN were not sent; the others may be" in caught.value.__notes__[0]
    assert len(arrived) == 1 + publisher.AT_ONCE
    assert box.messages() == []


def test_after_its_end_the_results_are_its_own(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch() as batch:
            publish(producer, box.name, 0)
        proxy.hold(TO_CLIENT)
        with producer.batch() as other:
            publish(producer, box.name, 1)
            assert other.results == {"1": UNKNOWN}
            assert batch.results == {"0": ACKED}
            proxy.heal()
