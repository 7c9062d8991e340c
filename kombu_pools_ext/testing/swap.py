"""Swap the brokers of all aliases for brokers in memory, as long as a test runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from ..aliases import replace_settings
from ..settings import PoolSettings
from .brokers import Brokers, brokers
from .names import url_of

__all__ = ["in_memory", "set_otherwise", "start", "stop", "swapped_brokers"]

F = TypeVar("F", bound=Callable[..., Any])
Replacement = Callable[[dict[str, PoolSettings]], dict[str, PoolSettings]]

#: What ends each swap that has begun.
_ends: list[Callable[[], None]] = []
#: What replaces the settings where none has begun.
_otherwise: Replacement | None = None


def _swapped(settings: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
    return {alias: _to_memory(alias, one) for alias, one in settings.items()}


def _to_memory(alias: str, settings: PoolSettings) -> PoolSettings:
    # It has the name of the alias, whatever its host is.
    brokers.name(alias)
    return in_memory(settings, alias)


def in_memory(settings: PoolSettings, name: str, **changes: Any) -> PoolSettings:
    """Return *settings* with the broker in memory called *name* in the place of theirs, and with these *changes*."""
    return replace(
        settings,
        url=(url_of(name),),
        ssl=False,
        credentials=None,
        # Other transports have options that AMQP does not know.
        transport_options=settings.transport_options if settings.is_amqp else {},
        **changes,
    )


def start() -> None:
    """Begin a swap; each has to be ended by :func:`stop`. One within another begins, and ends, with empty brokers."""
    if _ends:
        brokers.clear()
        _ends.append(brokers.clear)
        return
    brokers.clear()
    replace_settings(_swapped)
    _ends.append(_end)


def _end() -> None:
    replace_settings(_otherwise)
    brokers.clear()


def set_otherwise(replacement: Replacement | None) -> None:
    """Have *replacement* replace the settings of all aliases where nothing has swapped their brokers."""
    global _otherwise
    _otherwise = replacement
    if not _ends:
        replace_settings(replacement)


def stop() -> None:
    """End the swap that began last."""
    _ends.pop()()


class swapped_brokers:  # noqa: N801  # named like a function, as other context managers are
    """Within, each alias has a broker in memory in the place of its own, whichever framework has configured it.

    The settings stay as they are, but for the URL, the credentials and TLS. Each broker is empty, and so is the list of
    what was published. Afterwards the aliases have their own brokers again.

    It is also a decorator of functions and coroutine functions.
    """

    def __enter__(self) -> Brokers:
        start()
        return brokers

    def __exit__(self, *exc: object) -> None:
        stop()

    def __call__(self, function: F) -> F:
        """Return *function*, which runs with swapped brokers.

        :raises TypeError: for a class; that takes :class:`.PublishedMixin`.
        """
        if isinstance(function, type):
            raise TypeError(
                f"swapped_brokers() decorates functions, and {function.__name__} is a class: let it "
                "inherit from PublishedMixin"
            )
        is_coroutine = inspect.iscoroutinefunction(function)
        wrapped: F = _wrapped_coroutine(function) if is_coroutine else _wrapped(function)
        return wrapped


def _wrapped(function: Any) -> Any:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with swapped_brokers():
            return function(*args, **kwargs)

    return wrapped


def _wrapped_coroutine(function: Any) -> Any:
    @wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        with swapped_brokers():
            return await function(*args, **kwargs)

    return wrapped
