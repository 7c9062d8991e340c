"""Signed messages: who can make them, how long they hold, and that none holds twice."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_pools_ext.control.seal import LARGEST, WINDOW, Late, Message, Refused, Seal, Window

KEY = b"k" * 32
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def signed(text: bytes, place: str = "here") -> bytes:
    """*text* as somebody with the key might sign it."""
    own = hmac.digest(KEY, place.encode(), "sha256")
    return hmac.digest(own, text, "sha256").hex().encode() + b" " + text


def message(number: str = "1", at: float = NOW) -> Message:
    return Message("who", number, at, {})


def test_what_is_sealed_is_opened() -> None:
    data, number = Seal(KEY, "here", Clock()).make("do", {"names": ["ä"]}, "about")
    assert Seal(KEY, "here").open(data) == Message("do", number, NOW, {"names": ["ä"]}, "about")


def test_no_two_messages_have_one_number() -> None:
    seal = Seal(KEY, "here")
    assert len({seal.make("who", {})[1] for _ in range(100)}) == 100


@pytest.mark.parametrize("key, place", [(b"l" * 32, "here"), (KEY, "there")])
def test_of_another_project_or_from_another_place(key: bytes, place: str) -> None:
    data, _ = Seal(key, place).make("who", {})
    with pytest.raises(Refused, match="not signed"):
        Seal(KEY, "here").open(data)


@given(st.data())
def test_no_byte_of_it_can_be_changed(data: st.DataObject) -> None:
    seal = Seal(KEY, "here", Clock())
    whole = bytearray(seal.make("do", {"names": ["a"]})[0])
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused):
        seal.open(bytes(whole))


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(Refused):
        Seal(KEY, "here").open(data)


@pytest.mark.parametrize("data", [None, "text", 1, {}, memoryview(b"bytes")])
def test_what_is_no_bytes(data: Any) -> None:
    with pytest.raises(Refused, match="no message"):
        Seal(KEY, "here").open(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"kind": "who"}',
        json.dumps({"kind": 1, "number": "1", "at": 1, "content": {}, "about": None}).encode(),
        json.dumps({"kind": "who", "number": 1, "at": 1, "content": {}, "about": None}).encode(),
        json.dumps({"kind": "who", "number": "1", "at": "1", "content": {}, "about": 1}).encode(),
        json.dumps({"kind": "who", "number": "1", "at": 1, "content": [], "about": None}).encode(),
    ],
)
def test_signed_and_of_no_use(text: bytes) -> None:
    with pytest.raises(Refused, match=r"cannot be read|another version"):
        Seal(KEY, "here").open(signed(text))


def test_what_is_new_in_a_later_version_is_left_alone() -> None:
    whole = {"kind": "who", "number": "1", "at": 1, "content": {}, "about": None, "new": 1}
    assert Seal(KEY, "here").open(signed(json.dumps(whole).encode())).kind == "who"


def test_too_large() -> None:
    seal = Seal(KEY, "here")
    with pytest.raises(Refused, match="at most"):
        seal.open(signed(b" " * LARGEST))
    with pytest.raises(ValueError, match="at most"):
        seal.make("did", {"rows": "x" * LARGEST})


def test_a_command_passes_once() -> None:
    window = Window(Clock())
    window.admit(message())
    window.admit(message("2"))
    with pytest.raises(Refused, match="a second time"):
        window.admit(message())


@pytest.mark.parametrize("off", [-WINDOW, 0.0, WINDOW])
def test_clocks_may_differ(off: float) -> None:
    Window(Clock()).admit(message(at=NOW + off))


@pytest.mark.parametrize(
    "off, words",
    [
        (-WINDOW - 1, "31 s behind"),
        (WINDOW + 1, "31 s ahead of"),
        (float("inf"), "ahead of"),
        (float("nan"), "one of the two"),
    ],
)
def test_but_not_by_more_than_the_window(off: float, words: str) -> None:
    window = Window(Clock())
    for _ in range(2):
        with pytest.raises(Late, match=words):
            window.admit(message(at=NOW + off))


def test_what_passed_is_remembered_as_long_as_it_holds() -> None:
    clock = Clock()
    window = Window(clock, most=2)
    # Of a clock that is ahead of ours: it holds for two windows.
    window.admit(message("1", NOW + WINDOW))
    window.admit(message("2", NOW))
    with pytest.raises(Refused, match="2 commands came"):
        window.admit(message("3"))
    clock.now += WINDOW + 1
    window.admit(message("3", clock.now))
    with pytest.raises(Refused, match="a second time"):
        window.admit(message("1", NOW + WINDOW))
