"""Where no thread can be started (a container's limit of processes), a caller connects by itself: by its deadline."""

from __future__ import annotations

import threading
import time
from typing import Any

import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.engine.threads import OWN_THREADS
from kombu_pools_ext.errors import BrokerUnreachable, ConnectTimeout
from tests.broker.common import PATIENCE
from tests.broker.rig import confirming
from tests.proxy import Proxy


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start_it = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name.startswith(OWN_THREADS):
            raise RuntimeError("can't start new thread")
        start_it(self)

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.threads
@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_peer_that_says_nothing_takes_no_longer_than_its_caller_has(
    mute: Proxy, scheme: str
) -> None:
    if scheme == "redis":
        pytest.importorskip("redis")
    url = f"{scheme}://{mute.address}/0"
    connections = pools.ConnectionPool(kombu.Connection(url, connect_timeout=PATIENCE), limit=1)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises((ConnectTimeout, BrokerUnreachable)):
            connections.acquire(timeout=0.2)
        assert time.monotonic() - began < PATIENCE / 2
    assert connections.stats().size == 0
    connections.force_close_all()


@pytest.mark.threads
@pytest.mark.usefixtures("no_threads")
def test_a_broker_that_answers_serves_as_ever(broker_url: str) -> None:
    connections = pools.ConnectionPool(confirming(broker_url), limit=2)
    producers: Any = pools.ProducerPool(connections)
    for _ in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key="nobody's")
    assert connections.stats().opened == 1
    connections.force_close_all()
