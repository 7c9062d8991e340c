"""What is put together here is byte for byte what py-amqp would have written."""

from __future__ import annotations

import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp import spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import example, given
from hypothesis import strategies as st

from kombu_pools_ext.broker.amqp import frames
from kombu_pools_ext.broker.amqp.frames import encode, encode_publish

#: As few as the specification allows, and what RabbitMQ and py-amqp agree on.
FRAME_MAXES = (4096, 131_072)

texts = st.text(max_size=40)
short = st.one_of(st.none(), texts, st.text(min_size=240, max_size=300), st.just(""))
octets = st.integers(0, 255)

values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), texts),
        *(st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=40)),
        st.integers(0, 1 << 31).map(lambda digits: Decimal(digits) / 1000),
        st.datetimes(datetime.datetime(1970, 1, 2)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)

properties = st.fixed_dictionaries(
    {
        "content_type": short,
        "content_encoding": short,
        "delivery_mode": octets,
        "priority": octets,
    },
    optional={
        "correlation_id": short,
        "reply_to": short,
        "expiration": short,
        "timestamp": st.one_of(st.none(), st.integers(0, (1 << 64) - 1)),
        "type": short,
        "user_id": short,
        "app_id": short,
        "cluster_id": short,
    },
)


def by_py_amqp(
    channel: int, frame_max: int, arguments: tuple[Any, ...], message: amqp.Message
) -> bytes:
    written: list[bytes] = []
    connection = SimpleNamespace(frame_max=frame_max, bytes_sent=0)
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    encoded = dumps("Bssbb", (0, *arguments))
    frame_writer(connection, transport)(1, channel, spec.Basic.Publish, encoded, message)
    assert connection.bytes_sent == 1
    return b"".join(written)


def both_ways(
    channel: int,
    frame_max: int,
    arguments: tuple[Any, ...],
    body: bytes,
    message_id: str,
    headers: dict[str, Any],
    given: dict[str, Any],
) -> None:
    before = dict(given)
    ours = encode_publish(channel, frame_max, *arguments, body, message_id, headers, given)
    assert given == before
    assert usual_way(channel, frame_max, *arguments, body, message_id, headers, given) == ours
    message = amqp.Message(body, application_headers=headers, message_id=message_id, **given)
    try:
        theirs = by_py_amqp(channel, frame_max, arguments, message)
    except Exception:
        # It is py-amqp that says what is wrong.
        assert ours is None
    else:
        assert ours == theirs


def usual_way(*arguments: Any) -> bytes | None:
    *known, headers, given = arguments
    rest = dict(given)
    usual = [rest.pop(name) for name in ("content_type", "content_encoding", "priority")]
    return encode(*known, *usual, rest.pop("delivery_mode"), headers, rest)


def named(arguments: Any) -> Any:
    return arguments.flatmap(
        lambda names: st.tuples(*map(st.just, names), st.booleans(), st.booleans())
    )


@given(
    channel=st.integers(1, 65535),
    frame_max=st.sampled_from((*FRAME_MAXES, 1 << 22)),
    arguments=named(st.tuples(texts, st.one_of(texts, st.text(min_size=240, max_size=300)))),
    size=st.one_of(
        st.integers(0, 300),
        st.integers(3500, 4200),
        st.integers(130_600, 131_200),
        st.integers(frames.LONGEST - 700, frames.LONGEST + 10),
    ),
    message_id=st.one_of(texts, st.text(min_size=200, max_size=300)),
    kind=st.fixed_dictionaries(
        {
            "content_type": short,
            "content_encoding": short,
            "delivery_mode": octets,
            "priority": octets,
        }
    ),
)
def test_any_usual_message(
    channel: int,
    frame_max: int,
    arguments: tuple[Any, ...],
    size: int,
    message_id: str,
    kind: dict[str, Any],
) -> None:
    # Twice: the second time all but the message_id, the body and its size is known.
    for body in (bytes(size), b"x" * size):
        ours = encode_publish(channel, frame_max, *arguments, body, message_id, {}, kind)
        assert usual_way(channel, frame_max, *arguments, body, message_id, {}, kind) == ours
        if size < frames.LONGEST - 1000:
            both_ways(channel, frame_max, arguments, body, message_id, {}, kind)


