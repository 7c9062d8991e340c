"""Prepared messages that are published together: in one batch, each with an outcome that is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound, PreconditionFailed
from kombu.exceptions import LimitExceeded, OperationalError

from kombu_pools_ext import Pools, dispatch
from kombu_pools_ext.dispatch import publish_prepared
from kombu_pools_ext.errors import BatchFailed, BrokerUnreachable, Outcome, PublishReturned
from kombu_pools_ext.prepared import PreparedMessage, prepare
from tests.broker.common import eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.proxy import TO_SERVER, Frame, Proxy

SECRET = "s3cr3t-word"
logger = logging.getLogger("tests.dispatch")


def several(pools: Pools, count: int, routing_key: str, **options: Any) -> list[PreparedMessage]:
    return [
        prepare(pools, {"n": n}, routing_key, message_id=f"m{n}", headers={"h": SECRET}, **options)
        for n in range(count)
    ]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of the messages."""
    assert SECRET not in caplog.text
    return [one.getMessage() for one in caplog.records if one.name == logger.name]


def of(lines: Sequence[str], message_id: str) -> str:
    """The one line about the message."""
    (line,) = [one for one in lines if f"message {message_id} " in one]
    return line


def test_all_arrive_in_their_order_and_nothing_is_told(
    url: str, inbox: Callable[[str], Inbox], caplog: pytest.LogCaptureFixture
) -> None:
    pools, queue = Pools(default=url), inbox(url)
    publish_prepared(pools, several(pools, 50, queue.name), logger)
    assert queue.bodies(50) == [{"n": n} for n in range(50)]
    assert not told(caplog)


