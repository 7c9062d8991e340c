"""Replace the connections of pools. Each pool opens a new one first, and keeps the old ones if that fails.

``docs/explanation/renewing.md`` has the states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from .broker.connection import OpenConnection
from .broker.connections import ConnectionPool
from .engine.stats import Drained
from .engine.trial import Trial

__all__ = ["TIMEOUT", "Kept", "renew", "try_all"]

K = TypeVar("K")

#: Seconds for the new connections of all pools together.
TIMEOUT = 5.0


def try_all(
    wanted: Iterable[tuple[K, ConnectionPool]],
    timeout: float,
    then: Callable[[K, OpenConnection | Exception], object],
) -> None:
    """Open a connection for each pool, all at the same time, without adding it to the pool.

    :param timeout: seconds for all of them together.
    :param then: called for each pool with the new connection, which it must add to the pool or close, or with the
        error.
    """
    trials: dict[K, Trial[OpenConnection]] = {}
    try:
        for name, pool in wanted:
            trials[name] = pool.try_opening(timeout)
        for name, trial in trials.items():
            opened: OpenConnection | Exception
            try:
                opened = trial.result()
            except Exception as error:
                opened = error
            then(name, opened)
    finally:
        # Closes those that an interruption, such as Ctrl-C, has left open.
        for trial in trials.values():
            trial.abandon()


@dataclass(frozen=True)
class Kept:
    """The result for a pool that keeps its connections."""

    #: How many connections.
    count: int
    #: Why the new connection could not be opened.
    error: Exception

    def told(self, why: str | None = None, more: str = "") -> str:
        """Describe it in a text.

        :param why: replaces the text of the error.
        :param more: what else is kept, as a text.
        """
        connections = "its connection" if self.count == 1 else f"its {self.count} connections"
        why = why or str(self.error) or type(self.error).__name__
        return f"keeps {connections}{more}, because a new one cannot be opened: {why}"


def renew(
    pools: Iterable[ConnectionPool], timeout: float = TIMEOUT, *, force: bool = False
) -> dict[ConnectionPool, Drained | Kept | Exception]:
    """Replace the connections of each of *pools*: open a new one, then close the old ones.

    A pool that has no connections or is suspended opens none; no pool opens one while the interpreter ends. A pool
    whose new connection fails keeps all its connections, without any effect on the others.

    :param timeout: seconds for the new connections of all pools together.
    :param force: close the old connections without opening a new one.
    :returns: for each pool how many were closed and how many are still lent, a :class:`Kept`, or its error.
    """
    done: dict[ConnectionPool, Drained | Kept | Exception] = {}

    def begin_anew(pool: ConnectionPool, opened: OpenConnection | Exception) -> None:
        if isinstance(opened, Exception):
            stats = pool.stats()
            done[pool] = Kept(stats.idle + stats.lent, opened)
        else:
            done[pool] = pool.renew(opened)

    every = tuple(dict.fromkeys(pools))
    # While the interpreter ends, no thread can be started, so nothing can be opened.
    force = force or sys.is_finalizing()
    trying = [pool for pool in every if pool.can_renew and not force]
    for pool in every:
        if pool not in trying:
            try:
                done[pool] = pool.force_close_all(close_pool=False)
            except Exception as error:
                done[pool] = error
    try_all(((pool, pool) for pool in trying), timeout, begin_anew)
    return done
