"""The arguments of our own publish: what is wrong is told before anything is opened or sent, on every transport."""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any

import amqp
import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Exchange, Queue
from kombu.transport import pyamqp

from kombu_pools_ext import Pools, PublishKeywords
from kombu_pools_ext.broker.arguments import checked
from kombu_pools_ext.broker.publish_keywords import MessageKeywords
from kombu_pools_ext.prepared import prepare
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming
from tests.engine.fakes import assert_sound

MakeInbox = Callable[[str], Inbox]
SOME = uuid.UUID("12345678-1234-5678-1234-567812345678")
SECRET = uuid.UUID("deadbeef-dead-beef-dead-beefdeadbeef")


class Key(str, Enum):  # noqa: UP042  # a StrEnum's format() is its text already
    ORDERS = "orders"


@pytest.fixture
def publish() -> Iterator[Callable[..., Any]]:
    """A publish to a broker that cannot be asked: whatever is opened fails otherwise than the tests expect."""
    pools = Pools(default={"url": "amqp://guest:guest@127.0.0.1:9//"})
    yield pools.publish
    assert pools.connections["default"].stats().opened == 0


# -- keywords ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, meant",
    [
        ("queue", "routing_key"),
        ("routingkey", "routing_key"),
        ("mandatroy", "mandatory"),
        ("usnig", "using"),
        ("exchnage", "exchange"),
        ("aquire_timeout", "acquire_timeout"),
        ("application_headers", "headers"),
        ("corelation_id", "correlation_id"),
        ("ttl", "expiration"),
    ],
)
def test_an_unknown_keyword_is_told_with_the_one_that_is_meant(
    publish: Callable[..., Any], given: str, meant: str
) -> None:
    key = () if meant == "routing_key" else ("q",)
    with pytest.raises(TypeError) as caught:
        publish({}, *key, **{given: "x"})
    # That the key is missing is no second mistake where it is misspelt.
    assert str(caught.value) == f"publish: unknown keyword {given!r}; did you mean {meant!r}?"


def test_what_is_the_callers_own_goes_into_the_headers(publish: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"unknown keyword 'tenant'.* headers=\{'tenant': …\}"):
        publish({}, "q", tenant=5)


@pytest.mark.parametrize("arguments", [{}, {"routing_key": ""}, {"exchange": ""}])
def test_without_routing_key_and_exchange_there_is_nowhere_to_go(
    publish: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"neither a routing_key nor an exchange.*routing_key='"):
        publish({}, **arguments)
    with pytest.raises(ValueError, match="neither a routing_key nor an exchange"):
        publish({}, exchange=Exchange(""))


def test_all_that_is_wrong_is_told_at_once(publish: Callable[..., Any]) -> None:
    with pytest.raises(TypeError) as caught:
        publish({}, "k" * 300, exchange=5, message_id=SOME, priority=300, mandatroy=True)
    first, *lines = str(caught.value).splitlines()
    assert first == "publish: 5 arguments are wrong:"
    for start in (
        "message_id must",
        "priority must",
        "unknown keyword 'mandatroy'",
        "exchange must",
    ):
        assert sum(line.startswith(f"  {start}") for line in lines) == 1, start
    assert "routing_key has 300 bytes" in lines[-1]
    with pytest.raises(ValueError, match="2 arguments are wrong"):
        publish({}, "k" * 300, priority=300)


# -- entities ----------------------------------------------------------------------------------------------------------


def test_a_queue_stands_for_its_name_and_one_entity_for_a_list(url: str, inbox: MakeInbox) -> None:
    box, pools = inbox(url), Pools(default={"url": url})
    queue = Queue(box.name, durable=False)
    pools.publish({"n": 1}, queue)
    pools.publish({"n": 2}, box.name, declare=queue)
    pools.publish({"n": 3}, queue, declare=(queue,), reply_to=queue)
    found = box.messages(3)
    assert [one.payload["n"] for one in found] == [1, 2, 3]
    assert found[2].properties["reply_to"] == box.name