@pytest.mark.broker
def test_where_the_broker_confirms_they_take_one_lease(
    amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    pools, queue = Pools(default=amqp_url), inbox(amqp_url)
    publish_prepared(pools, several(pools, 50, queue.name), logger)
    assert pools.connections["default"].stats().acquires == 1
    assert len(queue.bodies(50)) == 50


@pytest.mark.broker
def test_a_batch_has_a_most(
    amqp_url: str, inbox: Callable[[str], Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MOST_IN_BATCH", 20)
    pools, queue = Pools(default=amqp_url), inbox(amqp_url)
    publish_prepared(pools, several(pools, 50, queue.name), logger)
    assert pools.connections["default"].stats().acquires == 3
    assert queue.bodies(50) == [{"n": n} for n in range(50)]


@pytest.mark.broker
@pytest.mark.parametrize(
    "own",
    [
        {"timeout": 5},
        {"confirm_timeout": 5},
        {"retry": False},
        {"retry": True, "retry_policy": {"max_retries": 1}},
        {"acquire_timeout": 3},
        {"message_id": "m1"},
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_cannot_share_a_batch_keeps_its_place(
    amqp_url: str, inbox: Callable[[str], Inbox], own: dict[str, Any]
) -> None:
    pools, queue = Pools(default=amqp_url), inbox(amqp_url)
    before, after = several(pools, 3, queue.name), several(pools, 3, queue.name)
    odd = prepare(pools, "odd", queue.name, **own)
    publish_prepared(pools, [*before, odd, *after], logger)
    numbers = [{"n": n} for n in range(3)]
    assert queue.bodies(7) == [*numbers, "odd", *numbers]


@pytest.mark.broker
@pytest.mark.redis
def test_each_alias_keeps_its_order(
    amqp_url: str, redis_url: str, inbox: Callable[[str], Inbox]
) -> None:
    pools = Pools(default=amqp_url, other=redis_url)
    one, other = inbox(amqp_url), inbox(redis_url)
    messages = [
        prepare(pools, n, (one, other)[n % 2].name, using=("default", "other")[n % 2])
        for n in range(10)
    ]
    publish_prepared(pools, messages, logger)
    assert one.bodies(5) == [0, 2, 4, 6, 8]
    assert other.bodies(5) == [1, 3, 5, 7, 9]


@pytest.mark.broker
def test_what_the_broker_refuses_is_told_and_only_that(
    amqp_url: str, inbox: Callable[[str], Inbox], queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools, good = Pools(default=amqp_url), inbox(amqp_url)
    full = kombu.Queue(
        f"{queue}.full",
        durable=False,
        expires=60,
        queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
    )
    with kombu.Connection(amqp_url) as connection:
        full(connection.default_channel).declare()
    messages = several(pools, 4, good.name)
    refused = [
        prepare(pools, "full", full.name, message_id=f"full{n}", headers={"h": SECRET})
        for n in range(3)
    ]
    nowhere = prepare(pools, "lost", f"{queue}.nowhere", message_id="lost", mandatory=True)
    with pytest.raises(BatchFailed) as raised:
        publish_prepared(pools, [*messages[:2], *refused, nowhere, *messages[2:]], logger)
    assert good.bodies(4) == [{"n": n} for n in range(4)]
    lines = told(caplog)
    assert len(lines) == 3
    assert "NACKED" in of(lines, "full1")
    assert "NACKED" in of(lines, "full2")
    assert "RETURNED" in of(lines, "lost")
    assert raised.value.__notes__ == lines
    assert raised.value.results == {
        **{f"m{n}": Outcome.ACKED for n in range(4)},
        "full0": Outcome.ACKED,
        "full1": Outcome.NACKED,
        "full2": Outcome.NACKED,
        "lost": Outcome.RETURNED,
    }


@pytest.mark.broker
def test_a_message_alone_fails_as_publish_does(
    amqp_url: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(default=amqp_url)
    with pytest.raises(PublishReturned) as raised:
        publish_prepared(pools, several(pools, 1, queue, mandatory=True), logger)
    assert raised.value.__notes__ == told(caplog)
    line = of(told(caplog), "m0")
    assert f"alias 'default', exchange '', routing key {queue!r}" in line
    assert f"{__file__}:" in line
    assert "NO_ROUTE" in line


@pytest.mark.broker
def test_one_without_an_exchange_does_not_take_the_others_with_it(
    amqp_url: str, inbox: Callable[[str], Inbox], queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools, good = Pools(default=amqp_url), inbox(amqp_url)
    messages = several(pools, 6, good.name)
    bad = prepare(pools, {}, "k", exchange=f"{queue}.missing", message_id="bad")
    with pytest.raises(NotFound) as raised:
        publish_prepared(pools, [*messages[:3], bad, *messages[3:]], logger)
    assert raised.value.__notes__[-1:] == told(caplog)
    assert "NotFound" in of(told(caplog), "bad")
    assert len(told(caplog)) == 1
    assert [one["n"] for one in good.bodies(6)] == list(range(6))


@pytest.mark.broker
def test_one_with_anothers_user_id_does_not_double_the_others(
    amqp_url: str, inbox: Callable[[str], Inbox], caplog: pytest.LogCaptureFixture
) -> None:
    pools, good = Pools(default=amqp_url), inbox(amqp_url)
    messages = several(pools, 6, good.name)
    bad = prepare(pools, {}, good.name, user_id="somebody-else", message_id="bad")
    with pytest.raises(PreconditionFailed):
        publish_prepared(pools, [*messages[:3], bad, *messages[3:]], logger)
    assert len(told(caplog)) == 1
    assert [one["n"] for one in good.bodies(6)] == list(range(6))


@pytest.mark.broker
def test_the_first_to_an_exchange_goes_alone_and_the_others_together(
    amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    pools, queue = Pools(default=amqp_url), inbox(amqp_url)
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(queue.name, durable=False)(connection.default_channel)
        bound.bind_to("amq.direct", queue.name)
    publish_prepared(pools, several(pools, 50, queue.name, exchange="amq.direct"), logger)
    assert pools.connections["default"].stats().acquires == 2
    assert queue.bodies(50) == [{"n": n} for n in range(50)]


@pytest.mark.broker
@pytest.mark.parametrize("number", [1, 5, 30])
def test_a_connection_that_is_cut_in_mid_batch_costs_no_message(
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    proxied: Callable[[str], Proxy],
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy, queue = proxied(amqp_url), inbox(amqp_url)
    pools = Pools(default=through(proxy, amqp_url))
    messages = several(pools, 30, queue.name)
    proxy.play([(TO_SERVER, Frame("basic.publish", number), "cut")], coming=1)
    publish_prepared(pools, messages, logger)
    arrived = queue.messages(30)
    assert {one.properties["message_id"] for one in arrived} == {one.message_id for one in messages}
    assert not told(caplog)


@pytest.mark.broker
def test_without_retries_what_has_no_answer_is_not_sent_twice_and_told(
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    proxied: Callable[[str], Proxy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy, queue = proxied(amqp_url), inbox(amqp_url)
    pools = Pools(default={"url": through(proxy, amqp_url), "retry": None})
    messages = several(pools, 30, queue.name)
    proxy.play([(TO_SERVER, Frame("basic.publish", 10), "cut")], coming=1)
    with pytest.raises(BatchFailed) as raised:
        publish_prepared(pools, messages, logger)
    unknown = [one for one, what in raised.value.results.items() if what is Outcome.UNKNOWN]
    assert len(raised.value.results) == 30
    lines = told(caplog)
    assert unknown
    assert len(lines) == sum(what is not Outcome.ACKED for what in raised.value.results.values())
    assert all("may be in the broker" in of(lines, one) for one in unknown)
    names = [one.properties["message_id"] for one in queue.messages(30 - len(unknown))]
    assert len(names) == len(set(names))
    assert {one.message_id for one in messages} - set(names) <= set(unknown)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_cannot_be_reached_is_waited_for_once(
    nowhere: int, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(
        default={"url": f"{scheme}://u:{SECRET}@127.0.0.1:{nowhere}/0", "acquire_timeout": 0.5}
    )
    with pytest.raises(OperationalError) as raised:
        publish_prepared(pools, several(pools, 12, "q"), logger)
    assert isinstance(raised.value, BrokerUnreachable)
    lines = told(caplog)
    assert len(lines) == 12
    assert "refused" in of(lines, "m0").lower()  # gevent says ECONNREFUSED
    assert all("it was not sent" in of(lines, f"m{n}") for n in range(1, 12))
    assert raised.value.__notes__ == [*lines[:10], "and 2 more, each of which is in the log"]


def test_a_pool_without_a_free_connection_is_waited_for_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(default={"url": url, "limit": 1, "acquire_timeout": 0.1})
    with pools.connections["default"].acquire(timeout=5):
        with pytest.raises(LimitExceeded):
            publish_prepared(pools, several(pools, 3, "q"), logger)
    assert len(told(caplog)) == 3


@pytest.mark.broker
def test_another_alias_goes_out_though_one_cannot_be_reached(
    amqp_url: str, inbox: Callable[[str], Inbox], nowhere: int, caplog: pytest.LogCaptureFixture
) -> None:
    queue = inbox(amqp_url)
    pools = Pools(
        default=amqp_url, away={"url": f"amqp://127.0.0.1:{nowhere}//", "acquire_timeout": 0.2}
    )
    away = prepare(pools, {}, "q", using="away", message_id="away")
    with pytest.raises(BrokerUnreachable):
        publish_prepared(pools, [away, *several(pools, 3, queue.name)], logger)
    assert len(queue.bodies(3)) == 3
    assert len(told(caplog)) == 1


@pytest.mark.broker
def test_declared_again_after_the_queue_was_deleted(
    amqp_url: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(default=amqp_url)
    declared = kombu.Queue(queue, durable=False, expires=60)
    options: dict[str, Any] = {"declare": [declared], "mandatory": True}
    with kombu.Connection(amqp_url) as connection:
        bound = declared(connection.default_channel)
        for _ in range(2):
            publish_prepared(pools, several(pools, 2, queue, **options), logger)
            assert eventually(lambda: bound.queue_declare(passive=True).message_count == 2)
            bound.delete()
    assert not told(caplog)


class Interrupting(kombu.Queue):
    """Raises where it is to be declared, in the midst of the messages, as a signal handler may."""

    #: What it raises.
    error: BaseException

    def declare(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


class SoftTimeLimitExceeded(Exception):
    """As Celery's."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SoftTimeLimitExceeded, TimeoutError])
def test_an_interruption_goes_through_and_what_was_not_confirmed_is_told(
    url: str,
    inbox: Callable[[str], Inbox],
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    pools, queue = Pools(default=url), inbox(url)
    messages = several(pools, 3, queue.name)
    declared = Interrupting("q")
    declared.error = error = kind()
    interrupting = prepare(pools, {}, queue.name, declare=[declared], message_id="interrupting")
    with pytest.raises(kind) as raised:
        publish_prepared(pools, [messages[0], interrupting, *messages[1:]], logger)
    lines = told(caplog)
    assert [line for line in lines if line in raised.value.__notes__] == lines
    assert raised.value is error
    for message_id in ("interrupting", "m1", "m2"):
        assert of(lines, message_id)
    assert {one["n"] for one in queue.bodies() if one} <= {0}
    eventually(lambda: pools.connections["default"].stats().lent == 0)
