"""A plugin of pytest, which finds it by its entry point: the fixtures ``broker`` and ``published``.

Nothing happens unless a test asks for one of them, or ``kombu_pools_swap`` is on in pytest's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest  # pyright: ignore[reportMissingImports]  # pytest has it, and what checks types need not

from .broker import Broker
from .brokers import Brokers
from .published import Published
from .swap import swapped_brokers

__all__ = ["broker", "published", "pytest_addoption", "pytest_configure", "swapped"]

#: The option in pytest's configuration.
OPTION = "kombu_pools_swap"


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    parser.addini(
        OPTION,
        "whether each test has brokers in memory in the place of those of all aliases of kombu-pools-ext, "
        "and not only tests that ask for the fixture 'broker' or 'published'",
        type="bool",
        default=False,
    )


def pytest_configure(config: Any) -> None:
    """Swap brokers in each test, if that is configured."""
    if config.getini(OPTION):
        config.pluginmanager.register(_EveryTest(), "kombu_pools_swap_in_every_test")


def _swap() -> Iterator[Brokers]:
    with swapped_brokers() as found:
        yield found


def _broker(kombu_pools_swapped: Brokers) -> Broker:
    """The broker in memory of the alias ``default``, and one for each other alias, as long as the test runs."""
    return kombu_pools_swapped["default"]


def _published(kombu_pools_swapped: Brokers) -> Published:
    """What the test publishes, over any alias; it goes to brokers in memory."""
    return kombu_pools_swapped.published


def _in_every_test(self: object, kombu_pools_swapped: Brokers) -> None:
    pass


class _EveryTest:
    """The plugin that is registered if each test is to have brokers in memory."""

    swap: Any = pytest.fixture(_in_every_test, autouse=True, name="kombu_pools_in_every_test")


swapped: Any = pytest.fixture(_swap, name="kombu_pools_swapped")
broker: Any = pytest.fixture(_broker, name="broker")
published: Any = pytest.fixture(_published, name="published")