@pytest.mark.parametrize(
    "arguments, kind, told",
    [
        (
            {"routing_key": Queue("q"), "exchange": "e"},
            ValueError,
            "routing_key is the queue 'q', .* exchange 'e' as well; leave the exchange out",
        ),
        (
            {"routing_key": Queue("q"), "exchange": Exchange("e")},
            ValueError,
            "leave the exchange out",
        ),
        ({"routing_key": Queue("")}, ValueError, "routing_key is a queue without a name"),
        (
            {"exchange": Queue("q")},
            TypeError,
            "exchange is the queue 'q'; write routing_key='q' without an exchange",
        ),
        (
            {"routing_key": Exchange("e")},
            TypeError,
            "routing_key is the exchange 'e'; write exchange='e'",
        ),
        ({"routing_key": 5}, TypeError, "routing_key must be text, not 5"),
        ({"routing_key": b"q"}, TypeError, "routing_key must be text, not a bytes; decode it"),
        ({"exchange": 5}, TypeError, r"exchange must be text or a kombu\.Exchange, not 5"),
        ({"exchange": "e" * 256}, ValueError, "exchange has 256 bytes in UTF-8"),
        ({"exchange": Exchange("é" * 128)}, ValueError, "exchange has 256 bytes in UTF-8"),
        (
            {"exchange": Exchange("e", delivery_mode=7)},
            ValueError,
            "the exchange's delivery_mode must be .*, not 7",
        ),
        ({"declare": "q"}, TypeError, "declare must be a list of .*, not 'q'"),
        ({"declare": [Queue("q"), "q"]}, TypeError, r"declare\[1\] must be .*, not 'q'"),
        ({"declare": [None]}, TypeError, r"declare\[0\] must be"),
        ({"declare": 5}, TypeError, "declare must be a list"),
    ],
)
def test_entities_and_names_in_the_wrong_place_are_told_with_what_to_write(
    publish: Callable[..., Any], arguments: dict[str, Any], kind: type[Exception], told: str
) -> None:
    arguments.setdefault("routing_key", "q")
    with pytest.raises(kind, match=told):
        publish({}, **arguments)


def test_an_exchange_does_with_an_empty_key(amqp_url: str, inbox: MakeInbox) -> None:
    box, pools = inbox(amqp_url), Pools(default={"url": amqp_url})
    exchange = Exchange(f"{box.name}.all", "fanout", durable=False, auto_delete=True)
    bound = Queue(box.name, exchange, durable=False)
    pools.publish({"n": 1}, exchange=exchange, declare=bound)
    pools.publish({"n": 2}, exchange=exchange.name)
    assert box.bodies(2) == [{"n": 1}, {"n": 2}]


def nested(depth: int) -> dict[str, Any]:
    """Headers of *depth* tables within each other."""
    headers: dict[str, Any] = {}
    for _ in range(depth - 1):
        headers = {"x": headers}
    return headers


# -- values ------------------------------------------------------------------------------------------------------------

