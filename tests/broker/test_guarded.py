"""A guarded producer is used by one thread at a time, and taken back between two uses."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.guarded import guarded
from kombu_pools_ext.errors import LeaseError

from .common import eventually, within

_numbers = itertools.count()


@pytest.fixture
def pools() -> Pools:
    return Pools(default={"URL": f"memory://guarded{next(_numbers)}", "CONFIRM_TIMEOUT": 5})


class Waits:
    """A body that is published for as long as the test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __json__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(30)
        return "waited"


def lend(pools: Pools) -> Any:
    return guarded(pools.producers["default"].acquire(timeout=5))


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_it_is_a_producer_like_any_other(pools: Pools) -> None:
    producer = lend(pools)
    assert isinstance(producer, kombu.Producer)
    assert type(producer).__name__ == "Producer"
    producer.publish({}, "queue")
    with producer.batch() as batch:
        producer.publish({}, "queue")
        batch.flush()
    producer.release()
    assert producer.released
    producer.dismiss()
    assert pools.connections["default"].lent == 0


def test_a_second_thread_waits_for_the_first_ones_publish(pools: Pools) -> None:
    producer, body = lend(pools), Waits()
    order: list[str] = []
    first = in_thread(lambda: (producer.publish(body, "queue"), order.append("first")))
    assert body.begun.wait(30)
    second = in_thread(lambda: (producer.publish({}, "queue"), order.append("second")))
    body.go_on.set()
    first.join(30)
    second.join(30)
    assert sorted(order) == ["first", "second"]
    producer.release()


def test_a_second_thread_does_not_wait_for_ever(pools: Pools) -> None:
    pools.producers["default"].confirm_timeout = 0.05
    producer, body = lend(pools), Waits()
    first = in_thread(lambda: producer.publish(body, "queue"))
    assert body.begun.wait(30)
    with pytest.raises(
        LeaseError, match=r"another thread has been using this producer for 0\.05 s"
    ):
        within(30, lambda: producer.publish({}, "queue"))
    body.go_on.set()
    first.join(30)
    producer.release()


def test_dismissed_in_the_middle_of_a_publish_it_goes_back_after_it(pools: Pools) -> None:
    producer, body = lend(pools), Waits()
    first = in_thread(lambda: producer.publish(body, "queue"))
    assert body.begun.wait(30)
    assert producer.publishing
    producer.dismiss()
    assert (producer.released, pools.connections["default"].lent) == (False, 1)
    body.go_on.set()
    first.join(30)
    eventually(lambda: pools.connections["default"].lent == 0)
    with pytest.raises(LeaseError):
        producer.publish({}, "queue")


def test_dismissed_in_the_block_of_a_batch_it_goes_back_after_the_block(pools: Pools) -> None:
    producer = lend(pools)
    with producer.batch():
        producer.publish({}, "queue")
        within(30, producer.dismiss)
        producer.publish({}, "queue")
        assert not producer.released
    assert producer.released


def test_a_batch_that_cannot_begin_is_no_use(pools: Pools) -> None:
    producer = lend(pools)
    batch = producer.batch()
    producer.release()
    with pytest.raises(LeaseError), batch:
        producer.publish({}, "queue")
    again = lend(pools)
    within(30, lambda: again.publish({}, "queue"))
    again.dismiss()
    assert again.released
