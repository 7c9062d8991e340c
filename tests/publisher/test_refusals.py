"""What the broker refuses costs those an error who have published it, and nobody else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from kombu_pools_ext.errors import PublishNacked, PublishReturned
from tests.broker.common import eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import Node
from tests.publisher.conftest import Crowd, Fanned, MakePools, publisher_of

MakeInbox = Callable[[str], Inbox]


def test_a_missing_exchange(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned]
) -> None:
    pools, to = shared(amqp_url), fanned(amqp_url)

    def publish(thread: int) -> None:
        for number in range(15):
            if thread >= 8:
                with pytest.raises(NotFound) as caught:
                    pools.publish("x", "k", exchange=f"{to.names[0]}-not-there")
                assert caught.value.reply_code == 404
            else:
                pools.publish((thread, number), "k", exchange=to.names[thread % 4])

    assert Crowd(12, publish).errors() == []
    assert [len(one) for one in to.bodies().values()] == [30] * 4
    assert pools.connections["default"].stats().opened == 1


def test_a_refused_permission(node: Node, shared: MakePools, fanned: Callable[..., Fanned]) -> None:
    to = fanned(node.url)
    user = f"user-{uuid.uuid4().hex}"
    node.add_user(user, "pw", write=f"^({'|'.join(to.names[1:])})$")
    pools = shared(node.url_of(user, "pw"))
    try:

        def publish(thread: int) -> None:
            for number in range(15):
                if thread >= 8:
                    with pytest.raises(AccessRefused):
                        pools.publish("x", "k", exchange=to.names[0])
                else:
                    pools.publish((thread, number), "k", exchange=to.names[1 + thread % 3])

        assert Crowd(12, publish).errors() == []
        assert sum(len(one) for one in to.bodies().values()) == 8 * 15
        assert pools.connections["default"].stats().opened == 1
    finally:
        node.delete_user(user)


def test_a_bad_message_among_good_ones_to_the_same_exchange(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned]
) -> None:
    pools, to = shared(amqp_url), fanned(amqp_url, 2)

    def publish(thread: int) -> None:
        for number in range(10):
            if thread >= 10:
                with pytest.raises(PreconditionFailed):
                    pools.publish("bad", "k", exchange=to.names[0], user_id="somebody else")
            else:
                pools.publish((thread, number), "k", exchange=to.names[thread % 2])

    assert Crowd(12, publish).errors() == []
    found = to.bodies()
    for thread in range(10):
        mine = [n for t, n in map(tuple, found[to.names[thread % 2]]) if t == thread]
        # A good one that was sent beside a bad one may be there twice.
        assert list(dict.fromkeys(mine)) == list(range(10))
    assert "bad" not in found[to.names[0]]
    assert pools.connections["default"].stats().opened == 1


@pytest.mark.parametrize("count", [1, 8])
def test_what_no_queue_takes_comes_back(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, count: int
) -> None:
    pools, box = shared(amqp_url), inbox(amqp_url)

    def publish(thread: int) -> None:
        for number in range(10):
            name = f"{thread} {number}"
            with pytest.raises(PublishReturned) as caught:
                pools.publish("x", f"{box.name}-nobody", message_id=name)
            assert caught.value.message_id == name
            pools.publish((thread, number), box.name)
            pools.publish("x", f"{box.name}-nobody", mandatory=False)

    assert Crowd(count, publish).errors() == []
    assert len(box.bodies(10 * count)) == 10 * count
    assert pools.connections["default"].stats().opened == 1


def test_what_is_declared_is_declared_once_and_again_when_it_is_gone(
    amqp_url: str, shared: MakePools, queue: str
) -> None:
    pools = shared(amqp_url)
    entity = kombu.Queue(queue, durable=False)

    def publish(thread: int) -> None:
        pools.publish(thread, entity, declare=[entity])

    box = Inbox.__new__(Inbox)
    box.url, box.name = amqp_url, queue
    try:
        for _ in range(3):
            for count in (1, 8):
                assert Crowd(count, publish).errors() == []
            assert len(box.bodies(9)) == 9
            box.delete()
    finally:
        box.delete()


@pytest.fixture
def full(amqp_url: str, queue: str) -> Any:
    box = Inbox(amqp_url, queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    yield box
    box.delete()


def test_a_full_queue_is_tried_until_the_deadline(
    amqp_url: str, shared: MakePools, full: Inbox, fanned: Callable[..., Fanned]
) -> None:
    pools, to = shared(amqp_url, CONFIRM_TIMEOUT=1.5), fanned(amqp_url, 1)
    pools.publish("one", full.name)

    def publish(thread: int) -> None:
        if thread < 4:
            with pytest.raises(PublishNacked):
                pools.publish(thread, full.name)
        else:
            for number in range(20):
                pools.publish((thread, number), "k", exchange=to.names[0])

    assert Crowd(8, publish).errors() == []
    assert full.bodies() == ["one"]
    assert len(to.bodies()[to.names[0]]) == 80


def test_a_queue_that_is_emptied_meanwhile_takes_it(
    amqp_url: str, shared: MakePools, full: Inbox
) -> None:
    pools = shared(amqp_url)
    pools.publish("one", full.name)
    crowd = Crowd(1, lambda thread: pools.publish("two", full.name))
    publisher = publisher_of(pools)
    eventually(lambda: any(one.nacks for one in publisher._in_flight.messages()))
    assert full.bodies(1) == ["one"]
    assert crowd.errors() == []
    assert full.bodies(1) == ["two"]


@pytest.mark.parametrize("retry", [None, {"nacked": False}], ids=["none", "not of nacks"])
def test_where_it_is_not_retried_a_nack_is_an_error_at_once(
    amqp_url: str, shared: MakePools, full: Inbox, retry: Any
) -> None:
    pools = shared(amqp_url, RETRY=retry)
    pools.publish("one", full.name)
    with pytest.raises(PublishNacked) as caught:
        pools.publish("two", full.name, message_id="mine")
    assert caught.value.message_id == "mine"
    assert "pool" in str(caught.value)