#: Argument, value, the error's class, and what it says after the name.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    (
        "routing_key",
        "r" * 256,
        ValueError,
        "has 256 bytes in UTF-8, and AMQP takes 255 at most: 'rrr",
    ),
    ("routing_key", "é" * 128, ValueError, "has 256 bytes"),
    ("routing_key", "\ud800", ValueError, "is '\\ud800', which UTF-8 cannot encode"),
    ("routing_key", Queue("q\udc80"), ValueError, "is 'q\\udc80', which UTF-8 cannot encode"),
    ("exchange", "\ud800", ValueError, "is '\\ud800', which UTF-8 cannot encode"),
    ("exchange", Exchange("\ud800"), ValueError, "is '\\ud800', which UTF-8 cannot encode"),
    ("message_id", SOME, TypeError, "must be text, not UUID('12345678-"),
    ("message_id", 5, TypeError, "must be text, not 5"),
    ("message_id", "x" * 256, ValueError, "has 256 bytes"),
    ("message_id", "", ValueError, "is empty, so that a copy of the message could not be told"),
    ("reply_to", Queue(""), ValueError, "is a queue without a name; declare it"),
    ("correlation_id", 7, TypeError, "must be text, not 7"),
    ("correlation_id", b"x", TypeError, "must be text, not a bytes; decode it"),
    ("reply_to", 7, TypeError, "must be text, not 7"),
    ("type", ["x"], TypeError, "must be text, not a list"),
    ("type", "x" * 300, ValueError, "has 300 bytes"),
    ("user_id", 7, TypeError, "must be text, not 7"),
    ("app_id", 7, TypeError, "must be text, not 7"),
    ("cluster_id", 7, TypeError, "must be text, not 7"),
    ("content_type", 7, TypeError, "must be text, not 7"),
    ("content_encoding", "u" * 256, ValueError, "has 256 bytes"),
    ("priority", "high", TypeError, "must be a whole number from 0 to 255, not 'high'"),
    ("priority", True, TypeError, "must be a whole number from 0 to 255, not True"),
    ("priority", 1.5, TypeError, "must be a whole number from 0 to 255, not 1.5"),
    ("priority", -1, ValueError, "must be a whole number from 0 to 255, not -1"),
    ("priority", 256, ValueError, "must be a whole number from 0 to 255, not 256"),
    ("expiration", "5000", TypeError, "must be a number of seconds, not '5000'"),
    ("expiration", True, TypeError, "must be a number of seconds, not True"),
    ("expiration", timedelta(5), TypeError, "must be a number of seconds, not datetime.timedelta("),
    ("expiration", -1, ValueError, "must be 0 seconds or more, not -1"),
    ("expiration", float("nan"), ValueError, "must be 0 seconds or more, not nan"),
    ("expiration", Decimal("sNaN"), TypeError, "must be a number of seconds, not Decimal('sNaN')"),
    ("expiration", 315360000.1, ValueError, "must be at most 315360000 seconds"),
    ("expiration", float("inf"), ValueError, "must be at most 315360000 seconds"),
    ("headers", [("a", 1)], TypeError, "must be a dict, not a list"),
    ("headers", {"a": SOME}, TypeError, "['a'] is UUID('12345678-"),
    ("headers", {"a": {"b": [1, {2}]}}, TypeError, "['a']['b'][1] is a set, which AMQP cannot"),
    ("headers", {5: 1}, TypeError, "has the key 5"),
    ("headers", {b"k": 1}, TypeError, "has the key a bytes, and AMQP takes text alone"),
    ("headers", {"a": {b"k": 1}}, TypeError, "['a'] has the key a bytes"),
    ("headers", {"CC": "audit"}, TypeError, "['CC'] must be a list of routing keys, to which"),
    ("headers", {"BCC": None}, TypeError, "['BCC'] must be a list of routing keys, to which"),
    ("headers", {"r": math.nan}, ValueError, "['r'] is nan, and RabbitMQ takes finite numbers"),
    ("headers", {"r": [1.5, {"s": -math.inf}]}, ValueError, "['r'][1]['s'] is -inf, and RabbitMQ"),
    ("headers", {"d": Decimal("NaN")}, ValueError, "['d'] is Decimal('NaN'), which is out of"),
    ("headers", nested(101), ValueError, "are nested too deeply, or hold themselves; at most 100 "),
    ("headers", nested(500), ValueError, "are nested too deeply, or hold themselves; at most 100 "),
    ("headers", {"k" * 256: 1}, ValueError, "has a key of 256 bytes"),
    ("headers", {"n": 1 << 63}, ValueError, "['n'] is 9223372036854775808, which is out of"),
    ("headers", {"d": Decimal("1e40")}, ValueError, "['d'] is Decimal('1E+40'), which is out of"),
    ("headers", {"t": datetime(1950, 1, 1)}, ValueError, "['t'] is datetime.datetime(1950"),
    ("headers", {"t": date(2020, 1, 1)}, TypeError, "['t'] is datetime.date(2020"),
    ("delivery_mode", 3, ValueError, "must be 1 or 'transient', 2 or 'persistent', not 3"),
    ("delivery_mode", 0, ValueError, "must be 1 or 'transient', 2 or 'persistent', not 0"),
    ("delivery_mode", True, TypeError, "must be 1 or 'transient', 2 or 'persistent', not True"),
    ("delivery_mode", "durable", ValueError, "must be 1 or 'transient', 2 or 'persistent', not"),
    ("timestamp", 1.5, TypeError, "must be a whole number of seconds since 1970"),
    ("timestamp", datetime(2026, 1, 1), TypeError, "must be a whole number of seconds since 1970"),
    ("timestamp", -1, ValueError, "must be 0 seconds or more, in 64 bits, not -1"),
    ("mandatory", "no", TypeError, "must be True or False, not 'no'"),
    ("retry", 5, TypeError, "must be True or False, not 5"),
    ("retry_policy", 5, TypeError, "must be a dict, not 5"),
    ("retry_policy", {"max_retry": 5}, TypeError, "['max_retry'] is no part of it; did you mean"),
    ("retry_policy", {"max_retries": "3"}, TypeError, "['max_retries'] must be a whole number"),
    ("retry_policy", {"max_retries": 1.5}, TypeError, "['max_retries'] must be a whole number"),
    ("retry_policy", {"max_retries": True}, TypeError, "['max_retries'] must be a whole number"),
    ("retry_policy", {"max_retries": -1}, ValueError, "['max_retries'] must be 0 or more, or"),
    ("retry_policy", {"interval_start": "x"}, TypeError, "['interval_start'] must be a number"),
    ("retry_policy", {"interval_step": -5}, ValueError, "['interval_step'] must be 0 seconds"),
    ("retry_policy", {"interval_max": math.nan}, ValueError, "['interval_max'] must be 0 seconds"),
    ("retry_policy", {"errback": 5}, TypeError, "['errback'] must be a function, not 5"),
    ("retry_policy", {"on_revive": "x"}, TypeError, "['on_revive'] must be a function, not 'x'"),
    (
        "retry_policy",
        {"retry_errors": 5},
        TypeError,
        "['retry_errors'] must be a list of exception",
    ),
    (
        "retry_policy",
        {"retry_errors": [OSError, "x"]},
        TypeError,
        "['retry_errors'] must be a list",
    ),
    ("timeout", "5", TypeError, "must be a number of seconds, not '5'"),
    ("confirm_timeout", -1, ValueError, "must be 0 seconds or more, not -1"),
    ("serializer", "jsno", ValueError, "'jsno' is not one that kombu knows; did you mean 'json'?"),
    ("serializer", 5, TypeError, "must be the name of one that kombu knows, not 5"),
    ("compression", "gzp", ValueError, "'gzp' is not one that kombu knows; did you mean 'gzip'?"),
]


