"""The soak's own logic: that it notices what is wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.outbox.soak import Count, Found

GOOD = Found(
    committed={"a": ("k", 1), "b": ("k", 2), "c": (None, 3)},
    rolled_back={"x"},
    # The copy of a came after b: a was there before.
    arrived=["a", "c", "b", "a"],
    calm={"b", "c"},
)


def test_what_arrived_as_committed_is_right() -> None:
    assert Count(GOOD).violations() == []
    assert str(Count(GOOD)) == "3 messages committed, 1 rolled back, 3 arrived, 1 copies"


@pytest.mark.parametrize(
    "found, words",
    [
        (replace(GOOD, arrived=["a", "b"]), "1 messages were committed, and have not arrived: c"),
        (
            replace(GOOD, arrived=["a", "b", "c", "x"]),
            "1 messages were rolled back, and have arrived: x",
        ),
        (replace(GOOD, arrived=["a", "b", "c", "y"]), "have arrived, and were never committed: y"),
        (replace(GOOD, calm={"a"}), "more than once, before the first fault: a"),
        (replace(GOOD, arrived=["b", "a", "c"]), "1 messages have arrived out of their order: a"),
        (replace(GOOD, rows=[(2, 1)]), r"1 rows are left \(state, attempts\): \[\(2, 1\)\]"),
    ],
)
def test_a_broken_promise_is_told(found: Found, words: str) -> None:
    (line,) = Count(found).violations()
    assert re.search(words, line)
