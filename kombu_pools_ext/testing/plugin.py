"""A plugin of pytest, which finds it by its entry point: the fixtures ``broker`` and ``published``.

Nothing happens unless a test asks for one of them, or an option is set in pytest's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest  # pyright: ignore[reportMissingImports]  # pytest has it, and what checks types need not

from .broker import Broker
from .brokers import Brokers
from .guard import guard_brokers
from .published import Published
from .swap import swapped_brokers

__all__ = ["broker", "published", "pytest_addoption", "pytest_configure", "swapped"]

#: The options in pytest's configuration.
SWAP, REAL_BROKERS = "kombu_pools_swap", "kombu_pools_real_brokers"


def pytest_addoption(parser: Any) -> None:
    """Add the options."""
    parser.addini(
        SWAP,
        "whether each test has brokers in memory in the place of those of all aliases of kombu-pools-ext, "
        "and not only tests that ask for the fixture 'broker' or 'published'",
        type="bool",
        default=False,
    )
    parser.addini(
        REAL_BROKERS,
        "what becomes of a test that publishes to a real broker by kombu-pools-ext: 'allow', 'warn' or 'refuse'",
        default="allow",
    )


def pytest_configure(config: Any) -> None:
    """Do what is configured: swap brokers in each test, or look out for real ones.

    :raises pytest.UsageError: for a value that is not known.
    """
    if config.getini(SWAP):
        config.pluginmanager.register(_EveryTest(), "kombu_pools_swap_in_every_test")
    mode = config.getini(REAL_BROKERS)
    if mode != "allow":
        try:
            guard_brokers(mode)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        config.add_cleanup(lambda: guard_brokers("allow"))


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