@pytest.mark.parametrize("name, value, kind, told", WRONG)
def test_a_value_that_cannot_be_is_refused_by_name_and_value(
    memory_url: str,
    publish: Callable[..., Any],
    name: str,
    value: Any,
    kind: type[Exception],
    told: str,
) -> None:
    arguments: dict[str, Any] = {"routing_key": "q", name: value}
    for call in (publish, Pools(default={"url": memory_url}).publish):
        with pytest.raises(kind) as caught:
            call("x", **arguments)
        assert type(caught.value) is kind
        words = str(caught.value).removeprefix(f"publish: {name}")
        assert words.lstrip().startswith(told), words
        assert len(words) < 400


def test_headers_that_hold_themselves_are_refused(publish: Callable[..., Any]) -> None:
    headers: dict[str, Any] = {}
    headers["again"] = [headers]
    with pytest.raises(ValueError, match="headers are nested too deeply, or hold themselves"):
        publish({}, "q", headers=headers)


def test_what_is_kept_under_a_secret_name_is_not_shown(publish: Callable[..., Any]) -> None:
    with pytest.raises(TypeError) as caught:
        publish({}, "q", headers={"api_token": SECRET, "list": {"password": [SECRET]}})
    assert str(SECRET) not in str(caught.value)
    assert "headers['api_token'] is a value of type UUID" in str(caught.value)


def test_a_body_that_is_said_to_be_serialized_is_text_or_bytes(
    publish: Callable[..., Any], memory_url: str
) -> None:
    for body in ({"n": 1}, None, 5):
        with pytest.raises(TypeError, match="body must be text or bytes where a content_type says"):
            publish(body, "q", content_type="application/json")
    pools = Pools(default={"url": memory_url})
    for text in ('{"n": 1}', b'{"n": 1}'):
        pools.publish(text, "q", content_type="application/json", declare=Queue("q"))
    pools.publish({"n": 1}, "q", content_type="", declare=Queue("q"))


