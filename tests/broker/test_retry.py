"""A publish whose connection broke goes on, on another connection of the pool, as the same message."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import kombu
import pytest
from amqp.exceptions import MessageNacked, NotFound, RecoverableConnectionError
from kombu.exceptions import OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.broker import retrying
from kombu_pools_ext.errors import (
    BrokerUnreachable,
    LeaseError,
    PoolClosed,
    PoolTimeout,
    PublishError,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
)
from kombu_pools_ext.settings import RetryPolicy
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.broker.test_confirms import cut_after_sending, full  # noqa: F401  # a fixture
from tests.proxy import Proxy

MakeInbox = Callable[[str], Inbox]
MakePool = Callable[..., pools.ProducerPool]

AT_ONCE = RetryPolicy(max_retries=2, interval_start=0, interval_step=0, interval_max=0)


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def make(amqp_url: str, proxy: Proxy) -> Iterator[MakePool]:
    """Makes a pool of one producer, by way of the proxy."""
    made: list[pools.ConnectionPool] = []

    def make(*, confirms: bool = True, **options: Any) -> pools.ProducerPool:
        url = through(proxy, amqp_url)
        connection = confirming(url) if confirms else kombu.Connection(url)
        made.append(pools.ConnectionPool(connection, limit=1))
        return pools.ProducerPool(made[-1], limit=1, **options)

    yield make
    for one in made:
        one.force_close_all()


def sound(producers: pools.ProducerPool) -> None:
    """The pool lends a producer, and nothing of it is lost."""
    producers.acquire(timeout=PATIENCE).release()
    stats = producers.connections.stats()
    assert (producers.lent, stats.lent, stats.idle, stats.waiting) == (0, 0, 1, 0)


# -- it goes on --------------------------------------------------------------------------------------------------------


def test_sent_without_an_answer_it_is_sent_again_as_the_same_message(
    make: MakePool, proxy: Proxy, amqp_url: str, inbox: MakeInbox
) -> None:
    box, producers = inbox(amqp_url), make(retry=AT_ONCE)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        channel, connection = producer.channel, producer.connection
        cut_after_sending(producer, proxy)
        producer.publish("x", routing_key=box.name)
        # The same producer, on another connection; whoever kept the first one has nothing.
        assert not producer.broken
        assert producer.channel is not channel
        assert producers.lent == 1
        with pytest.raises(LeaseError):
            connection.default_channel  # a property
        producer.publish("next", routing_key=box.name)
    sound(producers)
    assert producers.connections.stats().closed == {"broken": 1}
    messages = box.messages()
    ids = [one.properties["message_id"] for one in messages if one.payload == "x"]
    # The cut may have come before the broker had read it, so there are one or two.
    assert len(ids) in (1, 2)
    assert len(set(ids)) == 1
    assert {one.payload for one in messages} == {"warm", "x", "next"}


def test_that_it_is_tried_again_is_logged_once_it_holds_no_connection(
    make: MakePool, proxy: Proxy, amqp_url: str, inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    box, producers = inbox(amqp_url), make(retry=AT_ONCE)
    lent: list[int] = []

    class Counts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "tried again" in record.getMessage():
                lent.append(producers.lent)

    logger, counts = logging.getLogger("kombu_pools_ext"), Counts()
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(counts)
    try:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=box.name)
            assert "tried again" not in caplog.text
            cut_after_sending(producer, proxy)
            producer.publish("x", routing_key=box.name, message_id="the-third-of-may")
    finally:
        logger.removeHandler(counts)
    (record,) = (one for one in caplog.records if "tried again" in one.getMessage())
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith(
        f"pool {producers.connections.name!r}: message the-third-of-may is tried again on another connection, after "
        "PublishUnknown: "
    )
    assert lent == [0]


@pytest.mark.parametrize("confirms", [True, False])
def test_what_could_not_be_sent_is_sent_on_another(
    make: MakePool, proxy: Proxy, amqp_url: str, inbox: MakeInbox, confirms: bool
) -> None:
    box, producers = inbox(amqp_url), make(confirms=confirms)
    told: list[Any] = []
    revived: list[Any] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.channel.close()
        producer.publish(
            "x",
            routing_key=box.name,
            retry=True,
            retry_policy={
                "max_retries": 1,
                "interval_start": 0,
                "errback": lambda error, pause: told.append((type(error), pause)),
                "on_revive": revived.append,
            },
        )
        assert revived == [producer.channel]
        # kombu writes the policy into the connection, which is then another one for its pools.
        assert "max_retries" not in producer.connection.transport_options
    assert told == [(RecoverableConnectionError, 0.0)]
    assert box.bodies(1) == ["x"]
    sound(producers)


def test_by_position_as_kombu_has_it(make: MakePool, amqp_url: str, inbox: MakeInbox) -> None:
    box, producers = inbox(amqp_url), make()
    nothing = (None, None, None, None)
    arguments = (box.name, 2, False, False, 3, *nothing, None, "", True, {"max_retries": 1})
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.channel.close()
        producer.publish({"a": 1}, *arguments)
        with pytest.raises(TypeError, match="multiple values for argument 'retry'"):
            producer.publish({"a": 1}, *arguments, retry=True)
        with pytest.raises(TypeError):
            producer.publish({"a": 1}, *arguments, None, None, None, None, None)
    (message,) = box.messages()
    assert (message.payload, message.properties["priority"]) == ({"a": 1}, 3)


def test_what_the_borrower_has_set_stays(
    make: MakePool, proxy: Proxy, amqp_url: str, inbox: MakeInbox
) -> None:
    box, producers = inbox(amqp_url), make(retry=AT_ONCE)
    exchange = kombu.Exchange(f"{box.name}-x", "direct", durable=False, auto_delete=True)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        producer.serializer, producer.exchange = "pickle", exchange(producer.channel)
        bound = kombu.Queue(box.name, exchange, "key", durable=False)(producer.channel)
        producer.channel.close()
        # Both are declared where they are needed: on the new connection.
        producer.publish({"a": 1}, routing_key="key", declare=[bound])
        assert producer.exchange.channel is producer.channel
    assert producers.connections.stats().opened == 2
    assert [message.content_type for message in box.messages()] == [
        "text/plain",
        "application/x-python-serialize",
    ]


def test_the_borrowers_exchange_goes_along_to_a_connection_that_is_open_already(
    amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    exchange = kombu.Exchange(f"{box.name}-x", "direct", durable=False, auto_delete=True)
    connections = pools.ConnectionPool(confirming(amqp_url), limit=2)
    producers = pools.ProducerPool(connections, retry=AT_ONCE)
    with (
        producers.acquire(timeout=PATIENCE) as producer,
        producers.acquire(timeout=PATIENCE) as other,
    ):
        for one in (producer, other):
            one.publish("warm", routing_key=box.name)
        free = other.channel
        other.release()
        producer.exchange = exchange(producer.channel)
        bound = kombu.Queue(box.name, exchange, "key", durable=False)(producer.channel)
        producer.channel.close()
        producer.publish("x", routing_key="key", declare=[bound])
        assert producer.channel is producer.exchange.channel is free
        # A declaration by the producer itself is made on the new connection as well.
        producer.declare()
        producer.publish("y", routing_key="key")
    connections.force_close_all()
    assert box.bodies(4) == ["warm", "warm", "x", "y"]


class Counting(kombu.Producer):
    """Counts what it has sent."""

    sent = 0

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        return super().publish(*args, **kwargs)


def test_what_else_the_borrower_has_set_goes_along(
    make: MakePool, inbox: MakeInbox, amqp_url: str
) -> None:
    box, producers = inbox(amqp_url), make(retry=AT_ONCE, Producer=Counting)
    told: list[str] = []
    with producers.acquire(timeout=PATIENCE) as producer:
        release = producer.release
        producer.release = lambda: (told.append("released"), release())
        producer.mine = told
        producer.publish("warm", routing_key=box.name)
        producer.channel.close()
        # Tried twice.
        producer.publish("x", routing_key=box.name)
        assert (producer.sent, producer.mine) == (3, told)
    assert told == ["released"]
    # Nothing of it is the next borrower's.
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.sent == 0
        assert not hasattr(producer, "mine")
    sound(producers)


def test_others_get_their_turn_meanwhile(make: MakePool, amqp_url: str, inbox: MakeInbox) -> None:
    """The producer that goes on queues up like everybody else, and comes back."""
    box, producers = inbox(amqp_url), make(retry=AT_ONCE)
    producer = producers.acquire(timeout=PATIENCE)

    def other() -> None:
        with producers.acquire(timeout=PATIENCE) as mine:
            mine.publish("other", routing_key=box.name)

    waiting = threading.Thread(target=other)
    waiting.start()
    eventually(lambda: producers.connections.stats().waiting == 1)
    producer.channel.close()
    producer.publish("x", routing_key=box.name)
    waiting.join(PATIENCE)
    producer.release()
    assert box.bodies() == ["other", "x"]
    sound(producers)


def test_over_kombus_own_pool(amqp_url: str, inbox: MakeInbox) -> None:
    box, kombus = inbox(amqp_url), kombu.Connection(amqp_url).Pool(limit=1)
    producers = pools.ProducerPool(kombus, limit=1)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name)
        producer.channel.close()
        producer.publish("x", routing_key=box.name, retry=True, retry_policy={"interval_start": 0})
        assert len(kombus._dirty) == 1
    assert (len(kombus._dirty), producers.lent) == (0, 0)
    assert box.bodies(2) == ["warm", "x"]
    kombus.force_close_all()


# -- it comes to an end ------------------------------------------------------------------------------------------------


def test_over_kombus_own_pool_a_refusal_is_an_answer_too(amqp_url: str, full: str) -> None:  # noqa: F811
    """py-amqp counts its MessageNacked among what is worth another connection."""
    own = confirming(amqp_url).Pool(1)
    producers = pools.ProducerPool(own)
    tries: list[BaseException] = []
    policy = {"max_retries": 2, "errback": lambda error, _: tries.append(error)}
    with producers.acquire(timeout=PATIENCE) as producer:
        with pytest.raises(MessageNacked):
            producer.publish("x", routing_key=full, retry=True, retry_policy=policy)
        assert not producer.broken
    assert tries == []
    own.force_close_all()


def test_retries_are_exhausted(
    make: MakePool,
    proxy: Proxy,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "kombu_pools_ext")
    producers = make(retry=AT_ONCE)
    pauses: list[float] = []
    renew = producers.renew

    def renew_and_break(view: Any, timeout: float, **options: Any) -> None:
        renew(view, timeout)
        pauses.append(timeout)
        view.channel.close()

    monkeypatch.setattr(producers, "renew", renew_and_break)
    with pytest.raises(PublishError, match="could not be published") as caught:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.channel.close()
            producer.publish("x", routing_key=queue)
    # As kombu has it after retries, an OperationalError; and of the class of the last try's own error.
    assert isinstance(caught.value, RecoverableConnectionError)
    assert type(caught.value.__cause__) is RecoverableConnectionError
    assert "was not sent; it is not in the broker" in caught.value.__notes__[-1]
    assert len(pauses) == 2
    assert 10 > pauses[0] > pauses[1] > 0
    # Each retry is told, and the end is the caller's.
    assert len([line for line in caplog.messages if "is tried again on another" in line]) == 2
    sound(producers)
    assert producers.connections.stats().closed == {"broken": 3}


@pytest.mark.parametrize("sent", [True, False])
def test_no_other_connection_can_be_had(
    make: MakePool, proxy: Proxy, queue: str, sent: bool
) -> None:
    producers = make(retry=AT_ONCE, confirm_timeout=1.0)
    producer = producers.acquire(timeout=PATIENCE)
    producer.publish("warm", routing_key=queue, timeout=PATIENCE)
    if sent:
        cut_after_sending(producer, proxy)
    else:
        producer.channel.close()
    proxy.refuse()
    heal, proxy.heal = proxy.heal, lambda: None  # type: ignore[method-assign]  # it goes on refusing
    with pytest.raises(OperationalError) as caught:
        producer.publish("x", routing_key=queue)
    assert isinstance(caught.value, PublishUnknown if sent else BrokerUnreachable)
    assert isinstance(caught.value.__cause__, Exception) or not sent
    # It has no connection, and the next publish looks for one.
    assert (producers.lent, producers.connections.lent) == (0, 0)
    with pytest.raises(LeaseError):
        producer.channel  # a property
    with pytest.raises(OperationalError):
        producer.publish("x", routing_key=queue)
    # Given back, it is as any other that was: to do that again does nothing.
    producer.release()
    producer.__exit__(None, None, None)
    heal()
    with pytest.raises(LeaseError):
        producer.publish("x", routing_key=queue)
    sound(producers)


@pytest.mark.parametrize("policy", [None, {"max_retries": 1, "interval_start": 0}])
def test_after_its_tries_have_failed_a_producer_goes_on_when_the_broker_is_back(
    make: MakePool, proxy: Proxy, amqp_url: str, inbox: MakeInbox, policy: Any
) -> None:
    box, producers = inbox(amqp_url), make(confirm_timeout=1.0)
    retry = {"retry": True, "retry_policy": policy}
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name, timeout=PATIENCE)
        producer.serializer = "json"
        proxy.cut()
        proxy.refuse()
        # Else the first message might still get through.
        eventually(lambda: not proxy.alive)
        for _ in range(2):
            with pytest.raises(OperationalError):
                producer.publish("lost", routing_key=box.name, **retry)
        proxy.heal()
        eventually(lambda: goes(producer, box.name, retry))
        assert not producer.released
        assert producer.serializer == "json"
    assert box.bodies(2) == ["warm", "x"]
    sound(producers)


def goes(producer: Any, key: str, retry: dict[str, Any]) -> bool:
    try:
        producer.publish("x", routing_key=key, **retry)
    except (BrokerUnreachable, PoolTimeout):
        # The pool asks a broker that was down with pauses; nothing was sent.
        return False
    return True


class Limit(BaseException):
    """A signal handler's, as Celery's or gevent's are."""


