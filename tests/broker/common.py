"""Kombu's pools and ours, side by side; and how long a test waits for what must come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import kombu.pools
import pytest

import kombu_pools_ext.pools

__all__ = [
    "KOMBU",
    "OURS",
    "PATIENCE",
    "Hangs",
    "eventually",
    "patience",
    "within",
    "xfail_on_kombu",
]

OURS: ModuleType = kombu_pools_ext.pools
KOMBU: ModuleType = kombu.pools

#: Seconds until a test that hangs fails; nothing that works comes near it.
PATIENCE = 60.0
#: The same for kombu's pools, in tests of where they do hang.
IMPATIENCE = 1.5


class Hangs(AssertionError):
    """It has not come to an end."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What *work* returns or raises, in a thread of its own; `Hangs` if it does neither in time."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise Hangs(f"no end within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def patience(pools: ModuleType) -> float:
    """Seconds to give to what may hang in kombu's pools, and must not in ours."""
    return PATIENCE if pools is OURS else IMPATIENCE


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What *condition* returns once it is true: other threads need a moment."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)
    return value


def xfail_on_kombu(
    reason: str, raises: type[BaseException] | tuple[type[BaseException], ...]
) -> pytest.MarkDecorator:
    """Run a test on ours, and on kombu's as one that must fail: the day it does not, kombu has mended it."""
    return pytest.mark.parametrize(
        "pools",
        [
            pytest.param(OURS, id="ours"),
            pytest.param(
                KOMBU,
                id="kombu",
                marks=pytest.mark.xfail(strict=True, reason=reason, raises=raises),
            ),
        ],
    )