@pytest.mark.parametrize("body", [{"n": 1}, [1], None, 5])
def test_a_body_that_is_not_to_be_serialized_is_text_or_bytes(
    memory_url: str, publish: Callable[..., Any], body: Any
) -> None:
    pools = Pools(default={"url": memory_url})
    told = "publish: body must be text or bytes where the serializer is 'raw', not .*'json'"
    for call in (publish, pools.publish, partial(prepare, pools)):
        with pytest.raises(TypeError, match=told):
            call(body, "q", serializer="raw")
    for text in ("text", b"bytes", bytearray(b"bytes")):
        pools.publish(text, "q", serializer="raw", declare=Queue("q"))


def test_a_lease_says_so_of_a_raw_body(amqp_url: str, inbox: MakeInbox) -> None:
    box, pools = inbox(amqp_url), Pools(default={"url": amqp_url})
    told = "publish: body must be text or bytes where the serializer is 'raw', not a dict"
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        for compression in (None, "gzip"):
            with pytest.raises(TypeError, match=told):
                producer.publish(
                    {"n": 1}, routing_key=box.name, serializer="raw", compression=compression
                )
        producer.serializer = "raw"
        with pytest.raises(TypeError, match=told):
            producer.publish({"n": 1}, routing_key=box.name)
        producer.publish(b"x", routing_key=box.name)
    assert [one.body for one in box.messages(1)] == [b"x"]
    assert pools.connections["default"].stats().opened == 1


# -- what is right -----------------------------------------------------------------------------------------------------


def test_every_property_of_amqp_arrives(url: str, inbox: MakeInbox) -> None:
    box, pools = inbox(url), Pools(default={"url": url})
    user = kombu.Connection(url).userid or "guest"
    given: dict[str, Any] = {
        **{name: f"{name} é" for name in ("correlation_id", "reply_to", "type", "app_id")},
        "message_id": "m" * 255,
        "user_id": user,
        "cluster_id": "c",
        "timestamp": 1 << 33,
        "expiration": Decimal("60.5"),
        "delivery_mode": "transient",
        "priority": 9,
        "headers": {"a": [1, 1.5, None, True, {"b": "é"}]},
        "content_type": "application/json",
        "content_encoding": "utf-8",
    }
    pools.publish('{"n": 1}', box.name, **given)
    (found,) = box.messages(1)
    assert found.payload == {"n": 1}
    arrived = {**found.properties, "headers": found.headers, "content_type": found.content_type}
    arrived.setdefault("content_encoding", found.content_encoding)
    expected = {**given, "expiration": "60500", "delivery_mode": 1}
    assert {name: arrived[name] for name in expected} == expected
    # RabbitMQ's own: as is meant, whatever it was given as.
    zone = datetime(2026, 1, 2, tzinfo=UTC)
    pools.publish({}, box.name, timestamp=zone, priority=None, mandatory=None, message_id=None)
    (found,) = box.messages(1)
    assert found.properties["timestamp"] == zone.timestamp()
    assert found.properties["message_id"]


def test_all_of_kombus_parameters_are_taken(memory_url: str, queue: str) -> None:
    pools = Pools(default={"url": memory_url})
    pools.publish(
        {"n": 1},
        queue,
        exchange="",
        using="default",
        acquire_timeout=PATIENCE,
        declare=[Queue(queue)],
        retry=True,
        retry_policy={"max_retries": 1, "interval_start": 0, "errback": None},
        serializer="json",
        compression="gzip",
        mandatory=False,
        immediate=False,
        timeout=PATIENCE,
        confirm_timeout=PATIENCE,
    )
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        message = Queue(queue)(connection.default_channel).get(no_ack=True)
    assert (message.payload, message.headers["compression"]) == ({"n": 1}, "application/x-gzip")


