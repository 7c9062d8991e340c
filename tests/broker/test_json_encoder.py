"""JSON as kombu makes it, with an encoder that all threads share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError

from kombu_pools_ext.broker.amqp import json_encoder
from kombu_pools_ext.broker.amqp.json_encoder import serialized

texts = st.text(max_size=20)
bodies = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.uuids(), st.datetimes()),
        *(st.dates(), st.times(), st.binary(max_size=20), st.decimals(), st.just(object())),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(texts, st.integers(), st.none()), inner, max_size=3),
        st.dictionaries(st.tuples(texts), inner, max_size=1),
    ),
    max_leaves=8,
)

PRODUCER = kombu.Producer(None)


def ours(body: Any) -> Any:
    return serialized(PRODUCER, body, None, None, None, {})


def kombus(body: Any) -> Any:
    return PRODUCER._prepare(body, None, None, None, None, {})


def said(encode: Any, body: Any) -> Any:
    try:
        return encode(body)
    except Exception as error:
        return type(error), str(error), type(error.__cause__)


@given(bodies)
def test_any_body(body: Any) -> None:
    assert list(json_encoder.problems()) == []
    assert said(ours, body) == said(kombus, body)


class Itself:
    def __json__(self) -> Any:
        return [self]


@pytest.mark.parametrize("kind", ["list", "dict", "by way of an object"])
def test_a_circle(kind: str) -> None:
    circle: Any = {"list": [1], "dict": {"a": 1}}.get(kind, Itself())
    if kind == "list":
        circle.append({"b": circle})
    elif kind == "dict":
        circle["b"] = [circle]
    for encode in (ours, kombus):
        with pytest.raises(EncodeError, match="Circular reference"):
            encode(circle)
    # Nothing of it is left.
    assert ours([1, {"a": 2}]) == kombus([1, {"a": 2}])


def test_threads_that_encode_the_same_at_once() -> None:
    """An encoder that looked out for circles would take the other thread's for one."""

    class Slow:
        def __json__(self) -> int:
            return sum(1 for _ in range(1000))

    body = {"a": [Slow() for _ in range(20)]}
    with ThreadPoolExecutor(8) as threads:
        for answer in threads.map(ours, [body] * 200):
            assert answer[0] == kombus(body)[0]


def test_without_its_part_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_encoder, "_chunks", None)
    assert ours({"a": [1, 2]}) == kombus({"a": [1, 2]})


class SoftTimeLimit(Exception):
    """What a signal handler raises."""


def test_what_interrupts_the_encoder_comes_through_and_what_a_body_raises_is_an_encode_error() -> (
    None
):
    class Interrupted(dict[str, int]):
        # As a signal handler within the encoder, whose part in C has no frame.
        def items(self) -> Any:
            raise SoftTimeLimit

    class Broken:
        def __json__(self) -> Any:
            raise SoftTimeLimit

    with pytest.raises(SoftTimeLimit):
        ours(Interrupted(a=1))
    with pytest.raises(EncodeError):
        ours(Broken())
