"""Where kombu or py-amqp are not as they are known, they publish alone."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import amqp
import kombu
import pytest
from kombu.transport import pyamqp

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import compat, json_encoder
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has looked yet."""
    monkeypatch.setattr(compat, "_fits", None)
    monkeypatch.setattr(compat, "_words", list(compat._words))
    monkeypatch.setattr(json_encoder, "_known", json_encoder._known)


def test_the_installed_ones_fit(caplog: pytest.LogCaptureFixture, unknown: None) -> None:
    assert list(compat.problems()) == []
    assert compat.fits()
    assert compat.is_unchanged()
    assert not caplog.records


def other_parameters(self: Any, sig: Any, content: Any = None) -> Any:
    raise AssertionError("nobody calls it")


def other_frames(connection: Any, transport: Any) -> Callable[..., None]:
    def write(*args: Any) -> None:
        transport.write(b"others")
        connection.bytes_sent += 1

    return write


def no_frames(connection: Any, transport: Any) -> Callable[..., None]:
    raise RuntimeError("not today")


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.broker
@pytest.mark.parametrize(
    "owner, name, other, why",
    [
        (amqp.abstract_channel.AbstractChannel, "send_method", other_parameters, "none of its own"),
        (compat, "_METHODS", ((amqp.Channel, "close", ("code",)),), "has other parameters"),
        (compat, "frame_writer", other_frames, "are others"),
        (compat, "frame_writer", no_frames, r"a trial failed: RuntimeError\('not today'\)"),
        (json_encoder, "_encode", str, "encodes otherwise"),
        (kombu.Producer, "publish", wrapped(kombu.Producer.publish), "none of its own"),
        (amqp.Channel, "basic_publish", wrapped(amqp.Channel.basic_publish), "is not its own"),
        (amqp.Channel, "_METHODS", dict.fromkeys(amqp.Channel._METHODS, amqp.Channel._METHODS[(60, 50)]),
         "is another"),
    ],
)  # fmt: skip
def test_another_shape_is_told_once(
    owner: Any,
    name: str,
    other: Any,
    why: str,
    unknown: None,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    taken: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = inbox(amqp_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, other)
        with caplog.at_level(logging.WARNING, "kombu_pools_ext"):
            assert not compat.fits()
            assert not compat.fits()
    # As it was found, even though all works again.
    for connection in (kombu.Connection(amqp_url), confirming(amqp_url)):
        with pools.producers[connection].acquire(timeout=PATIENCE) as producer:
            for _ in range(2):
                producer.publish("x", routing_key=box.name)
    (record,) = caplog.records
    assert "which takes longer" in record.getMessage()
    assert record.levelno == logging.WARNING
    assert re.search(why, record.getMessage())
    assert taken == []
    assert box.bodies(4) == ["x"] * 4


@pytest.mark.broker
@pytest.mark.parametrize(
    "owner, name",
    [
        *((kombu.Producer, name) for name in ("publish", "_publish", "_prepare")),
        *((pyamqp.Channel, name) for name in ("prepare_message", "send_method")),
        (pyamqp.Connection, "drain_events"),
    ],
)
def test_whoever_puts_himself_between_is_called(
    owner: Any,
    name: str,
    amqp_url: str,
    inbox: Callable[[str], Inbox],
    taken: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracer, say, which wraps a method of kombu's or py-amqp's; before the first publish, or after."""
    box, calls, original = inbox(amqp_url), 0, getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        for _ in range(2):
            producer.publish("x", routing_key=box.name)
        # The first of all opens the channel, by kombu.
        assert len(taken) == 1
        monkeypatch.setattr(owner, name, wrapper)
        producer.publish("x", routing_key=box.name)
        assert len(taken) == 1
        assert calls
        monkeypatch.undo()
    assert box.bodies(3) == ["x"] * 3


@pytest.mark.broker
@pytest.mark.parametrize("name", ["_publish", "_prepare"])
def test_so_is_who_does_it_to_a_producer(
    name: str, amqp_url: str, inbox: Callable[[str], Inbox], taken: list[bytes]
) -> None:
    box = inbox(amqp_url)
    with pools.producers[amqp_url].acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=box.name)
        original, calls = getattr(producer, name), []

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return original(*args, **kwargs)

        setattr(producer, name, wrapper)
        producer.publish("x", routing_key=box.name)
        delattr(producer, name)
    assert calls
    assert taken == []
    assert box.bodies(2) == ["x"] * 2


def test_classes_of_producers() -> None:
    class Adds(kombu.Producer):  # type: ignore[misc]  # kombu ships no types
        serializer = "pickle"

        def greet(self) -> None:
            """Something else."""

    class Changes(Adds):
        def _prepare(self, *args: Any, **kwargs: Any) -> Any:
            return super()._prepare(*args, **kwargs)

    assert compat.is_plain(kombu.Producer)
    assert compat.is_plain(Adds)
    assert not compat.is_plain(Changes)