def test_type_checkers_know_each_keyword() -> None:
    kombus = {*inspect.signature(kombu.Producer.publish).parameters}
    kombus -= {"self", "body", "routing_key", "exchange", "properties"}
    amqps = {name for name, _ in amqp.Message.PROPERTIES} - {"application_headers"}
    known = PublishKeywords.__annotations__
    assert {*kombus, *amqps, "acquire_timeout"} <= known.keys()
    assert {*MessageKeywords.__annotations__} == known.keys() - {"acquire_timeout"}


@pytest.mark.parametrize("name", PublishKeywords.__annotations__)
def test_each_keyword_that_type_checkers_know_is_taken(name: str) -> None:
    _, _, options = checked("q", None, {name: None})
    assert options == ({} if name == "mandatory" else {name: None})


def test_an_enum_of_text_is_its_text() -> None:
    key, exchange, options = checked(Key.ORDERS, Key.ORDERS, {"type": Key.ORDERS})
    assert (f"{key} {exchange}", options) == ("orders orders", {"type": "orders"})
    assert {type(one) for one in (key, exchange, options["type"])} == {str}


def test_nothing_of_the_callers_is_changed() -> None:
    headers, declare = {"a": 1}, [Queue("q")]
    given = {"headers": headers, "declare": declare, "mandatory": None}
    _, _, options = checked("q", None, given)
    assert given == {"headers": {"a": 1}, "declare": [Queue("q")], "mandatory": None}
    assert options == {"headers": {"a": 1}, "declare": [Queue("q")]}
    assert options["declare"] is not declare


_scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary()),
    # What py-amqp encodes, and RabbitMQ does not take, is tested by itself.
    st.floats(allow_nan=False, allow_infinity=False),
    *(st.decimals(), st.datetimes(), st.dates(), st.uuids(), st.timedeltas()),
    st.integers(-(1 << 65), 1 << 65),
)
_keys = st.one_of(st.text(max_size=4), st.integers(250, 260).map("k".__mul__), st.integers())
_headers = st.dictionaries(
    _keys,
    st.recursive(
        _scalars,
        lambda inner: st.one_of(
            st.lists(inner), st.dictionaries(_keys, inner), st.sets(st.integers())
        ),
        max_leaves=5,
    ),
)


def _by_amqp(**properties: Any) -> bytes | None:
    """As py-amqp encodes them; `None` if it cannot."""
    try:
        encoded: bytes = amqp.Message(b"", **properties)._serialize_properties()
    except Exception:
        return None
    return encoded


@given(_headers)
def test_headers_are_refused_where_amqp_cannot_encode_them(headers: dict[Any, Any]) -> None:
    try:
        _, _, options = checked("q", None, {"headers": headers})
    except (TypeError, ValueError):
        assert _by_amqp(application_headers=headers) is None
    else:
        assert _by_amqp(application_headers=options["headers"]) is not None


@given(
    st.dictionaries(
        st.sampled_from(
            [name for name, _ in amqp.Message.PROPERTIES if name != "application_headers"]
        ),
        st.one_of(_scalars, st.integers(0, 300), st.integers(0, 300).map("é".__mul__)),
    )
)
def test_whatever_is_taken_can_be_encoded(properties: dict[str, Any]) -> None:
    try:
        _, _, options = checked("q", None, properties, b"")
    except (TypeError, ValueError):
        return
    written: list[Any] = []
    channel: Any = pyamqp.Channel.__new__(pyamqp.Channel)
    channel.basic_publish = lambda message, **_: written.append(message._serialize_properties())
    producer = kombu.Producer(None)
    producer._channel = channel
    producer.publish(b"", "q", **options)
    assert len(written) == 1


# -- kombu's own publish, on a lease -----------------------------------------------------------------------------------

#: As kombu's publish takes them, and py-amqp fails of them.
TOO_MUCH: list[dict[str, Any]] = [
    {"routing_key": "r" * 300},
    {"exchange": "e" * 300},
    {"message_id": SOME},
    {"correlation_id": "x" * 300},
    {"priority": "high"},
    {"priority": 300},
    {"expiration": "5000"},
    {"headers": {"a": {"b": SOME}}},
    {"headers": {"n": 1 << 70}},
    {"headers": {"r": math.nan}},
    {"headers": {"r": [{"s": math.inf}]}},
    {"headers": nested(1000)},
    {"headers": [1]},
    {"delivery_mode": "durable"},
    {"delivery_mode": 300},
    {"timestamp": 1.5},
    {"timestamp": datetime(2026, 1, 1)},
]