@pytest.mark.parametrize("kind", [Limit, KeyError])
def test_what_interrupts_a_retry_that_looks_for_a_connection_is_raised_as_it_is(
    make: MakePool, proxy: Proxy, queue: str, kind: type[BaseException]
) -> None:
    mine = kind("mine")

    def errback(error: BaseException, pause: float) -> None:
        raise mine

    producers = make()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=queue, timeout=PATIENCE)
        cut_after_sending(producer, proxy)
        with pytest.raises(kind) as caught:
            policy = {"max_retries": 1, "errback": errback}
            producer.publish("x", routing_key=queue, retry=True, retry_policy=policy)
    assert caught.value is mine
    assert "was interrupted; it may be in the broker, or not" in mine.__notes__[-1]
    sound(producers)


def test_the_pool_is_closed_meanwhile(make: MakePool, queue: str) -> None:
    producers = make(retry=AT_ONCE)
    producer = producers.acquire(timeout=PATIENCE)
    producers.force_close_all()
    producer.channel.close()
    with pytest.raises(PoolClosed):
        producer.publish("x", routing_key=queue)
    assert producer.released
    assert producers.connections.lent == 0


def test_what_an_answer_was_given_to_is_not_tried_again(
    make: MakePool, proxy: Proxy, queue: str
) -> None:
    producers = make(retry=AT_ONCE)
    with producers.acquire(timeout=PATIENCE) as producer:
        for wrong, error in (
            ({"routing_key": queue, "mandatory": True}, PublishReturned),
            ({"exchange": queue}, NotFound),
        ):
            with pytest.raises(error):
                producer.publish("x", **wrong)
    assert proxy.accepted == 1


