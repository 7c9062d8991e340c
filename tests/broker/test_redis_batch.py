"""kombu's batch on Redis: an error of it says which messages are confirmed, which may be there, and which are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kombu
import pytest
from kombu.exceptions import EncodeError

from kombu_pools_ext.aliases import Pools
from tests.broker.common import PATIENCE
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
