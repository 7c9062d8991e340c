"""New connections before the old ones go: each pool opens one first, and keeps what it has if it cannot.

``docs/explanation/renewing.md`` has the states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from .broker.connections import ConnectionPool
from .broker.driver import OpenConnection
from .engine.counters import Drained
from .engine.trial import Trial

__all__ = ["TIMEOUT", "Kept", "renew", "try_all"]

K = TypeVar("K")

#: Seconds for the new connections, those of all pools together.
TIMEOUT = 5.0


def try_all(
    wanted: Iterable[tuple[K, ConnectionPool]],
    timeout: float,
    then: Callable[[K, OpenConnection | Exception], object],
) -> None:
    """Open a connection beside each pool, all at once.

    :param timeout: seconds for all of them together.
    :param then: is called for each with its connection, which is *then*'s to take in or to close, or with what the
        opening failed of.
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
        # What an interruption, Ctrl-C say, left open.
        for trial in trials.values():
            trial.give_up()


@dataclass(frozen=True)
class Kept:
    """A pool keeps what it has."""

    #: How many connections.
    count: int
    #: What the new connection failed of.
    error: Exception

    def told(self, why: str | None = None, more: str = "") -> str:
        """In words.

        :param why: the error in words.
        :param more: what is kept besides.
        """
        connections = "its connection" if self.count == 1 else f"its {self.count} connections"
        why = why or str(self.error) or type(self.error).__name__
        return f"keeps {connections}{more}, because a new one cannot be opened: {why}"


def renew(
    pools: Iterable[ConnectionPool], timeout: float = TIMEOUT, *, force: bool = False
) -> dict[ConnectionPool, Drained | Kept | Exception]:
    """Have each of *pools* begin anew: one new connection is opened, and then the others are closed.

    One that has no connection, or is suspended, opens none, and none does in an interpreter that is ending. One whose
    new connection fails keeps all that it has, and does not keep the others from it.

    :param timeout: seconds for the new connections, those of all pools together.
    :param force: close them without opening one.
    :returns: for each, how many were closed and how many are still lent, or that it keeps them, or what it failed of.
    """
    done: dict[ConnectionPool, Drained | Kept | Exception] = {}

    def begin_anew(pool: ConnectionPool, opened: OpenConnection | Exception) -> None:
        if isinstance(opened, Exception):
            stats = pool.stats()
            done[pool] = Kept(stats.idle + stats.lent, opened)
        else:
            done[pool] = pool.renew(opened)

    every = tuple(dict.fromkeys(pools))
    # At its end an interpreter opens nothing: what that needs is not there any more.
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
