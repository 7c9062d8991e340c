"""Tables of AMQP are encoded as py-amqp encodes them, byte for byte, and what it refuses is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from amqp.serialization import dumps
from hypothesis import example, given
from hypothesis import strategies as st

from kombu_pools_ext.broker.amqp.tables import encode_table


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | st.sampled_from([(1 << 31) - 1, 1 << 31, -(1 << 31), 1 - (1 << 31), Colour.RED, Number.ONE])
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.decimals(min_value=-1000, max_value=1000, places=2)
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(object)
)
NAMES = st.text(max_size=10) | st.binary(max_size=5) | st.just("ü" * 128) | st.just(Colour.RED)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=4)
    ),
    max_leaves=12,
)


def outcome(encode: Any, table: Any) -> Any:
    try:
        return encode(table)
    except Exception as error:
        return type(error)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
@example({"a": 1 << 70})
@example({"a": [1.5, (True, None), {"b": {}}], "": ""})
@example({"\ud800": "\udfff"})
@example({1: "a number is no name"})
def test_a_table_is_what_py_amqp_makes_of_it(table: dict[Any, Any]) -> None:
    assert outcome(encode_table, table) == outcome(lambda one: dumps("F", (one,)), table)


@pytest.mark.parametrize(
    "value", [Decimal("1.5"), datetime(2026, 1, 31, tzinfo=UTC), b"bytes", Colour.RED, Number.ONE]
)
def test_a_value_of_a_rare_type_is_encoded_among_others(value: Any) -> None:
    table = {"before": "text", "here": {"deeper": [value]}, "after": 1}
    assert encode_table(table) == dumps("F", (table,))


def test_more_names_than_are_kept() -> None:
    for number in range(3000):
        table = {f"name-{number}": number}
        assert encode_table(table) == dumps("F", (table,))
