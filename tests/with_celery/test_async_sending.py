"""``asend_task``: what Celery would send, published in a coroutine; and the priorities of brokers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import celery
import kombu
import pytest
from celery import signals
from kombu.exceptions import LimitExceeded, OperationalError

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import CannotAdopt
from kombu_pools_ext.contrib.celery.async_sending import asend_task
from kombu_pools_ext.contrib.celery.priorities import priority_for
from tests.with_celery.conftest import MakePools, tasks_of

MakeApp = Callable[..., Any]


@pytest.fixture(params=["memory", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://async-sending"
    return str(request.getfixturevalue("amqp_url"))


@pytest.fixture
def pools(url: str, make_pools: MakePools) -> Pools:
    return make_pools(url)


def send(app: celery.Celery, *args: Any, **options: Any) -> None:
    asyncio.run(asend_task(app, *args, **options))


def without_its_own(message: kombu.Message) -> tuple[Any, ...]:
    """What two messages of the same call have in common."""
    own = ("id", "root_id", "message_id", "correlation_id", "delivery_tag", "reply_to")
    own += ("application_headers",)
    return (
        {name: one for name, one in message.headers.items() if name not in own},
        {name: one for name, one in message.properties.items() if name not in own},
        message.payload,
    )


def test_the_message_is_that_of_send_task(url: str, pools: Pools, make_app: MakeApp) -> None:
    app = make_app(url, pools)
    options = {"countdown": 60, "priority": 3, "headers": {"own": 1}, "expires": 100}
    app.send_task("add", (1,), {"b": 2}, ignore_result=True, **options)
    send(app, "add", (1,), {"b": 2}, task_id="its-id", **options)
    one, other = tasks_of(app, 2)
    assert other.headers["id"] == "its-id"
    assert other.properties["correlation_id"] == "its-id"
    for message in (one, other):
        # They are of different moments.
        for name in ("eta", "expires"):
            assert message.headers.pop(name)
    assert without_its_own(one) == without_its_own(other)
    # As commands show it.
    assert pools.task_counter("default").count == 2
    assert "message_id" in other.properties


def test_signals_are_sent_before_and_after_the_publish(
    url: str, pools: Pools, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(url, pools)
    told: list[str] = []
    apublish = Pools.apublish

    async def note(*args: Any, **kwargs: Any) -> None:
        await apublish(*args, **kwargs)
        told.append("published")

    def before(headers: Any, **what: Any) -> None:
        headers["own"] = 5
        told.append("before")

    def after(sender: Any, headers: Any, body: Any, **what: Any) -> None:
        assert (sender, headers["own"], list(body[0])) == ("add", 5, [1])
        told.append("after")

    monkeypatch.setattr(Pools, "apublish", note)
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        send(app, "add", [1], task_id="its-id")
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert told == ["before", "published", "after"]
    (message,) = tasks_of(app, 1)
    assert message.headers["own"] == 5


def test_the_event_is_sent_where_it_is_wanted(url: str, pools: Pools, make_app: MakeApp) -> None:
    app = make_app(url, pools, task_send_sent_event=True)
    with kombu.Connection(url) as connection:
        events = kombu.Exchange(app.conf.event_exchange, "topic")
        bound = kombu.Queue(f"{app.main}-heard", events, routing_key="task.#", auto_delete=True)(
            connection.default_channel
        )
        bound.declare()
        app.send_task("add", (1,), ignore_result=True)
        send(app, "add", (1,), task_id="its-id")
        one, other = (bound.get(no_ack=True).payload for _ in range(2))
        bound.delete()
    changing = {"uuid", "root_id", "clock", "timestamp", "local_received"}
    assert other["uuid"] == "its-id"
    assert {name: value for name, value in one.items() if name not in changing} == {
        name: value for name, value in other.items() if name not in changing
    }


def test_retry_is_the_aliass_unless_the_call_has_its_own(
    make_pools: MakePools, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://async-sending"
    app = make_app(url, make_pools(url))
    seen: list[dict[str, Any]] = []

    async def note(self: Any, body: Any, **kwargs: Any) -> None:
        seen.append({one: kwargs[one] for one in ("retry", "retry_policy") if one in kwargs})

    monkeypatch.setattr(Pools, "apublish", note)
    send(app, "add", task_id="1")
    send(app, "add", task_id="2", retry=False)
    send(app, "add", task_id="3", retry_policy={"max_retries": 7})
    assert seen[:2] == [{}, {"retry": False}]
    assert (seen[2]["retry"], seen[2]["retry_policy"]["max_retries"]) == (True, 7)


def test_an_exhausted_pool_is_celerys_error(make_pools: MakePools, make_app: MakeApp) -> None:
    url = "memory://exhausted"
    pools = make_pools(url, LIMIT=1, ACQUIRE_TIMEOUT=0.05)
    app = make_app(url, pools)
    with pools.connections["default"].acquire():
        with pytest.raises(OperationalError) as caught:
            send(app, "add", task_id="1")
    assert isinstance(caught.value.__cause__, LimitExceeded)


def test_only_an_adopted_application_can(make_pools: MakePools, make_app: MakeApp) -> None:
    app = make_app("memory://async-sending")
    with pytest.raises(CannotAdopt, match=r"adopt\(\) it first"):
        send(app, "add", task_id="1")
    other = make_app("memory://async-sending", make_pools("amqp://elsewhere//"))
    with pytest.raises(CannotAdopt, match="amqp://elsewhere"):
        send(other, "add", task_id="1")


# -- priorities --------------------------------------------------------------------------------------------------------

URGENCIES = (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize(
    "settings, queue, expected",
    [
        ("amqp://", kombu.Queue("q", max_priority=10), [0, 2, 5, 8, 10]),
        ("amqp://", kombu.Queue("q", queue_arguments={"x-max-priority": 4}), [0, 1, 2, 3, 4]),
        ("amqp://", kombu.Queue("q"), [None] * 5),
        ("amqp://", None, [None] * 5),
        ("redis://", kombu.Queue("q"), [9, 6, 6, 3, 0]),
        ("sentinel://", None, [9, 6, 6, 3, 0]),
        ("memory://", kombu.Queue("q", max_priority=10), [None] * 5),
    ],
)
def test_priorities(settings: str, queue: Any, expected: list[Any]) -> None:
    one = SimpleNamespace(
        is_amqp=settings == "amqp://", transport=settings[:-3], transport_options={}
    )
    assert [priority_for(urgency, one, queue) for urgency in URGENCIES] == expected


def test_the_steps_of_redis_are_those_of_the_options() -> None:
    options = {"priority_steps": [0, 1, 2, 3, 4]}
    one = SimpleNamespace(is_amqp=False, transport="rediss", transport_options=options)
    assert [priority_for(urgency, one, None) for urgency in URGENCIES] == [4, 3, 2, 1, 0]
