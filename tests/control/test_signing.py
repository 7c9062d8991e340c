"""Signed messages: which are accepted, for how long, and each only once."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_pools_ext.control.remote.signing import (
    LARGEST,
    VALID_FOR,
    ExpiredCommand,
    Message,
    RejectedMessage,
    ReplayGuard,
    Signer,
)

KEY = b"k" * 32
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def signed(text: bytes, place: str = "here") -> bytes:
    """Return *text*, signed with the key."""
    own = hmac.digest(KEY, place.encode(), "sha256")
    return hmac.digest(own, text, "sha256").hex().encode() + b" " + text


def message(number: str = "1", at: float = NOW) -> Message:
    return Message("who", number, at, {})


def test_a_signed_message_is_accepted() -> None:
    data, number = Signer(KEY, "here", Clock()).make("do", {"names": ["ä"]}, "about")
    assert Signer(KEY, "here").open(data) == Message("do", number, NOW, {"names": ["ä"]}, "about")


def test_each_message_has_its_own_number() -> None:
    signer = Signer(KEY, "here")
    assert len({signer.make("who", {})[1] for _ in range(100)}) == 100


@pytest.mark.parametrize("key, place", [(b"l" * 32, "here"), (KEY, "there")])
def test_messages_of_another_project_or_scope_are_rejected(key: bytes, place: str) -> None:
    data, _ = Signer(key, place).make("who", {})
    with pytest.raises(RejectedMessage, match="not signed"):
        Signer(KEY, "here").open(data)


@given(st.data())
def test_a_message_with_any_changed_byte_is_rejected(data: st.DataObject) -> None:
    signer = Signer(KEY, "here", Clock())
    whole = bytearray(signer.make("do", {"names": ["a"]})[0])
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RejectedMessage):
        signer.open(bytes(whole))


@given(st.binary(max_size=200))
def test_garbage_is_rejected(data: bytes) -> None:
    with pytest.raises(RejectedMessage):
        Signer(KEY, "here").open(data)


@pytest.mark.parametrize("data", [None, "text", 1, {}, memoryview(b"bytes")])
def test_a_message_that_is_not_bytes_is_refused(data: Any) -> None:
    with pytest.raises(RejectedMessage, match="not a message"):
        Signer(KEY, "here").open(data)


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
def test_signed_messages_without_the_right_keys_are_rejected(text: bytes) -> None:
    with pytest.raises(RejectedMessage, match=r"cannot be parsed|another version"):
        Signer(KEY, "here").open(signed(text))


def test_unknown_keys_of_a_later_version_are_ignored() -> None:
    whole = {"kind": "who", "number": "1", "at": 1, "content": {}, "about": None, "new": 1}
    assert Signer(KEY, "here").open(signed(json.dumps(whole).encode())).kind == "who"


def test_messages_that_are_too_large_are_rejected() -> None:
    signer = Signer(KEY, "here")
    with pytest.raises(RejectedMessage, match="at most"):
        signer.open(signed(b" " * LARGEST))
    with pytest.raises(ValueError, match="at most"):
        signer.make("did", {"rows": "x" * LARGEST})


def test_a_command_is_admitted_once() -> None:
    window = ReplayGuard(Clock())
    window.admit(message())
    window.admit(message("2"))
    with pytest.raises(RejectedMessage, match="a second time"):
        window.admit(message())


@pytest.mark.parametrize("off", [-VALID_FOR, 0.0, VALID_FOR])
def test_clocks_may_differ(off: float) -> None:
    ReplayGuard(Clock()).admit(message(at=NOW + off))


@pytest.mark.parametrize(
    "off, words",
    [
        (-VALID_FOR - 1, "31 s behind"),
        (VALID_FOR + 1, "31 s ahead of"),
        (float("inf"), "ahead of"),
        (float("nan"), "one of the two"),
    ],
)
def test_clocks_may_not_differ_by_more_than_the_window(off: float, words: str) -> None:
    window = ReplayGuard(Clock())
    for _ in range(2):
        with pytest.raises(ExpiredCommand, match=words):
            window.admit(message(at=NOW + off))


def test_an_admitted_message_is_remembered_while_it_is_valid() -> None:
    clock = Clock()
    window = ReplayGuard(clock, most=2)
    # Of a clock that is ahead of ours: it holds for two windows.
    window.admit(message("1", NOW + VALID_FOR))
    window.admit(message("2", NOW))
    with pytest.raises(RejectedMessage, match="2 commands came"):
        window.admit(message("3"))
    clock.now += VALID_FOR + 1
    window.admit(message("3", clock.now))
    with pytest.raises(RejectedMessage, match="a second time"):
        window.admit(message("1", NOW + VALID_FOR))
