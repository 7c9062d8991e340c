"""Swap the brokers of all aliases for brokers in memory, as long as a test runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..aliases import replace_settings
from ..settings import PoolSettings
from .brokers import Brokers, brokers
from .names import url_of

__all__ = ["start", "stop", "swapped_brokers"]

#: What ends each swap that has begun.
_ends: list[Callable[[], None]] = []


def _swapped(settings: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
    return {alias: _to_memory(alias, one) for alias, one in settings.items()}


def _to_memory(alias: str, settings: PoolSettings) -> PoolSettings:
    # It has the name of the alias, whatever its host is.
    brokers.name(alias)
    return replace(
        settings,
        url=(url_of(alias),),
        ssl=False,
        credentials=None,
        # Other transports have options that AMQP does not know.
        transport_options=settings.transport_options if settings.is_amqp else {},
    )


def start() -> None:
    """Begin a swap; each has to be ended by :func:`stop`. Within another one, it begins with an empty list alone."""
    if _ends:
        brokers.published.clear()
        _ends.append(lambda: None)
        return
    brokers.clear()
    replace_settings(_swapped)
    _ends.append(_end)


def _end() -> None:
    replace_settings(None)
    brokers.clear()


def stop() -> None:
    """End the swap that began last."""
    _ends.pop()()


@contextmanager
def swapped_brokers() -> Iterator[Brokers]:
    """Within, each alias has a broker in memory in the place of its own, whichever framework has configured it.

    The settings stay as they are, but for the URL, the credentials and TLS. Each broker is empty, and so is the list of
    what was published. Afterwards the aliases have their own brokers again.
    """
    start()
    try:
        yield brokers
    finally:
        stop()
