"""Tests are kept away from real brokers, if that is configured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Queue

from kombu_pools_ext import Pools, pools
from kombu_pools_ext.testing import RealBroker, guard_brokers, swapped_brokers
from tests.testing.test_plugin import outcomes

QUEUE = Queue("guarded", auto_delete=True)


@pytest.fixture(autouse=True)
def _allow_again() -> Iterator[None]:
    yield
    guard_brokers("allow")


def publish(aliases: Pools) -> None:
    aliases.publish("x", routing_key=QUEUE, declare=[QUEUE])


def test_refused_at_once_and_told_what_to_do() -> None:
    aliases = Pools(default="amqp://user:secret@broker.example//")
    guard_brokers("refuse")
    began = time.monotonic()
    with pytest.raises(RealBroker) as caught:
        publish(aliases)
    assert time.monotonic() - began < 3
    text = str(caught.value)
    assert "publishes over the alias 'default'" in text
    assert "amqp://user:**@broker.example" in text
    assert "secret" not in text
    assert "swapped_brokers()" in text


def test_brokers_in_memory_are_no_real_ones() -> None:
    aliases = Pools(default="test://default", other="memory://")
    guard_brokers("refuse")
    publish(aliases)
    aliases.publish("x", routing_key="guarded", using="other")


def test_a_swap_within_the_guard_is_in_force_and_afterwards_the_guard_is() -> None:
    guard_brokers("refuse")
    aliases = Pools(default="amqp://broker.example//")
    with swapped_brokers() as brokers:
        publish(aliases)
        brokers.published.assert_published(body="x", using="default")
    with pytest.raises(RealBroker, match="whose broker is amqp://broker"):
        publish(aliases)
    guard_brokers("allow")
    assert aliases.settings["default"].url == ("amqp://broker.example//",)


def test_a_guard_that_begins_within_a_swap_waits_for_its_end() -> None:
    aliases = Pools(default="amqp://broker.example//")
    with swapped_brokers():
        guard_brokers("refuse")
        publish(aliases)
    with pytest.raises(RealBroker, match="whose broker is amqp://broker"):
        publish(aliases)


def test_warned_of_once_for_each_pool(amqp_url: str) -> None:
    guard_brokers("warn")
    aliases = Pools(default={"URL": amqp_url, "LIMIT": 2})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        publish(aliases)
        with (
            aliases.connections["default"].acquire(timeout=5),
            aliases.connections["default"].acquire(timeout=5),
        ):
            pass
        with pools.connections["memory://"].acquire():
            pass
        told = [str(one.message) for one in caught if "real broker" in str(one.message)]
    assert len(told) == 1
    assert "has opened a connection of pool" in told[0]
    aliases.connections["default"].force_close_all()


def test_another_mode_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected one of 'allow', 'warn', 'refuse', got 'refused'"
    ):
        guard_brokers("refused")


def test_pytest_refuses_real_brokers_where_that_is_configured(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nkombu_pools_real_brokers = refuse\n")
    tests = """
from kombu_pools_ext.testing import RealBroker

def test_refused():
    with pytest.raises(RealBroker, match="real|whose broker"):
        publish()

def test_swapped(published):
    publish()
    published.assert_published(body="x")
"""
    assert outcomes(tests, tmp_path) == {"passed": 2}
