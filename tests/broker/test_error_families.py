"""Whoever looks for kombu's errors, by class or in a connection's families of errors, finds this library's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from struct import pack
from typing import Any

import kombu
import pytest
from amqp.exceptions import ChannelError, ConnectionForced, NoConsumers, NotFound
from kombu.exceptions import LimitExceeded, OperationalError

from kombu_pools_ext import pools
from kombu_pools_ext.errors import (
    BatchFailed,
    BrokerBlocked,
    BrokerUnreachable,
    ConnectTimeout,
    Outcome,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
    UnknownAlias,
)
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, Proxy

#: The families that kombu sorts errors into, as attributes of a connection.
FAMILIES = (
    "connection_errors",
    "channel_errors",
    "recoverable_connection_errors",
    "recoverable_channel_errors",
)


def families(connection: Any, error: BaseException) -> set[str]:
    """The families of *connection*'s transport that *error* is in."""
    return {name for name in FAMILIES if isinstance(error, getattr(connection, name))}


def closing(code: int) -> bytes:
    """The broker closes the connection with *code*, for no message of ours."""
    payload = pack(">HHHB", 10, 50, code, 4) + b"text" + pack(">HH", 0, 0)
    return pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


# -- PublishUnknown ----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


def unanswered(url: str, routing_key: str, fault: Callable[[], Any], **options: Any) -> Any:
    """What a confirmed publish raises that meets *fault* between the message and its confirm."""
    with pytest.raises(PublishUnknown) as caught:
        with pools.producers[confirming(url)].acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=routing_key, timeout=PATIENCE)
            fault()
            producer.publish("x", routing_key=routing_key, **options)
    return caught.value