@given(
    channel=st.integers(1, 65535),
    frame_max=st.sampled_from(FRAME_MAXES),
    arguments=named(st.tuples(texts, st.one_of(texts, texts.map(lambda text: text * 20)))),
    body=st.binary(max_size=100),
    message_id=st.one_of(texts, st.text(min_size=200, max_size=300)),
    headers=st.dictionaries(texts, values, max_size=5),
    given_properties=properties,
)
def test_any_message(
    channel: int,
    frame_max: int,
    arguments: tuple[Any, ...],
    body: bytes,
    message_id: str,
    headers: dict[str, Any],
    given_properties: dict[str, Any],
) -> None:
    # Twice: the second time what repeats is known.
    for _ in range(2):
        both_ways(channel, frame_max, arguments, body, message_id, headers, given_properties)


@pytest.mark.parametrize("frame_max", FRAME_MAXES)
@given(around=st.integers(-60, 60), frames_of=st.integers(1, 3))
@example(around=-8, frames_of=1)
def test_bodies_around_the_largest_frame(frame_max: int, around: int, frames_of: int) -> None:
    body = bytes(frames_of * (frame_max - 8) + around)
    both_ways(1, frame_max, ("", "key", False, False), body, "m", {}, usual())


@pytest.mark.parametrize("frame_max", FRAME_MAXES)
@pytest.mark.parametrize("body", [b"", b"x"])
def test_headers_larger_than_a_frame(frame_max: int, body: bytes) -> None:
    """A frame that no broker takes."""
    arguments = ("", "key", False, False)
    for size in (frame_max, 1 << 20, 1 << 21):
        headers = {"b": "y", "a": "x" * size}
        with pytest.raises(ValueError, match=f"its frame_max is {frame_max}.*largest .* 'a'"):
            encode_publish(1, frame_max, *arguments, body, "m", headers, usual())
    both_ways(1, frame_max, arguments, body, "m", {"a": "x" * (frame_max - 120)}, usual())


def usual(**more: Any) -> dict[str, Any]:
    return {
        "content_type": "text/plain",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 0,
        **more,
    }


@pytest.mark.parametrize(
    "arguments, message_id, headers, more",
    [
        (("", "x" * 256, False, False), "m", {}, {}),
        (("", 5, False, False), "m", {}, {}),
        ((None, "key", False, False), "m", {}, {}),
        (("", "key", [], False), "m", {}, {}),
        (("", "key", False, False), "m" * 256, {}, {}),
        (("", "key", False, False), 5, {}, {}),
        (("", "key", False, False), "m", {"a": object()}, {}),
        (("", "key", False, False), "m", [("a", 1)], {}),
        (("", "key", False, False), "m", {}, {"priority": 300}),
        (("", "key", False, False), "m", {}, {"priority": 0.0}),
        (("", "key", False, False), "m", {}, {"delivery_mode": "2"}),
        (("", "key", False, False), "m", {}, {"delivery_mode": 2.0}),
        (("", "key", False, False), "m", {}, {"reply_to": ["q"]}),
        (("", "key", False, False), "m", {}, {"reply_to": 5}),
        (("", "key", False, False), "m", {}, {"correlation_id": 5}),
        (("", "key", False, False), "m", {}, {"timestamp": "now"}),
        (("", "key", False, False), "m", {}, {"timestamp": -1}),
        (("", "key", False, False), "m", {}, {"application_headers": {}}),
        (("", "key", False, False), "m", {}, {"weather": "fine"}),
    ],
)
def test_what_is_left_to_py_amqp(
    arguments: tuple[Any, ...], message_id: Any, headers: Any, more: dict[str, Any]
) -> None:
    # What it is equal to is known.
    both_ways(1, 4096, ("", "key", False, False), b"x", "m", {}, usual())
    assert encode_publish(1, 4096, *arguments, b"x", message_id, headers, usual(**more)) is None
    assert usual_way(1, 4096, *arguments, b"x", message_id, headers, usual(**more)) is None


def test_a_body_that_is_too_long_for_one_write() -> None:
    for size, taken in ((frames.LONGEST // 2, True), (frames.LONGEST + 1, False)):
        encoded = encode_publish(1, 131_072, "", "key", False, False, bytes(size), "m", {}, usual())
        assert (encoded is not None) is taken


def test_what_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_MOST_KEPT", 8)
    kept = frames._methods, frames._properties, frames._kinds
    for one in kept:
        one.clear()
    for number in range(40):
        both_ways(
            *(1, 4096, ("", f"key {number}", False, False), b"x", "m", {}),
            usual(expiration=str(number)),
        )
        both_ways(1, 4096, ("", f"key {number}", False, False), b"x", "m", {}, usual())
        assert all(1 <= len(one) <= 8 for one in kept)
