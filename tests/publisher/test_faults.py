"""Connections that break, at any byte: one outcome each, none reported that is not there, and the order kept."""

from __future__ import annotations

import ctypes
import logging
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.broker.amqp.silence import PATIENCE, SILENCE
from kombu_pools_ext.errors import BrokerBlocked, PublishUnknown
from tests.broker.common import eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, through
from tests.brokers import PrivateRabbitMQ
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy
from tests.publisher.conftest import Crowd, Fanned, MakePools, first_arrivals

MakeInbox = Callable[[str], Inbox]
MakeProxy = Callable[[str], Proxy]

THREADS = 16


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("action", ["cut", "reset", "half-close", "garble"])
@pytest.mark.parametrize("broker_url", AMQP, indirect=True)
def test_each_has_one_outcome_and_what_is_reported_is_there(
    broker_url: str,
    shared: MakePools,
    fanned: Callable[..., Fanned],
    proxied: MakeProxy,
    action: str,
    seed: int,
) -> None:
    proxy, to = proxied(broker_url), fanned(broker_url)
    pools = shared(through(proxy, broker_url), LIMIT=3)
    chance = random.Random(f"{action} {seed}")
    each = 12
    pools.publish((-1, 0), "k", exchange=to.names[0])
    # RabbitMQ may keep a connection of TLS whose client has ended in mid-record, and say no more.
    silent = action == "half-close" and broker_url.startswith("amqps")
    for direction in (TO_CLIENT,) if silent else (TO_SERVER, TO_CLIENT):
        for link in proxy.alive:
            at = len(link.sent(direction)) + chance.randrange(20_000)
            argument = (chance.randrange(1, 256),) if action == "garble" else ()
            link.play([(direction, at, action, *argument)])
    reported: set[str] = set()

    def publish(thread: int) -> None:
        for number in range(each):
            for exchange in to.names:
                name = f"{thread} {number} {exchange}"
                pools.publish((thread, number), "k", exchange=exchange, message_id=name)
                assert name not in reported
                reported.add(name)

    errors = Crowd(THREADS, publish).errors()
    found = to.ids()
    if action == "garble" and not broker_url.startswith("amqps"):
        # A flipped bit makes of a message or an answer whatever AMQP allows.
        return
    assert errors == []
    for exchange, arrived in found.items():
        ids = {name for name, _ in arrived}
        assert {one for one in reported if one.endswith(f" {exchange}")} <= ids
        firsts = first_arrivals([tuple(body) for _, body in arrived])
        for thread in range(THREADS):
            assert [n for t, n in firsts if t == thread] == list(range(each))


def test_connections_are_cut_again_and_again(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned], proxied: MakeProxy
) -> None:
    proxy, to = proxied(amqp_url), fanned(amqp_url)
    # A busy machine connects so slowly that one message is cut off several times.
    pools = shared(through(proxy, amqp_url), LIMIT=2, RETRY={"max_retries": 1000})
    chance, ended = random.Random(7), threading.Event()

    def publish(thread: int) -> None:
        for number in range(15):
            for exchange in to.names:
                name = f"{thread} {number}"
                pools.publish((thread, number), "k", exchange=exchange, message_id=name)

    def cut() -> None:
        while not ended.wait(chance.uniform(0.02, 0.2)):
            chance.choice([proxy.cut, proxy.reset])()

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        assert Crowd(THREADS, publish).errors() == []
    finally:
        ended.set()
        cutting.join()
    for arrived in to.ids().values():
        firsts = first_arrivals([(name, tuple(body)) for name, body in arrived])
        # The same message_id for each try.
        assert len(firsts) == THREADS * 15
        for thread in range(THREADS):
            assert [b[1] for _, b in firsts if b[0] == thread] == list(range(15))