def test_without_a_confirm_the_error_is_the_connections_too(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    url = through(proxy, amqp_url)
    error = unanswered(url, queue, lambda: proxy.half_close(TO_CLIENT))
    assert isinstance(error, OSError)
    assert isinstance(error, type(error.__cause__))
    assert families(kombu.Connection(url), error) == {
        "connection_errors",
        "recoverable_connection_errors",
    }


def test_a_confirm_that_does_not_come_in_time_is_a_time_out(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    url = through(proxy, amqp_url)
    error = unanswered(url, queue, lambda: proxy.hold(TO_CLIENT), timeout=0.2)
    proxy.heal()
    assert isinstance(error, TimeoutError)
    assert families(kombu.Connection(url), error) == {
        "connection_errors",
        "recoverable_connection_errors",
    }


def test_what_the_broker_said_of_the_connection_can_be_read_from_the_error(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    def force() -> None:
        proxy.hold(TO_CLIENT)
        proxy.alive[0].say(closing(320))

    url = through(proxy, amqp_url)
    error = unanswered(url, queue, force, message_id="mine")
    proxy.heal()
    assert isinstance(error, ConnectionForced)
    assert (error.reply_code, error.reply_text, error.code) == (320, "text", 320)
    assert error.message_id == "mine"
    assert "message mine may be in the broker, or not" in str(error)
    assert families(kombu.Connection(url), error) == {
        "connection_errors",
        "recoverable_connection_errors",
    }


def test_what_kombu_would_not_try_again_is_not_recoverable(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    def internal_error() -> None:
        proxy.hold(TO_CLIENT)
        proxy.alive[0].say(closing(541))

    url = through(proxy, amqp_url)
    error = unanswered(url, queue, internal_error)
    proxy.heal()
    assert families(kombu.Connection(url), error) == {"connection_errors"}


@pytest.mark.redis
def test_without_an_answer_of_redis_the_error_is_the_connections_too(
    redis_url: str, proxied: Callable[[str], Proxy], queue: str
) -> None:
    redis = pytest.importorskip("redis")
    proxy = proxied(redis_url)
    url = through(proxy, redis_url)
    with pytest.raises(PublishUnknown) as caught:
        with pools.producers[url].acquire(timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue)
            # Once the whole command is there: the answer does not come.
            proxy.hold(TO_CLIENT)
            producer.publish("x", routing_key=queue, retry=True, timeout=0.3)
    proxy.heal()
    error = caught.value
    assert isinstance(error, redis.exceptions.TimeoutError)
    assert {"connection_errors", "recoverable_connection_errors"} <= families(
        kombu.Connection(url), error
    )
    with kombu.Connection(redis_url) as connection:
        connection.default_channel.client.delete(queue)


def test_a_retry_that_finds_no_broker_is_no_connections_error(
    amqp_url: str, proxied: Callable[[str], Proxy], queue: str
) -> None:
    """kombu's is an ``OperationalError``, which its ``ensure`` does not try again."""

    def outage() -> None:
        proxy.half_close(TO_CLIENT)
        proxy.refuse()

    proxy = proxied(amqp_url)
    url = through(proxy, amqp_url)
    error = unanswered(url, queue, outage, retry=True, retry_policy={"max_retries": 1}, timeout=2.0)
    assert isinstance(error.__cause__, BrokerUnreachable)
    assert families(kombu.Connection(url), error) == set()
    assert not isinstance(error, LimitExceeded)


def test_a_retry_that_is_refused_is_of_the_class_of_the_refusal(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    url = through(proxy, amqp_url)

    def broken() -> None:
        proxy.half_close(TO_CLIENT)

    error = unanswered(
        url,
        queue,
        broken,
        exchange=queue + "-nowhere",
        retry=True,
        retry_policy={"max_retries": 1},
    )
    assert isinstance(error, NotFound)
    assert (error.reply_code, families(kombu.Connection(url), error)) == (404, {"channel_errors"})


def test_kombus_ensure_publishes_again(
    amqp_url: str, proxy: Proxy, inbox: Callable[[str], Inbox]
) -> None:
    """As kombu's documentation has it; the copy has the same ``message_id`` if the application gives one."""
    box = inbox(amqp_url)
    connection = confirming(through(proxy, amqp_url))
    with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
        producer.publish("warm", routing_key=box.name, timeout=PATIENCE)
        tries: list[BaseException] = []
        ensured = connection.ensure(
            producer,
            producer.publish,
            errback=lambda error, interval: (tries.append(error), proxy.heal()),
            max_retries=3,
        )
        proxy.half_close(TO_CLIENT)
        ensured("x", routing_key=box.name, message_id="mine")
    connection.release()
    assert [type(error).__name__ for error in tries][:1] == ["PublishUnknown"]
    messages = box.messages(3)
    assert {one.properties["message_id"] for one in messages[1:]} == {"mine"}
    assert [one.payload for one in messages] == ["warm", "x", "x"]


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        ConnectionForced("CONNECTION_FORCED", (0, 0), reply_code=320),
        PublishNacked("no", "mine"),
        KeyError("q"),
    ],
    ids=lambda cause: type(cause).__name__,
)
@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_the_error_travels(
    cause: BaseException, travel: Callable[[PublishUnknown], PublishUnknown]
) -> None:
    error = PublishUnknown("perhaps", "mine").like(cause)
    error.pool = "amqp://h//"
    error.add_note("noted")
    there = travel(error)
    assert type(there) is type(error)
    assert str(there) == str(error) == "pool 'amqp://h//': perhaps"
    assert repr(there) == repr(error) == "PublishUnknown('perhaps')"
    assert vars(there) == vars(error)
    assert there.message_id == "mine"
    for name in ("errno", "strerror", "reply_code", "reply_text", "method_sig", "code"):
        assert getattr(there, name, None) == getattr(cause, name, None)


@pytest.mark.parametrize(
    "error, kinds",
    [
        (PublishReturned("mine", 312, "NO_ROUTE", "", "q"), (ChannelError,)),
        (
            PublishReturned("mine", 313, "NO_CONSUMERS", "", "q").like(NoConsumers()),
            (NoConsumers, ChannelError),
        ),
        (
            BrokerUnreachable("down").like(ConnectionRefusedError(111, "Connection refused")),
            (ConnectionRefusedError, OperationalError),
        ),
        (
            ConnectTimeout("slow").like(OSError("first")).like(TimeoutError()),
            (TimeoutError, LimitExceeded),
        ),
        (BrokerBlocked("blocked"), (TimeoutError, LimitExceeded, OperationalError)),
        (
            BatchFailed({"a": Outcome.UNKNOWN}).like(ConnectionForced("text", reply_code=320)),
            (ConnectionForced,),
        ),
        (UnknownAlias("no such alias"), (KeyError,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_several_classes_travels(
    error: Exception, kinds: tuple[type[BaseException], ...]
) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))
    for kind in kinds:
        assert isinstance(there, kind)


def test_a_returned_message_has_what_py_amqps_error_has() -> None:
    error = PublishReturned("mine", 312, "NO_ROUTE", "", "q")
    kombus = ChannelError("NO_ROUTE", (60, 50), reply_code=312)
    for name in ("reply_code", "reply_text", "method_sig", "method_name", "method", "message"):
        assert getattr(error, name) == getattr(kombus, name)
    assert "message mine is in no queue" in str(error)


def test_a_pools_error_adds_nothing() -> None:
    for cause in (BrokerUnreachable("down"), OperationalError("down"), PublishUnknown("perhaps")):
        assert type(PublishUnknown("perhaps").like(cause)) is PublishUnknown


def test_what_another_connection_ended_with_is_no_reason_to_close_this_one(
    amqp_url: str, proxy: Proxy, queue: str
) -> None:
    def force() -> None:
        proxy.hold(TO_CLIENT)
        proxy.alive[0].say(closing(320))

    good = pools.connections[amqp_url]
    with pytest.raises(PublishUnknown):
        with good.acquire(timeout=PATIENCE) as connection:
            connection.default_channel  # opens it
            raise unanswered(through(proxy, amqp_url), queue, force)
    proxy.heal()
    assert (good.stats().idle, good.stats().closed) == (1, {})
