"""Many messages in one block: at its end each is exactly one of ACKED, NACKED, RETURNED and UNKNOWN."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import EncodeError

from kombu_pools_ext import Pools, pools
from kombu_pools_ext.broker.amqp import publisher as publisher_module
from kombu_pools_ext.errors import BatchFailed, LeaseError, Outcome
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.broker.test_confirms import full, make, proxy, sound  # noqa: F401  # fixtures
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

MakeInbox = Callable[[str], Inbox]
MakePool = Callable[..., pools.ProducerPool]

ACKED, NACKED, RETURNED, UNKNOWN = Outcome


@pytest.fixture
def producers(make: MakePool) -> pools.ProducerPool:  # noqa: F811  # a fixture
    return make()


@pytest.fixture
def box(amqp_url: str, inbox: MakeInbox) -> Inbox:
    return inbox(amqp_url)


def in_queue(box: Inbox) -> int:
    with kombu.Connection(box.url) as connection:
        declare = kombu.Queue(box.name, durable=False)(connection.default_channel).queue_declare
        return int(declare(passive=True).message_count)


# -- what becomes of each ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_size", [1, 7, 1000])
def test_at_the_end_all_are_in_the_queue(
    producers: pools.ProducerPool, box: Inbox, max_size: int
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.supports_batch_publish
        with producer.batch(max_size) as batch:
            for number in range(100):
                producer.publish(number, routing_key=box.name, mandatory=number % 2 == 0)
                assert len(producer._lease.item.pooled_session.confirms.pending) <= max_size
        assert in_queue(box) == 100
        assert set(batch.results.values()) == {ACKED}
        assert len(batch.results) == 100
        # One by one again.
        producer.publish(100, routing_key=box.name)
    assert box.bodies() == list(range(101))
    assert producers.connections.stats().closed == {}


def test_they_do_not_wait_for_each_other(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        proxy.hold(TO_CLIENT)
        with producer.batch() as batch:
            for number in range(50):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            assert batch.results == {str(number): UNKNOWN for number in range(50)}
            proxy.heal()
            batch.flush()
            assert batch.results == {str(number): ACKED for number in range(50)}
            batch.flush()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_message_has_its_own_outcome(
    producers: pools.ProducerPool,
    full: str,  # noqa: F811
    box: Inbox,
    seed: int,
) -> None:
    chance = random.Random(seed)
    expected = {}
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch(max_size=chance.randint(1, 30)):
            for number in range(60):
                fate = chance.choice([ACKED, ACKED, NACKED, RETURNED])
                expected[str(number)] = fate
                name = {ACKED: box.name, NACKED: full, RETURNED: f"{box.name}-nobody"}[fate]
                producer.publish(
                    number, routing_key=name, message_id=str(number), mandatory=fate is RETURNED
                )
        assert caught.value.results == expected
        assert not producer.broken
        assert caught.value.message_id in expected
        assert f"of {len(expected)} messages" in str(caught.value)
    there = [int(name) for name, fate in expected.items() if fate is ACKED]
    assert box.bodies() == there
    assert producers.connections.stats().closed == {}


def test_of_two_with_one_id_the_worse_is_told(producers: pools.ProducerPool, box: Inbox) -> None:
    with producers.acquire(timeout=PATIENCE) as producer, pytest.raises(BatchFailed) as caught:
        with producer.batch():
            for name in (box.name, f"{box.name}-nobody", box.name):
                producer.publish("x", routing_key=name, message_id="mine", mandatory=True)
    assert caught.value.results == {"mine": RETURNED}


@pytest.mark.parametrize("refused_first", [True, False])
def test_of_two_with_one_id_a_refused_one_is_worse_than_one_that_came_back(
    producers: pools.ProducerPool,
    full: str,  # noqa: F811
    box: Inbox,
    refused_first: bool,
) -> None:
    names = [full, f"{box.name}-nobody"]
    with producers.acquire(timeout=PATIENCE) as producer, pytest.raises(BatchFailed) as caught:
        with producer.batch():
            for name in names if refused_first else reversed(names):
                producer.publish("x", routing_key=name, message_id="mine", mandatory=True)
    assert caught.value.results == {"mine": NACKED}


# -- it breaks in the middle -------------------------------------------------------------------------------------------


def test_the_connection_breaks_in_the_middle(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch() as batch:
            for number in range(5):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            batch.flush()
            proxy.hold(TO_CLIENT)
            for number in range(5, 9):
                producer.publish(number, routing_key=box.name, message_id=str(number))
            eventually(lambda: in_queue(box) == 9)
            proxy.cut(rst=True)
    expected = {str(number): ACKED if number < 5 else UNKNOWN for number in range(9)}
    assert caught.value.results == batch.results == expected
    assert "those UNKNOWN may be in the broker" in str(caught.value)
    assert caught.value.pool == producers.name
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()
    sound(producers, box.name)


def test_a_batch_that_broke_takes_no_more(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch(max_size=2) as batch:
            producer.publish(0, routing_key=box.name, message_id="0")
            proxy.cut(rst=True)
            with pytest.raises(BatchFailed):
                for number in range(1, 9):
                    producer.publish(number, routing_key=box.name, message_id=str(number))
            with pytest.raises(RuntimeError, match="aborted batch"):
                producer.publish("x", routing_key=box.name)
            with pytest.raises(RuntimeError, match="aborted batch"):
                batch.flush()
        assert set(batch.results.values()) <= {ACKED, UNKNOWN}
        assert UNKNOWN in batch.results.values()
        assert producer.broken
    sound(producers, box.name)


def test_the_channel_is_closed_in_the_middle(
    producers: pools.ProducerPool, box: Inbox, queue: str
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch():
            producer.publish("there", routing_key=box.name, message_id="0")
            producer.publish("x", exchange=queue + "-nobody", message_id="1")
            producer.publish("x", routing_key=box.name, message_id="2")
        assert isinstance(caught.value.__cause__, NotFound)
        results = caught.value.results
        assert set(results) == {"0", "1", "2"}
        assert results["0"] in (ACKED, UNKNOWN)
        assert results["1"] is results["2"] is UNKNOWN
        # Counted anew.
        producer.publish("next", routing_key=box.name, mandatory=True)
        with producer.batch() as batch:
            with pytest.raises(EncodeError):
                producer.publish(object(), routing_key=box.name)
            producer.publish("last", routing_key=box.name, message_id="3")
        assert batch.results == {"3": ACKED}
    assert box.bodies()[-2:] == ["next", "last"]
    assert producers.connections.stats().closed == {"broken": 1}


def test_no_answer_in_time(make: MakePool, proxy: Proxy, box: Inbox) -> None:  # noqa: F811
    producers = make(confirm_timeout=0.2)
    began = time.monotonic()
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name, timeout=PATIENCE)
        proxy.hold(TO_CLIENT)
        with producer.batch():
            for number in range(3):
                producer.publish(number, routing_key=box.name, message_id=str(number))
    assert time.monotonic() - began < 5.0
    assert caught.value.results == {"0": UNKNOWN, "1": UNKNOWN, "2": UNKNOWN}
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()
    sound(producers, box.name)


# -- the block ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"priority": 300}, {"headers": {"a": object()}}])
def test_a_message_that_cannot_be_sent_at_all_leaves_the_others_alone(
    producers: pools.ProducerPool, box: Inbox, wrong: dict[str, Any]
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer, producer.batch() as batch:
        producer.publish("before", routing_key=box.name, message_id="0")
        with pytest.raises((TypeError, ValueError), match=rf"publish: {next(iter(wrong))}"):
            producer.publish("wrong", routing_key=box.name, **wrong)
        producer.publish("after", routing_key=box.name, message_id="1")
    assert batch.results == {"0": ACKED, "1": ACKED}
    assert box.bodies(2) == ["before", "after"]


def test_on_a_channel_of_the_borrowers_own_each_waits_for_its_confirm(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.revive(producer.connection.channel())
        with producer.batch():
            producer.publish("x", routing_key=box.name)
            assert in_queue(box) == 1


def test_an_exception_aborts(producers: pools.ProducerPool, full: str, box: Inbox) -> None:  # noqa: F811
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(KeyError) as caught, producer.batch() as batch:
            producer.publish("sent", routing_key=box.name, message_id="0")
            producer.publish("sent", routing_key=full, message_id="1")
            raise KeyError("a bug")
        # What was sent was sent; what became of it is known, and the connection is good.
        assert batch.results == {"0": ACKED, "1": NACKED}
        assert "1 of 2 messages of the batch were not confirmed" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="not active"):
            batch.flush()
        with pytest.raises(RuntimeError, match="re-entered"), batch:
            pass
        producer.publish("next", routing_key=box.name)
    assert box.bodies() == ["sent", "next"]
    assert producers.connections.stats().closed == {}


def test_an_interrupt_does_not_wait(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        with producer.batch() as batch:
            proxy.hold(TO_CLIENT)
            producer.publish("x", routing_key=box.name, message_id="0")
            raise KeyboardInterrupt
    # Of the ten seconds for a confirm.
    assert time.monotonic() - began < 5.0
    assert batch.results == {"0": UNKNOWN}
    assert producers.connections.stats().closed == {"broken": 1}
    proxy.heal()


def test_within_another_it_joins_it(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        proxy.hold(TO_CLIENT)
        with producer.batch() as outer:
            producer.publish("x", routing_key=box.name, message_id="0")
            with producer.batch(max_size=1) as inner:
                producer.publish("x", routing_key=box.name, message_id="1")
            # Its end is not the end.
            assert outer.results == inner.results == {"0": UNKNOWN, "1": UNKNOWN}
            proxy.heal()
            producer.publish("x", routing_key=box.name, message_id="2")
        assert outer.results == {"0": ACKED, "1": ACKED, "2": ACKED}
        with producer.batch():
            with pytest.raises(KeyError), producer.batch():
                raise KeyError("a bug")
            with pytest.raises(RuntimeError, match="aborted batch"):
                producer.publish("x", routing_key=box.name)


def test_a_failure_is_told_once(producers: pools.ProducerPool, full: str, box: Inbox) -> None:  # noqa: F811
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch() as batch:
            producer.publish("x", routing_key=full, message_id="0")
            with pytest.raises(BatchFailed):
                batch.flush()
            # Whoever flushed has heard of it, and may go on.
            producer.publish("x", routing_key=box.name, message_id="1")
        assert batch.results == {"0": NACKED, "1": ACKED}


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", None])
def test_a_size_that_is_none(producers: pools.ProducerPool, wrong: Any) -> None:
    with (
        producers.acquire(timeout=PATIENCE) as producer,
        pytest.raises(ValueError, match="max_size"),
    ):
        producer.batch(wrong)


def test_a_producer_that_is_given_back_in_the_block(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    producer = producers.acquire(timeout=PATIENCE)
    producer.publish("warm", routing_key=box.name)
    proxy.hold(TO_CLIENT)
    with pytest.raises(LeaseError), producer.batch():
        producer.publish("x", routing_key=box.name)
        producer.release()
    assert producers.connections.stats().closed == {"broken": 1}
    with pytest.raises(LeaseError):
        producer.batch()
    proxy.heal()


@pytest.mark.parametrize("confirm", [True, False])
def test_a_producer_that_is_dropped_in_the_block_comes_back_as_capacity(
    amqp_url: str, box: Inbox, caplog: pytest.LogCaptureFixture, confirm: bool
) -> None:
    aliases = Pools(default={"url": amqp_url, "limit": 1, "confirm": confirm})

    def lose() -> None:
        producer = aliases.producers["default"].acquire(timeout=PATIENCE)
        producer.batch().__enter__()
        for number in range(5):
            producer.publish(number, routing_key=box.name)

    lose()
    gc.collect()
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("next", routing_key=box.name)
    (record,) = (one for one in caplog.records if one.levelno == logging.WARNING)
    assert "dropped without a release" in record.getMessage()
    assert aliases.connections["default"].stats().closed == {"dropped": 1}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=repr)
def test_its_end_is_nothing_to_the_next_borrowers_batch(
    producers: pools.ProducerPool,
    full: str,  # noqa: F811
    box: Inbox,
    error: BaseException | None,
) -> None:
    first = producers.acquire(timeout=PATIENCE)
    late = first.batch()
    late.__enter__()
    first.publish("x", routing_key=box.name)
    late.flush()
    first.release()
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(BatchFailed) as caught, producer.batch():
            producer.publish("x", routing_key=full, message_id="0")
            with pytest.raises(LeaseError) if error is None else nullcontext():
                late.__exit__(error and type(error), error, None)
    assert caught.value.results == {"0": NACKED}


def test_others_on_the_channel_wait_for_their_confirms(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer, producer.batch() as batch:
        producer.publish("x", routing_key=box.name, message_id="0")
        kombu.Producer(producer.channel).publish("y", routing_key=box.name, message_id="1")
        assert in_queue(box) == 2
    assert batch.results == {"0": ACKED, "1": ACKED}


# -- full buffers ------------------------------------------------------------------------------------------------------


def test_bodies_that_come_back_do_not_fill_the_buffers(
    producers: pools.ProducerPool, box: Inbox
) -> None:
    """Each message comes back with its body: unread, they would keep the broker from reading ours."""
    with producers.acquire(timeout=PATIENCE) as producer, pytest.raises(BatchFailed) as caught:
        with producer.batch():
            for number in range(64):
                producer.publish(
                    b"x" * 500_000,
                    routing_key=f"{box.name}-nobody",
                    mandatory=True,
                    message_id=str(number),
                )
                # The one that was sent last, at most.
                assert (
                    producer._lease.item.pooled_session.confirms.returnable
                    <= publisher_module.MOST_RETURNABLE
                )
    assert caught.value.results == {str(number): RETURNED for number in range(64)}


def test_a_slow_broker_takes_bodies_larger_than_the_buffers(
    producers: pools.ProducerPool,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(b"", routing_key=box.name)
        proxy.hold(TO_SERVER)
        later = threading.Timer(0.2, proxy.heal)
        later.start()
        with producer.batch() as batch:
            for _ in range(20):
                producer.publish(b"x" * 1_000_000, routing_key=box.name)
        later.join()
    assert set(batch.results.values()) == {ACKED}
    assert in_queue(box) == 21


def test_a_broker_that_reads_no_more(make: MakePool, proxy: Proxy, box: Inbox) -> None:  # noqa: F811
    producers = make(confirm_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(BatchFailed) as caught, producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(b"", routing_key=box.name, timeout=PATIENCE)
        proxy.hold(TO_SERVER)
        with producer.batch():
            for _ in range(100):
                producer.publish(b"x" * 1_000_000, routing_key=box.name)
    assert time.monotonic() - began < 10.0
    assert set(caught.value.results.values()) == {UNKNOWN}
    proxy.heal()
    sound(producers, box.name)


# -- without confirms, and elsewhere -----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(url: str) -> Iterator[pools.ProducerPool]:
    connections = pools.ConnectionPool(kombu.Connection(url), limit=1)
    yield pools.ProducerPool(connections)
    connections.force_close_all()


def test_the_same_interface_everywhere(
    elsewhere: pools.ProducerPool, url: str, inbox: MakeInbox
) -> None:
    box = inbox(url)
    with elsewhere.acquire(timeout=PATIENCE) as producer:
        with producer.batch(max_size=3) as batch:
            for number in range(7):
                producer.publish(number, routing_key=box.name)
            batch.flush()
            with producer.batch():
                producer.publish(7, routing_key=box.name)
        with pytest.raises(KeyError), producer.batch():
            with pytest.raises(KeyError), producer.batch():
                raise KeyError("a bug")
            with pytest.raises(RuntimeError, match="aborted"):
                producer.publish("x", routing_key=box.name)
            raise KeyError("a bug")
        producer.publish(8, routing_key=box.name)
    messages = box.messages(9)
    assert [message.payload for message in messages] == list(range(9))
    assert len({message.properties["message_id"] for message in messages}) == 9


@pytest.mark.redis
def test_on_redis_it_is_kombus_own(redis_url: str, inbox: MakeInbox) -> None:
    if not hasattr(kombu.Producer, "batch"):
        pytest.skip("this kombu has no batch")
    box = inbox(redis_url)
    producers = pools.ProducerPool(pools.ConnectionPool(kombu.Connection(redis_url), limit=1))
    with producers.acquire(timeout=PATIENCE) as producer:
        with producer.batch():
            producer.publish("x", routing_key=box.name)
            kept = box.bodies() if producer.supports_batch_publish else []
        assert kept == []
    assert box.bodies(1) == ["x"]
    producers.connections.force_close_all()


@pytest.mark.redis
def test_on_redis_all_answers_together_have_one_time(
    redis_url: str, inbox: MakeInbox, proxied: Callable[[str], Proxy]
) -> None:
    if not hasattr(kombu.Producer, "batch"):
        pytest.skip("this kombu has no batch")
    box, dripping = inbox(redis_url), proxied(redis_url)
    connection = kombu.Connection(through(dripping, redis_url))
    producers = pools.ProducerPool(
        pools.ConnectionPool(connection, limit=1, confirm_timeout=PATIENCE), confirm_timeout=0.2
    )
    with producers.acquire(timeout=PATIENCE) as producer:
        for end in (lambda batch: batch.flush(), lambda batch: None):
            with pytest.raises(Exception, match="uncertain"):
                with producer.batch() as batch:
                    for number in range(100):
                        producer.publish(number, routing_key=box.name)
                    # 400 bytes of answers: for so long that the test would fail.
                    dripping.drip(0.1, TO_CLIENT)
                    end(batch)
            dripping.heal()
    producers.connections.force_close_all()


def test_by_alias(amqp_url: str, box: Inbox) -> None:
    aliases = Pools(
        default={"url": amqp_url, "confirm": True}, loose={"url": amqp_url, "confirm": False}
    )
    for using, confirmed in (("default", True), ("loose", False)):
        with aliases.producers[using].acquire(timeout=PATIENCE) as producer:
            assert producer.supports_batch_publish
            with producer.batch() as batch:
                producer.publish(using, routing_key=box.name)
        if confirmed:
            assert set(batch.results.values()) == {ACKED}
    assert box.bodies(2) == ["default", "loose"]


def test_in_a_batch_nothing_is_tried_again(
    amqp_url: str,
    proxy: Proxy,  # noqa: F811
    box: Inbox,
) -> None:
    aliases = Pools(default={"url": through(proxy, amqp_url)})
    with pytest.raises(BatchFailed) as caught:
        with aliases.producers["default"].acquire(timeout=PATIENCE) as producer, producer.batch():
            producer.publish("x", routing_key=box.name, message_id="0")
            proxy.cut(rst=True)
            producer.publish("x", routing_key=box.name, message_id="1", retry=True)
    assert set(caught.value.results) == {"0", "1"}
    assert proxy.accepted == 1