def test_without_retry_a_break_ends_as_unknown_and_is_not_sent_again(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = shared(through(proxy, amqp_url), RETRY=None)
    pools.publish("warm", box.name)
    proxy.hold(TO_CLIENT)
    crowd = Crowd(8, lambda thread: pools.publish(thread, box.name))
    box_has = box.bodies(9)
    assert sorted(map(str, box_has)) == sorted([*map(str, range(8)), "warm"])
    proxy.heal()
    proxy.cut()
    errors = crowd.errors()
    assert all(isinstance(one, PublishUnknown) for one in errors)
    assert box.bodies() == []


@pytest.mark.slow
def test_a_peer_that_falls_silent_costs_nobody_an_error(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = shared(through(proxy, amqp_url))
    pools.publish((-1, 0), box.name)
    (link,) = proxy.alive
    forget(link.client)

    def publish(thread: int) -> None:
        for number in range(3):
            pools.publish((thread, number), box.name)

    assert Crowd(8, publish).errors() == []
    assert {tuple(one) for one in box.bodies(25)} >= {(t, n) for t in range(8) for n in range(3)}
    assert pools.connections["default"].stats().opened == 2


@pytest.mark.slow
def test_a_peer_that_only_acknowledges_is_found_out_in_time(
    amqp_url: str,
    shared: MakePools,
    inbox: MakeInbox,
    proxied: MakeProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "kombu_pools_ext")
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = shared(through(proxy, amqp_url))
    pools.publish((-1, 0), box.name)
    (link,) = proxy.alive
    # The system of the proxy acknowledges what it receives, and nothing passes.
    link.silence()

    def publish(thread: int) -> None:
        for number in range(3):
            pools.publish((thread, number), box.name)

    assert Crowd(8, publish).errors() == []
    assert {tuple(one) for one in box.bodies(25)} >= {(t, n) for t in range(8) for n in range(3)}
    assert pools.connections["default"].stats().opened == 2
    (told,) = [line for line in caplog.messages if "sent again on another connection" in line]
    assert re.search("messages without an answer, [1-8] of them, are .*has said nothing for", told)


@pytest.mark.slow
def test_a_queue_that_takes_its_time_is_not_taken_for_silence(
    private_rabbitmq: PrivateRabbitMQ, shared: MakePools, inbox: MakeInbox
) -> None:
    box = inbox(private_rabbitmq.url)
    pools = shared(private_rabbitmq.url)
    pools.publish("warm", box.name)
    with private_rabbitmq.suspended_queue(box.name):
        crowd = Crowd(8, lambda thread: pools.publish(thread, box.name))
        # Longer than it waits before it asks for a sign, and for that.
        with pytest.raises(AssertionError, match="have not come to an end"):
            crowd.join(SILENCE + PATIENCE + 1)
    assert crowd.errors() == []
    assert pools.connections["default"].stats().opened == 1


@pytest.mark.slow
def test_a_slow_broker_is_not_taken_for_silent(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = shared(through(proxy, amqp_url))
    pools.publish("warm", box.name)
    # Longer than it waits before it asks for a sign, and shorter than it waits for that.
    proxy.delay(SILENCE + 0.5, TO_CLIENT)
    assert Crowd(8, lambda thread: pools.publish(thread, box.name)).errors() == []
    assert pools.connections["default"].stats().opened == 1
    assert len(box.bodies(9)) == 9


@pytest.mark.slow
def test_a_blocked_broker_is_named_for_what_was_not_sent(
    private_rabbitmq: PrivateRabbitMQ, shared: MakePools, inbox: MakeInbox
) -> None:
    url = private_rabbitmq.url
    box = inbox(url)
    pools = shared(url, CONFIRM_TIMEOUT=4.0, ACQUIRE_TIMEOUT=1.0)
    pools.publish("warm", box.name)
    with private_rabbitmq.memory_alarm():
        # The first one hears of it.
        first = Crowd(1, lambda thread: pools.publish("first", box.name))
        producers = pools.producers["default"]
        eventually(lambda: producers.blocked)
        errors = Crowd(8, lambda thread: pools.publish(thread, box.name)).errors()
        assert [type(one) for one in errors] == [BrokerBlocked] * 8
        assert all("not sent" in " ".join(getattr(one, "__notes__", [])) for one in errors)
        assert [type(one).__name__ for one in first.errors()] == ["PublishUnknown"]
    began = time.monotonic()
    pools.publish("after", box.name, acquire_timeout=20)
    assert time.monotonic() - began < 20
    bodies = box.bodies(2)
    assert {"warm", "after"} <= set(bodies) <= {"warm", "first", "after"}


@pytest.mark.slow
def test_messages_go_on_when_the_alarm_is_over(
    private_rabbitmq: PrivateRabbitMQ, shared: MakePools, inbox: MakeInbox
) -> None:
    url = private_rabbitmq.url
    box, pools = inbox(url), shared(url)
    pools.publish("warm", box.name)
    with private_rabbitmq.memory_alarm():
        crowd = Crowd(8, lambda thread: pools.publish(thread, box.name))
        eventually(lambda: pools.producers["default"].blocked)
    assert crowd.errors() == []
    assert pools.connections["default"].stats().opened == 1
    assert len(box.bodies(9)) == 9


def forget(sock: socket.socket) -> None:
    """Have no packet reach *sock* any more, so that none is acknowledged: as if a firewall had forgotten it."""
    # A program for the kernel's packet filter: "take nothing of it".
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(
        socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(program))
    )  # SO_ATTACH_FILTER


def drip(proxy: Proxy) -> Any:
    return proxy.drip(0.0005, TO_CLIENT)


def test_answers_that_come_byte_by_byte(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, proxied: MakeProxy
) -> None:
    proxy, box = proxied(amqp_url), inbox(amqp_url)
    pools = shared(through(proxy, amqp_url))
    pools.publish("warm", box.name)
    drip(proxy)
    assert Crowd(8, lambda thread: pools.publish(thread, box.name)).errors() == []
    proxy.heal()
    assert len(box.bodies(9)) == 9
    assert pools.connections["default"].stats().opened == 1
