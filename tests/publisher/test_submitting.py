"""Messages that no thread waits for: each is told of once, whatever happens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext.errors import PublishReturned
from tests.broker.common import eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, through
from tests.proxy import TO_CLIENT, Proxy
from tests.publisher.conftest import Crowd, MakePools, first_arrivals, message, publisher_of

MakeInbox = Callable[[str], Inbox]
MakeProxy = Callable[[str], Proxy]


class Told:
    """What was told of each message, and in which thread."""

    def __init__(self) -> None:
        self.outcomes: dict[str, BaseException | None] = {}
        self.times: Counter[str] = Counter()
        self.threads: set[str] = set()

    def __call__(self, one: Any) -> None:
        self.outcomes[one.message_id] = one.error
        self.threads.add(threading.current_thread().name)
        self.times[one.message_id] += 1

    def wait(self, count: int) -> None:
        """Wait until *count* messages were told of; fail if one was told of twice."""
        eventually(lambda: len(self.times) == count)
        assert set(self.times.values()) == {1}


@pytest.mark.parametrize("broker_url", AMQP, indirect=True)
def test_each_of_a_thousand_is_told_of_once_and_in_order(
    broker_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box, told = shared(broker_url, LIMIT=1), inbox(broker_url), Told()
    publisher = publisher_of(pools)
    for number in range(1000):
        publisher.submit(message(pools, number, box.name, message_id=str(number)), told)
    told.wait(1000)
    assert set(told.outcomes.values()) == {None}
    assert list(map(int, told.outcomes)) == list(range(1000))
    assert box.bodies(1000) == list(range(1000))
    assert threading.current_thread().name not in told.threads


def test_while_connections_are_cut(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    box, proxy, told = inbox(amqp_url), proxied(amqp_url), Told()
    pools = shared(through(proxy, amqp_url), LIMIT=2)
    publisher = publisher_of(pools)
    for number in range(1000):
        publisher.submit(message(pools, number, box.name, message_id=str(number)), told)
        if number % 100 == 50:
            eventually(lambda number=number: len(told.times) >= number - 40)
            (proxy.cut if number % 200 == 50 else proxy.reset)()
    told.wait(1000)
    assert set(told.outcomes.values()) == {None}
    assert first_arrivals(box.bodies(1000)) == list(range(1000))


def test_beside_threads_that_wait(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    box, proxy, told = inbox(amqp_url), proxied(amqp_url), Told()
    pools = shared(through(proxy, amqp_url), LIMIT=2)
    publisher = publisher_of(pools)

    def publish(thread: int) -> None:
        for number in range(40):
            name = f"{thread} {number}"
            if thread % 2:
                publisher.submit(message(pools, "x", box.name, message_id=name), told)
            else:
                pools.publish("x", box.name, message_id=name)
            if thread == 0 and number % 10 == 5:
                proxy.cut()

    assert Crowd(8, publish).errors() == []
    told.wait(160)
    assert set(told.outcomes.values()) == {None}
    ids = {one.properties["message_id"] for one in box.messages(320)}
    assert ids == {f"{thread} {number}" for thread in range(8) for number in range(40)}


def test_an_outage_within_its_time_costs_no_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    box, proxy, told = inbox(amqp_url), proxied(amqp_url), Told()
    pools = shared(through(proxy, amqp_url))
    publisher = publisher_of(pools)
    pools.publish("warm", box.name)
    proxy.refuse()
    proxy.cut()
    came = proxy.accepted
    for number in range(5):
        publisher.submit(message(pools, number, box.name, message_id=str(number)), told)
    eventually(lambda: proxy.accepted > came + 2)
    proxy.heal()
    told.wait(5)
    assert set(told.outcomes.values()) == {None}
    assert box.bodies(6) == ["warm", *range(5)]


def test_an_outage_that_lasts_is_told_of_at_the_deadline(
    amqp_url: str, shared: MakePools, nowhere: int
) -> None:
    pools, told = shared(f"amqp://127.0.0.1:{nowhere}//"), Told()
    one = message(pools, "x", "q", message_id="mine", acquire_timeout=0.5)
    publisher_of(pools).submit(one, told)
    told.wait(1)
    assert isinstance(told.outcomes["mine"], OperationalError)


def test_what_the_broker_refuses(amqp_url: str, shared: MakePools, inbox: MakeInbox) -> None:
    pools, box, told = shared(amqp_url), inbox(amqp_url), Told()
    publisher = publisher_of(pools)
    for number in range(30):
        key = f"{box.name}-nobody" if number % 3 == 0 else box.name
        publisher.submit(message(pools, number, key, message_id=str(number)), told)
    told.wait(30)
    for number in range(30):
        error = told.outcomes[str(number)]
        assert isinstance(error, PublishReturned) if number % 3 == 0 else error is None
    assert len(box.bodies(20)) == 20


def test_a_callback_that_fails_costs_the_others_nothing(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    pools, box, told = shared(amqp_url), inbox(amqp_url), Told()
    publisher = publisher_of(pools)

    def fail(one: Any) -> None:
        raise ValueError("of the application")

    publisher.submit(message(pools, "x", box.name), fail)
    for number in range(5):
        publisher.submit(message(pools, number, box.name, message_id=str(number)), told)
    told.wait(5)
    assert "of the application" in caplog.text


def test_the_reading_thread_ends_and_comes_again(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it ends at every moment in which another message comes.
    monkeypatch.setattr("kombu_pools_ext.publisher.reader.IDLE", 0.0)
    pools, box, told = shared(amqp_url), inbox(amqp_url), Told()
    publisher = publisher_of(pools)
    for number in range(300):
        publisher.submit(message(pools, number, box.name, message_id=str(number)), told)
        if number % 3:
            eventually(lambda number=number: len(told.times) == number + 1)
    told.wait(300)
    assert box.bodies(300) == list(range(300))


def test_a_time_out_is_told_of(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    box, proxy, told = inbox(amqp_url), proxied(amqp_url), Told()
    pools = shared(through(proxy, amqp_url), CONFIRM_TIMEOUT=0.5)
    pools.publish("warm", box.name)
    proxy.hold(TO_CLIENT)
    publisher_of(pools).submit(message(pools, "x", box.name, message_id="mine"), told)
    told.wait(1)
    assert isinstance(told.outcomes["mine"], TimeoutError)
    assert "may be in the broker" in str(told.outcomes["mine"])