@pytest.mark.parametrize("compression", [None, "gzip"], ids=["short-way", "kombus-way"])
@pytest.mark.parametrize("confirm", [True, False], ids=["confirms", "no-confirms"])
def test_a_lease_names_what_amqp_cannot_carry_and_goes_on(
    amqp_url: str, inbox: MakeInbox, confirm: bool, compression: str | None
) -> None:
    box = inbox(amqp_url)
    pools = Pools(default={"url": amqp_url, "confirm": confirm})
    for number, wrong in enumerate(TOO_MUCH):
        (name,) = wrong
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            given = {"routing_key": box.name, "compression": compression, **wrong}
            with pytest.raises((TypeError, ValueError), match=f"publish: {name}") as caught:
                producer.publish({"n": number}, **given)
            assert caught.value.__cause__ is not None
            assert not getattr(caught.value, "__notes__", ())
            given[name] = box.name if name == "routing_key" else None
            producer.publish({"n": number}, **given)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(TypeError, match="publish: body must be text or bytes"):
            producer.publish({"n": 1}, box.name, None, False, content_type="application/json")
    assert box.bodies(len(TOO_MUCH)) == [{"n": number} for number in range(len(TOO_MUCH))]
    stats = pools.connections["default"].stats()
    assert (stats.opened, stats.lent) == (1, 0)
    assert_sound(pools.connections["default"].engine)


@pytest.mark.parametrize("confirm", [True, False], ids=["confirms", "no-confirms"])
def test_a_batch_goes_on_behind_what_amqp_cannot_carry(
    amqp_url: str, inbox: MakeInbox, confirm: bool
) -> None:
    box = inbox(amqp_url)
    pools = Pools(default={"url": amqp_url, "confirm": confirm})
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with producer.batch():
            for number in range(30):
                wrong = TOO_MUCH[number // 2 % len(TOO_MUCH)] if number % 2 else {}
                refused = pytest.raises((TypeError, ValueError), match="publish: ")
                with refused if wrong else nullcontext():
                    producer.publish({"n": number}, **{"routing_key": box.name, **wrong})
    assert box.bodies(15) == [{"n": number} for number in range(0, 30, 2)]
    assert pools.connections["default"].stats().opened == 1


def test_a_number_that_rabbitmq_cannot_take_is_not_written(amqp_url: str, inbox: MakeInbox) -> None:
    """It would end the connection, and with it all that comes behind."""
    box, pools = inbox(amqp_url), Pools(default={"url": amqp_url})
    good = {
        "large": 1.7e308,
        "small": -5e-324,
        "text": "d\x7f",
        "raw": b"d\xff\xf0",
        "deep": [nested(98)],
    }
    assert pools.publish(0, box.name, headers=good) is None
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        channel = connection.channel()
        for number in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=r"headers\['a'\]\[0\] is .* Nothing was sent"):
                channel.basic_publish(
                    amqp.Message("x", application_headers={"a": [number]}), routing_key=box.name
                )
            with pytest.raises(ValueError, match=r"publish: headers\['a'\]\[0\] is"):
                pools.publish(1, box.name, headers={"a": [number]})
        channel.close()
    (one,) = box.messages(1)
    assert {**one.headers, "raw": good["raw"]} == good
    stats = pools.connections["default"].stats()
    assert stats.opened <= 2
    assert stats.closed == {}


def test_a_lease_takes_what_kombu_takes(amqp_url: str, inbox: MakeInbox) -> None:
    from kombu_pools_ext import pools

    box = inbox(amqp_url)
    with pools.producers[confirming(amqp_url)].acquire(timeout=PATIENCE) as producer:
        producer.publish({"n": 1}, routing_key=box.name.encode(), message_id=b"m", foo="bar")
        producer.publish({"n": 2}, routing_key=box.name, priority=True, correlation_id=0)
        producer.publish({"n": 3}, routing_key=box.name, headers={b"k": 1})
    assert [one.payload["n"] for one in box.messages(3)] == [1, 2, 3]