# -- the plan, without a broker ------------------------------------------------------------------------------------


class Failing(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
    """Fails with what it is given, one after the other; then it publishes."""

    errors: list[BaseException]
    tries: list[str]

    def publish(self, body: Any, **kwargs: Any) -> Any:
        self.tries.append(kwargs["message_id"])
        assert not kwargs.get("retry")
        if self.errors:
            raise self.errors.pop(0)
        return super().publish(body, **kwargs)


@pytest.fixture
def failing(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a pool whose publishes fail with these errors first, and says how long it slept in between."""
    made = []

    def make(*errors: BaseException, **options: Any) -> tuple[Any, type[Failing], list[float]]:
        class Mine(Failing):
            pass

        Mine.errors, Mine.tries = list(errors), []
        slept: list[float] = []
        me, sleep = threading.get_ident(), time.sleep

        def note(seconds: float) -> None:
            # It is everybody's: what runs in other threads sleeps on.
            (slept.append if threading.get_ident() == me else sleep)(seconds)

        monkeypatch.setattr(retrying.time, "sleep", note)
        connections = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
        made.append(connections)
        return pools.ProducerPool(connections, Producer=Mine, **options), Mine, slept

    yield make
    for connections in made:
        connections.force_close_all()


def test_the_pauses(failing: Callable[..., Any]) -> None:
    policy = RetryPolicy(max_retries=4, interval_start=0.1, interval_step=0.2, interval_max=0.4)
    producers, mine, slept = failing(*[OperationalError("down")] * 4, retry=policy)
    with producers.acquire() as producer:
        producer.publish("x", routing_key="q")
    assert slept == pytest.approx([0.1, 0.3, 0.4, 0.4])
    assert len(mine.tries) == 5
    assert len(set(mine.tries)) == 1
    assert producers.connections.stats().closed == {"broken": 4}


@pytest.mark.parametrize(
    "options, arguments, tries",
    [
        ({}, {}, 1),
        ({}, {"retry": False}, 1),
        ({}, {"retry": True}, 4),
        ({}, {"retry": True, "retry_policy": {"max_retries": 2}}, 3),
        ({"retry": AT_ONCE}, {}, 3),
        ({"retry": AT_ONCE}, {"retry": True}, 3),
        ({"retry": AT_ONCE}, {"retry": False}, 1),
        ({"retry": AT_ONCE}, {"retry_policy": {"max_retries": 1}}, 2),
        # A pause that would end after the deadline is not begun.
        ({"retry": RetryPolicy(interval_start=60, interval_max=60)}, {}, 1),
    ],
)
def test_who_says_how_often(
    failing: Callable[..., Any], options: Any, arguments: Any, tries: int
) -> None:
    producers, mine, _ = failing(*[OperationalError("down")] * 3, **options)
    with producers.acquire() as producer:
        if tries == 4:
            producer.publish("x", routing_key="q", **arguments)
        else:
            with pytest.raises(OperationalError):
                producer.publish("x", routing_key="q", **arguments)
    assert len(mine.tries) == tries
    assert producers.connections.lent == 0


def test_where_nothing_is_confirmed_a_retried_message_may_be_there(
    failing: Callable[..., Any],
) -> None:
    error = OperationalError("down")
    for options, kind in (({}, OperationalError), ({"retry": AT_ONCE}, PublishUnknown)):
        producers, _, _ = failing(*[error] * 3, **options)
        with pytest.raises(OperationalError) as caught, producers.acquire() as producer:
            producer.publish("x", routing_key="q", message_id="mine")
        assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert "message mine may be in the broker" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        PermissionError("a file"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_of_the_connection_is_not_tried_again(
    failing: Callable[..., Any], error: BaseException
) -> None:
    producers, mine, _ = failing(error, retry=AT_ONCE)
    with pytest.raises(type(error)), producers.acquire() as producer:
        producer.publish("x", routing_key="q")
    assert len(mine.tries) == 1


def test_an_answer_to_a_second_try_says_nothing_of_the_first(failing: Callable[..., Any]) -> None:
    lost = PublishUnknown("perhaps", "mine")
    lost.__cause__ = OperationalError("reset")
    once = replace(AT_ONCE, nacked=False)
    producers, _, _ = failing(lost, PublishNacked("no", "mine"), retry=once)
    with producers.acquire() as producer, pytest.raises(PublishUnknown) as caught:
        producer.publish("x", routing_key="q", message_id="mine")
    assert isinstance(caught.value.__cause__, PublishNacked)


def test_nacks_are_bounded_by_the_time_and_not_by_the_number_of_retries(
    failing: Callable[..., Any],
) -> None:
    producers, mine, _ = failing(*[PublishNacked("no", "mine")] * 5, retry=AT_ONCE)
    with producers.acquire() as producer:
        producer.publish("x", routing_key="q", message_id="mine")
        connection = producer.connection.item
    assert mine.tries == ["mine"] * 6
    # Each on the connection that it had.
    assert producers.connections.stats().closed == {}
    assert connection.pooled_session.is_sound()


@pytest.mark.parametrize(
    "policy",
    [
        5,
        {"max_retries": "3"},
        {"interval_start": "x"},
        {"interval_start": -5},
        {"interval_step": [1]},
        {"errback": 5},
        {"retry_errors": 5},
        {"retry_errors": ["x"]},
    ],
)
def test_a_policy_that_cannot_be_hides_nothing(failing: Callable[..., Any], policy: Any) -> None:
    lost = PublishUnknown("lost", "mine")
    lost.__cause__ = OperationalError("down")
    producers, mine, _ = failing(lost, retry=AT_ONCE)
    with producers.acquire() as producer, pytest.raises(PublishUnknown) as caught:
        producer.publish("x", routing_key="q", message_id="mine", retry_policy=policy)
    assert caught.value is lost
    assert "it was not tried again: retry_policy" in str(caught.value.__notes__)
    assert mine.tries == ["mine"]


def test_a_policy_of_kombus_is_taken(failing: Callable[..., Any]) -> None:
    policy = {"max_retries": float("inf"), "interval_step": None, "errback": None, "mine": 1}
    producers, mine, _ = failing(*[OperationalError("down")] * 2)
    policy |= {"interval_start": 0, "retry_errors": KeyError}
    with producers.acquire() as producer:
        producer.publish("x", routing_key="q", retry=True, retry_policy=policy)
    assert len(mine.tries) == 3


def test_errors_of_the_callers_choice(failing: Callable[..., Any]) -> None:
    producers, mine, _ = failing(KeyError("odd"))
    policy = {"retry_errors": (KeyError,), "max_retries": 1}
    with producers.acquire() as producer:
        producer.publish("x", routing_key="q", retry=True, retry_policy=policy)
    assert len(mine.tries) == 2


class Reports(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
    """A ``publish`` of its own, which knows nothing of properties."""

    def publish(self, report: Any, queue: str) -> Any:
        super().publish(report, routing_key=queue)
        return super().publish("done", routing_key=queue)


def test_a_producer_class_with_a_publish_of_its_own(
    make: MakePool, amqp_url: str, inbox: MakeInbox
) -> None:
    box, producers = inbox(amqp_url), make(Producer=Reports, retry=AT_ONCE)
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("one", box.name)
        channel, send, calls = producer.channel, producer.channel.send_method, []

        def send_and_break(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise RecoverableConnectionError("by peer")
            return send(*args, **kwargs)

        channel.send_method = send_and_break
        producer.publish("two", queue=box.name)
        del channel.send_method
    messages = box.messages()
    assert [one.payload for one in messages] == ["one", "done", "two", "two", "done"]
    ids = [one.properties["message_id"] for one in messages]
    # What was published twice has one id, all else its own.
    assert ids[2] == ids[3]
    assert len(set(ids)) == 4
