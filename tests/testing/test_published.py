"""What was published, and the assertions about it: what matches, and what a failure shows."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import celery
import pytest
from kombu import Exchange, Queue

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import adopt
from kombu_pools_ext.errors import Outcome, PublishReturned
from kombu_pools_ext.testing import Broker, Publication, Published, brokers

ORDERS = Exchange("orders", "topic")
CREATED = Queue("created", ORDERS, routing_key="created.#")


@pytest.fixture
def published(aliases: Pools) -> Published:
    return brokers.published


def failure(published: Published, **expected: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        published.assert_published(**expected)
    return str(caught.value)


def test_all_that_is_known_of_a_message(aliases: Pools, published: Published) -> None:
    aliases.publish(
        {"id": 1},
        exchange=ORDERS,
        routing_key="created.eu",
        declare=[CREATED],
        headers={"tenant": 7},
        priority=3,
        expiration=60,
    )
    one = published.one()
    assert one.body == {"id": 1}
    assert one.raw == b'{"id": 1}'
    assert (one.exchange, one.routing_key) == ("orders", "created.eu")
    assert one.headers == {"tenant": 7}
    assert one.properties["priority"] == 3
    assert one.properties["expiration"] == "60000"
    assert one.properties["content_type"] == "application/json"
    assert one.message_id == one.properties["message_id"]
    assert one.alias == "default"
    assert one.queues == ("created",)
    assert one.outcome == Outcome.ACKED
    assert not one.on_commit
    assert one.task is None


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"serializer": "pickle"}, {}])
def test_a_body_is_what_a_consumer_gets(
    aliases: Pools, published: Published, options: dict[str, Any]
) -> None:
    aliases.publish({"id": 1}, routing_key="q", declare=[Queue("q")], **options)
    assert published.one().body == {"id": 1}
    aliases.publish(
        b"\xff", routing_key="q", content_type="application/json", content_encoding="utf-8"
    )
    assert published[1].body == b"\xff"


def test_what_came_to_nothing_is_there_too(aliases: Pools, published: Published) -> None:
    with pytest.raises(PublishReturned):
        aliases.publish("returned", routing_key="none")
    with pytest.raises(Exception, match="no exchange"):
        aliases.publish("refused", exchange="none", routing_key="k", retry=False)
    outcomes = {one.body: one.outcome for one in published}
    assert outcomes == {"returned": "RETURNED", "refused": "REFUSED"}
    assert published.to("none")[0].reason == "NOT_FOUND - no exchange 'none' in vhost '/'"


def test_it_is_like_a_list(aliases: Pools, published: Published) -> None:
    assert not published
    for number in range(3):
        aliases.publish(number, routing_key="q", declare=[Queue("q")])
    assert [one.body for one in published] == [0, 1, 2]
    assert len(published) == 3
    assert published[-1].body == 2
    assert [one.body for one in published[1:]] == [1, 2]
    assert published[0] in published
    assert published == list(published)
    assert published != published[1:]
    assert "3\n" in repr(published)
    published.clear()
    assert list(published) == []


def test_messages_of_one_exchange_or_queue(aliases: Pools, published: Published) -> None:
    aliases.publish(1, exchange=ORDERS, routing_key="created", declare=[CREATED])
    aliases.publish(2, routing_key="q", declare=[Queue("q")])
    assert published.to("orders").one().body == 1
    assert published.to("created").one().body == 1
    assert published.to("q").one().body == 2
    with pytest.raises(AssertionError, match="not one message, but <Published: 2"):
        published.one()
    with pytest.raises(AssertionError, match="not one message, but <Published: 0"):
        published.to("other").one()


def test_what_is_compared(aliases: Pools, published: Published) -> None:
    aliases.publish(
        {"id": 1, "lines": (1, 2)},
        exchange=ORDERS,
        routing_key="created",
        declare=[CREATED],
        headers={"tenant": 7, "more": 1},
    )
    found = published.assert_published(
        body={"id": ANY, "lines": (1, 2)},
        exchange="orders",
        routing_key=lambda key: key.startswith("cre"),
        headers={"tenant": 7},
        properties={"priority": 0},
        using="default",
        queue="created",
        outcome="ACKED",
        on_commit=False,
    )
    assert isinstance(found.one(), Publication)
    published.assert_published(headers=lambda headers: len(headers) == 2)
    published.assert_published()
    for expected in (
        {"body": {"id": 2}},
        {"exchange": ""},
        {"routing_key": "Created"},
        {"headers": {"tenant": 8}},
        {"headers": {"other": 7}},
        {"headers": lambda headers: not headers},
        {"properties": {"priority": 1}},
        {"using": "audit"},
        {"queue": "q"},
        {"outcome": "NACKED"},
        {"on_commit": True},
        {"task": "add"},
    ):
        assert failure(published, **expected).startswith("not published: ")
        published.assert_nothing_published(**expected)
    with pytest.raises(TypeError, match="bodyy"):
        published.assert_published(bodyy=1)


def test_how_often(aliases: Pools, published: Published) -> None:
    for _ in range(2):
        aliases.publish("x", routing_key="q", declare=[Queue("q")])
    published.assert_published(times=2, body="x")
    published.assert_published(times=0, body="y")
    assert "published 2 times, and not 1 times: body='x'" in failure(published, times=1, body="x")
    assert failure(published, times=1, body="y").startswith("not published 1 times: body='y'")


def test_nothing_published(aliases: Pools, published: Published) -> None:
    published.assert_nothing_published()
    assert failure(published).endswith("nothing was published")
    aliases.publish("x", routing_key="q", declare=[Queue("q")])
    published.assert_nothing_published(body="y")
    with pytest.raises(AssertionError, match="routing key 'q', alias 'default': 'x'"):
        published.assert_nothing_published()


def test_a_failure_shows_the_nearest_first_and_how_it_differs(
    aliases: Pools, published: Published
) -> None:
    for body, key in (
        ({"id": 99, "state": "cancelled", "total": "0.00"}, "cancelled"),
        ({"id": 1, "state": "paid", "total": "10.00"}, "created"),
        ({"id": 2}, "created"),
        ({"nothing": "alike"}, "other"),
    ):
        aliases.publish(body, routing_key=key, declare=[Queue(key)])
    told = failure(
        published, routing_key="created", body={"id": 1, "state": "new", "total": "10.00"}
    )
    assert "4 published, the nearest first:" in told
    assert told.index("'paid'") < told.index("{'id': 2}") < told.index("'cancelled'")
    assert "- {'id': 1, 'state': 'new', 'total': '10.00'}" in told
    assert "+ {'id': 1, 'state': 'paid', 'total': '10.00'}" in told
    assert told.endswith("and 1 more")
    # What does not differ is not shown.
    assert told.count("routing_key differs") == 1


def test_a_task_of_celery(aliases: Pools, published: Published) -> None:
    app = celery.Celery("shop", broker="test://default", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    adopt(app, using="default")
    sent = add.delay(3, b=4)
    task = published.assert_published(task="add", queue="celery").one().task
    assert task is not None
    assert (task.name, task.args, task.kwargs, task.id) == ("add", [3], {"b": 4}, sent.id)


def test_all_brokers_share_one_list(aliases: Pools, published: Published, broker: Broker) -> None:
    aliases.publish(1, routing_key="q", declare=[Queue("q")])
    aliases.publish(2, routing_key="q", declare=[Queue("q")], using="audit")
    aliases.publish(3, routing_key="q")
    assert [(one.alias, one.body) for one in published] == [
        ("default", 1),
        ("audit", 2),
        ("default", 3),
    ]
    assert broker.published is published
