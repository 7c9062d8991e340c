"""Keep tests away from real brokers: a test that has no brokers in memory is told so, or refused."""

from __future__ import annotations

import warnings
from typing import Any

from .. import events
from ..settings import PoolSettings
from ..settings.problems import did_you_mean
from . import swap
from .brokers import brokers

__all__ = ["MODES", "guard_brokers"]

#: What may be done about a test that publishes to a real broker.
MODES = ("allow", "warn", "refuse")
#: Transports whose messages stay in the process.
_IN_PROCESS = ("test://", "memory://")
#: What a test can do instead.
_REMEDY = (
    "give it brokers in memory by the fixture 'published' or 'broker', by PublishedMixin, or by swapped_brokers(); or "
    "allow it, by kombu_pools_real_brokers = allow in pytest's configuration, or guard_brokers('allow')"
)
#: The pools of which a test was told.
_told: set[str] = set()


def guard_brokers(mode: str) -> None:
    """Say what becomes of a test that publishes to a real broker, because nothing has swapped that, from now on.

    A broker is real unless the URL of its alias begins with ``test://`` or ``memory://``.

    :param mode: ``"allow"``: nothing; ``"warn"``: a ``UserWarning`` for each pool; ``"refuse"``: every publish and
        every acquire fails at once, with :class:`.RealBroker`, which is none of the errors that an application expects
        of a broker. That is for aliases; of pools of a URL or a ``Connection`` it warns.
    :raises ValueError: for another mode.
    """
    if mode not in MODES:
        raise ValueError(
            f"kombu_pools_real_brokers: expected one of {', '.join(map(repr, MODES))}, got {mode!r}"
            f"{did_you_mean(mode, MODES)}"
        )
    _told.clear()
    events.connection_opened.disconnect(_warn)
    if mode != "allow":
        events.connection_opened.connect(_warn)
    swap.set_otherwise(_refusing if mode == "refuse" else None)


def _warn(*, pool: Any, **what: Any) -> None:
    name = str(pool.name)
    if name.startswith(_IN_PROCESS) or name in _told:
        return
    _told.add(name)
    # It is called in a thread that opens connections, where no line of the test is to be found.
    warnings.warn(
        f"a test has opened a connection of pool {name!r} to a real broker; {_REMEDY}", stacklevel=2
    )


def _refusing(settings: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
    return {alias: _refused(alias, one) for alias, one in settings.items()}


def _refused(alias: str, settings: PoolSettings) -> PoolSettings:
    if all(url.startswith(_IN_PROCESS) for url in settings.url):
        return settings
    name = f"{alias} is a real broker"
    brokers.refuse(
        name,
        f"a test publishes over the alias {alias!r}, whose broker is {settings.uri}; {_REMEDY}",
    )
    return swap.in_memory(settings, name, retry=None)
