"""Many threads at once over one connection: everything arrives once, in each thread's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.broker.common import eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, through
from tests.proxy import TO_SERVER, Proxy
from tests.publisher.conftest import Crowd, Fanned, MakePools, publisher_of

MakeInbox = Callable[[str], Inbox]


def in_order(bodies: list[Any], threads: int, each: int) -> None:
    """Fail unless each of *threads* has all its messages in *bodies*, once, in their order."""
    for thread in range(threads):
        assert [n for t, n in bodies if t == thread] == list(range(each))


@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize("broker_url", AMQP, indirect=True)
def test_everything_arrives_once_and_in_order_over_one_connection(
    broker_url: str, shared: MakePools, fanned: Callable[..., Fanned], limit: int
) -> None:
    pools, to = shared(broker_url, LIMIT=limit), fanned(broker_url)

    def publish(thread: int) -> None:
        for number in range(25):
            for exchange in to.names:
                pools.publish((thread, number), "k", exchange=exchange)

    assert Crowd(32, publish).errors() == []
    for bodies in to.bodies().values():
        assert len(bodies) == 32 * 25
        in_order(bodies, 32, 25)
    assert pools.connections["default"].stats().opened == 1
    eventually(lambda: pools.connections["default"].stats().lent == 0)


def test_one_connection_at_the_broker(node: Any, shared: MakePools, inbox: MakeInbox) -> None:
    # So that another test's connections, which may be closing, are not counted.
    properties = {"test": "one connection"}
    pools = shared(node.url, TRANSPORT_OPTIONS={"client_properties": properties})
    box = inbox(node.url)
    seen: list[int] = []

    def publish(thread: int) -> None:
        for number in range(20):
            pools.publish((thread, number), box.name)
            if thread == 0 and number == 10:
                rows = node.list_connections()
                marks = [row["client_properties"].get("test") for row in rows]
                seen.append(marks.count(properties["test"]))

    assert Crowd(16, publish).errors() == []
    assert seen == [1]
    in_order(box.bodies(320), 16, 20)


def test_more_exchanges_than_channels(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned]
) -> None:
    pools, to = shared(amqp_url), fanned(amqp_url, 40)

    def publish(thread: int) -> None:
        for number in range(2):
            for exchange in to.names[thread:] + to.names[:thread]:
                pools.publish((thread, number), "k", exchange=exchange)

    assert Crowd(8, publish).errors() == []
    for bodies in to.bodies().values():
        in_order(bodies, 8, 2)
    assert pools.connections["default"].stats().opened == 1


@pytest.mark.parametrize("in_flight", [1, 3])
def test_those_beyond_the_bound_wait(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, in_flight: int
) -> None:
    pools, box = shared(amqp_url, IN_FLIGHT=in_flight), inbox(amqp_url)

    def publish(thread: int) -> None:
        for number in range(10):
            pools.publish((thread, number), box.name)

    assert Crowd(32, publish).errors() == []
    in_order(box.bodies(320), 32, 10)
    assert publisher_of(pools).live == 0


def test_a_body_over_the_bound_takes_a_lease(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)

    def publish(thread: int) -> None:
        pools.publish("x" * (200_000 if thread % 2 else 10), box.name)

    assert Crowd(8, publish).errors() == []
    assert sorted(map(len, box.bodies(8))) == [10] * 4 + [200_000] * 4


@pytest.mark.parametrize("broker_url", AMQP, indirect=True)
def test_bodies_that_fill_the_buffer_of_the_socket(
    broker_url: str,
    shared: MakePools,
    inbox: MakeInbox,
    proxied: Callable[[str], Proxy],
) -> None:
    box, proxy = inbox(broker_url), proxied(broker_url)
    pools = shared(through(proxy, broker_url))
    pools.publish((0, -1, ""), box.name)
    proxy.delay(0.05, TO_SERVER)

    def publish(thread: int) -> None:
        for number in range(10):
            pools.publish((thread, number, "x" * 100_000), box.name)

    assert Crowd(8, publish).errors() == []
    found = [(t, n) for t, n, _ in box.bodies(81)][1:]
    assert len(found) == 80
    in_order(found, 8, 10)
    assert pools.connections["default"].stats().opened == 1


def test_small_messages_go_on_beside_large_ones(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned]
) -> None:
    pools, to = shared(amqp_url), fanned(amqp_url, 2)

    def publish(thread: int) -> None:
        large = thread % 2
        for number in range(20):
            pools.publish((thread, number, "x" * 120_000 * large), "k", exchange=to.names[large])

    assert Crowd(16, publish).errors() == []
    assert [len(bodies) for bodies in to.bodies().values()] == [160, 160]


def test_headers_larger_than_a_frame_cost_only_their_caller_an_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)

    def publish(thread: int) -> None:
        for number in range(10):
            headers = {"a": "x" * 200_000} if thread == 3 else {}
            pools.publish((thread, number), box.name, headers=headers)

    (error,) = Crowd(8, publish).errors()
    assert isinstance(error, ValueError)
    assert len(box.bodies(70)) == 70
    assert pools.connections["default"].stats().closed == {}


def test_each_keyword_has_its_effect_over_the_shared_connection_or_a_lease(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)
    pools.publish("compressed", box.name, compression="gzip")
    pools.publish("expires", box.name, expiration=60, priority=3, headers={"a": 1})
    # Nobody reads it, and it does not come back: a reply is never mandatory.
    pools.publish("reply", "amq.rabbitmq.reply-to.nobody")
    assert box.bodies(2) == ["compressed", "expires"]
