"""The pools of this process: what they do, closing them, asking their brokers, steering them.

Rows are plain data (``dataclasses.asdict`` makes JSON of them), and each says which process it is from, so
that tables can hold those of several.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import quote

from kombu.utils.url import parse_url

from .. import events, renewing
from ..aliases import Pools
from ..broker.connecting import is_login_refused
from ..broker.connections import ConnectionPool
from ..engine.counters import Drained
from ..errors import ConnectionsKept
from ..masking import MASK
from ..settings import PoolSettings, Problem, SettingsError
from .roundtrip import RoundTrip

__all__ = [
    "LimitRow",
    "PingRow",
    "ReloadRow",
    "ResetRow",
    "ResumeRow",
    "Row",
    "StatusRow",
    "SuspendRow",
    "limit",
    "ping",
    "reload",
    "reset",
    "resume",
    "status",
    "suspend",
    "tell",
]

T = TypeVar("T")

logger = logging.getLogger("kombu_pools_ext.control")

#: Characters of a password: shorter ones than the first are not masked in errors, because they occur in ordinary words;
#: those of the second or more are masked within words too.
SHORTEST_SECRET, LONG_SECRET = 4, 8


@dataclass(frozen=True)
class Row:
    """What all rows have."""

    #: Name of the machine.
    host: str
    #: Number of the process.
    pid: int
    alias: str
    #: The broker's URLs, joined by ``;``, without passwords.
    broker: str


@dataclass(frozen=True)
class StatusRow(Row):
    """A pool's numbers now, and its totals; see :class:`~kombu_pools_ext.PoolStats`."""

    #: Most connections; ``None`` is unlimited.
    limit: int | None
    size: int
    idle: int
    lent: int
    opening: int
    waiting: int
    acquires: int
    waits: int
    timeouts: int
    refused: int
    opened: int
    open_failures: int
    #: Closed so far, by reason.
    closed: Mapping[str, int]
    seconds_waited: float
    #: Seconds since the first of the openings that failed in a row; ``None`` if the last one succeeded.
    outage: float | None
    #: Why no producers are lent; ``None`` if they are.
    blocked: str | None
    suspended: bool


@dataclass(frozen=True)
class ResetRow(Row):
    """What a reset did to a pool."""

    ok: bool
    #: Idle connections closed.
    closed: int
    #: Connections lent, to be closed when they come back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None
    #: The alias whose row has the numbers, if both share a pool; else ``None``.
    shared_with: str | None = None


@dataclass(frozen=True)
class ReloadRow(Row):
    """What a reload did to an alias; ``broker`` of an alias that is gone is its former one."""

    ok: bool
    #: ``"changed"``, ``"stayed"``, ``"new"`` or ``"gone"``; ``"kept"`` if the reload failed, and nothing has changed.
    change: str
    #: Idle connections closed.
    closed: int
    #: Connections lent, to be closed when they come back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class PingRow(Row):
    """What a broker answered."""

    ok: bool
    #: For everything: waiting for a connection, opening it if there was none, and the round trip.
    seconds: float | None
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class LimitRow(Row):
    """What setting a limit did to a pool."""

    ok: bool
    #: Most connections before; ``None`` is unlimited.
    before: int | None
    #: Most connections now.
    limit: int | None
    #: Connections lent; what is over the limit is closed as it comes back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class SuspendRow(Row):
    """What suspending did to a pool."""

    ok: bool
    #: The mode in which it was suspended before, ``"wait"`` or ``"fail"``; ``None`` if it was not.
    before: str | None
    suspended: bool
    #: Connections lent, which come back as ever.
    lent: int
    #: Callers who wait for the end of it.
    waiting: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class ResumeRow(SuspendRow):
    """What resuming did to a pool."""


def status(pools: Pools, using: Sequence[str] | None = None) -> list[StatusRow]:
    """The numbers of the pools of these aliases, or of all. Opens nothing.

    :raises UnknownAlias: for an alias that is not configured.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    rows = []
    for alias, pool in _pools_of(pools, using).items():
        stats = pool.stats()
        rows.append(
            StatusRow(
                *_whose(pools, alias),
                limit=stats.limit,
                size=stats.size,
                idle=stats.idle,
                lent=stats.lent,
                opening=stats.opening,
                waiting=stats.waiting,
                acquires=stats.acquires,
                waits=stats.waits,
                timeouts=stats.timeouts,
                refused=stats.refused,
                opened=stats.opened,
                open_failures=stats.open_failures,
                closed=dict(stats.closed),
                seconds_waited=round(stats.seconds_waited, 6),
                outage=None if stats.outage is None else round(stats.outage, 6),
                blocked=stats.blocked,
                suspended=stats.suspended,
            )
        )
    return rows


def reset(
    pools: Pools,
    using: Sequence[str] | None = None,
    reason: str = "command",
    *,
    timeout: float = renewing.TIMEOUT,
    force: bool = False,
) -> list[ResetRow]:
    """Close what is idle now, and what is lent when it comes back; the pools go on with new connections.

    Each pool that has connections opens a new one first; if that fails, it keeps the old ones, and its row says so.
    If one fails, the others are closed all the same. Each alias has a row; of aliases that share a pool, the first has
    the numbers.

    :param reason: sent with :data:`kombu_pools_ext.events.pools_reset`.
    :param timeout: seconds for the new connections of all pools together.
    :param force: close the old connections without opening a new one first.
    :raises UnknownAlias: for an alias that is not configured; nothing has happened then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    rows = []
    closed_by: dict[ConnectionPool, str] = {}
    chosen = _pools_of(pools, using)
    done = renewing.renew(chosen.values(), timeout, force=force)
    for alias, pool in chosen.items():
        outcome, error = done[pool], None
        if isinstance(outcome, renewing.Kept):
            error = outcome.told(tell(outcome.error, pools.settings[alias]))
            error += _after_a_refusal(pools, alias, outcome.error)
        elif isinstance(outcome, Exception):
            error = tell(outcome, pools.settings[alias])
        else:
            first = closed_by.setdefault(pool, alias)
            # Of aliases that share a pool, the first has the numbers.
            closed, sharing = (outcome.closed, None) if first == alias else (0, first)
            whose = _whose(pools, alias)
            rows.append(ResetRow(*whose, True, closed, outcome.lent, None, sharing))
        if error is not None:
            rows.append(ResetRow(*_whose(pools, alias), False, 0, pool.lent, error))
    events.pools_reset.send(reason=reason)
    return rows


def _after_a_refusal(pools: Pools, alias: str, error: Exception) -> str:
    """What there is to do where a reset was refused for its user or password: it dials with the settings of before."""
    if not is_login_refused(error):
        return ""
    if pools.settings[alias].asks_for_credentials:
        return "; that is what CREDENTIALS gave: does it know the new password yet?"
    if pools.can_change:
        return "; has the password changed? write it where the settings come from, and `reload`"
    return "; has the password changed? these settings hold until the process ends: restart it"


#: What a reload says where it cannot do anything.
NOTHING_TO_READ = (
    "nothing to read anew: the settings are a plain dict, which is the same until the process ends; give a function, a "
    "dotted path to one, or a file"
)


def reload(
    pools: Pools,
    *,
    timeout: float = renewing.TIMEOUT,
    force: bool = False,
    needed: Collection[str] = (),
) -> list[ReloadRow]:
    """Read the settings anew, and replace the pools that have changed; if anything fails, the old ones stay in force.

    Never raises. If the settings are wrong, there is one row, whose alias is the name of the setting. A plain dict
    cannot be read anew: unless it was changed in place, each alias has a row with that failure.

    :param timeout: seconds for the new connections of all pools together.
    :param force: take the new settings even if no connection can be opened with them, or an alias in use is gone.
    :param needed: aliases that must not be gone.
    """
    former: dict[str, PoolSettings] = {}
    with contextlib.suppress(Exception):
        former = dict(pools.settings)
    here = socket.gethostname(), os.getpid()

    def row(alias: str, change: str, drained: Drained, error: str | None = None) -> ReloadRow:
        # An alias that is gone is only in the former settings.
        known = former if change in ("gone", "kept") else pools.settings
        broker = known[alias].uri if alias in known else ""
        whose = (*here, alias, broker)
        return ReloadRow(*whose, error is None, change, drained.closed, drained.lent, error)

    nothing = Drained(0, 0)
    try:
        done = pools.reload(timeout=timeout, force=force, needed=needed)
    except ConnectionsKept as error:
        return [row(alias, "kept", nothing, _why_kept(error, alias)) for alias in former]
    except SettingsError as error:
        told = "; ".join(str(error).splitlines())
        return [row(pools.name, "kept", nothing, f"{told}; the settings are as before")]
    except Exception as error:
        # Only its class is shown, because its text may contain a secret.
        logger.exception("control: %s cannot be read", pools.name)
        told = f"{type(error).__name__}; the log of that process tells more; the settings are as before"
        return [row(pools.name, "kept", nothing, told)]
    same = not (done.changed or done.gone or done.new)
    why = NOTHING_TO_READ if same and not pools.can_change else None
    rows = {alias: row(alias, "stayed", nothing, why) for alias in done.stayed}
    rows |= {alias: row(alias, "new", nothing) for alias in done.new}
    for alias, drained in done.changed.items():
        failed = done.failures.get(alias)
        text = None
        if failed is not None:
            text = f"changed, as was forced; no connection: {tell(failed, pools.settings[alias])}"
        rows[alias] = row(alias, "changed", drained, text)
    gone = [row(alias, "gone", drained) for alias, drained in done.gone.items()]
    return [*(rows[alias] for alias in pools.settings), *gone]


def _why_kept(error: ConnectionsKept, alias: str) -> str:
    if alias not in error.failures:
        named = ", ".join(map(repr, error.failures))
        return f"keeps its settings, because {named} cannot be connected to"
    why = tell(error.failures[alias], error.tried[alias])
    return f"keeps its settings, because a connection with the new ones cannot be opened: {why}"


def ping(pools: Pools, using: Sequence[str] | None = None, timeout: float = 5.0) -> list[PingRow]:
    """A round trip to each broker, on a connection of its pool: all at once, and never longer than *timeout*.

    AMQP opens and closes a channel, Redis answers a PING, other transports are connected or not. The connection of a
    round trip that failed is closed.

    :param timeout: seconds for everything together, also where a broker is silent.
    :raises TypeError, ValueError: if *timeout* is not a number of seconds above 0.
    :raises UnknownAlias: for an alias that is not configured.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    under_way = {alias: RoundTrip(pool, timeout) for alias, pool in _pools_of(pools, using).items()}
    rows = []
    for alias, trip in under_way.items():
        seconds: float | None = None
        error: str | None = None
        try:
            seconds = round(trip.result(), 6)
        except Exception as failure:
            error = tell(failure, pools.settings[alias])
        rows.append(PingRow(*_whose(pools, alias), error is None, seconds, error))
    return rows


def limit(pools: Pools, limit: int, using: Sequence[str] | None = None) -> list[LimitRow]:
    """Set the most connections, and the most producers, of the pools of these aliases, or of all.

    What is over it is closed now if it is idle, and as it comes back if it is lent. It holds until the process ends, or
    its settings are read anew.

    :raises UnknownAlias: for an alias that is not configured; nothing has happened then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    before = {alias: pool.limit for alias, pool in _pools_of(pools, using).items()}

    def resize(alias: str, pool: ConnectionPool) -> None:
        # The producers first: when the connections fail, there are too many faces of them, and not too few.
        pools.producers[alias].resize(limit, force=True)
        pool.resize(limit, force=True)

    return _each(
        pools,
        using,
        resize,
        lambda whose, pool, error: LimitRow(
            *whose, error is None, before[whose[2]], pool.limit, pool.stats().lent, error
        ),
    )


def suspend(
    pools: Pools, mode: Literal["fail", "wait"] = "wait", using: Sequence[str] | None = None
) -> list[SuspendRow]:
    """Lend and open nothing for these aliases, or for all, until :func:`resume`.

    :param mode: as for :meth:`Pools.suspend`.
    :raises UnknownAlias: for an alias that is not configured; nothing has happened then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    row = _suspended(SuspendRow, pools, using)
    return _each(pools, using, lambda alias, pool: pool.suspend(mode), row)


def resume(pools: Pools, using: Sequence[str] | None = None) -> list[ResumeRow]:
    """End :func:`suspend` for these aliases, or for all.

    :raises UnknownAlias: for an alias that is not configured; nothing has happened then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    row = _suspended(ResumeRow, pools, using)
    return _each(pools, using, lambda alias, pool: pool.resume(), row)


_Whose = tuple[str, int, str, str]


def _suspended(
    kind: Callable[..., T], pools: Pools, using: Sequence[str] | None
) -> Callable[[_Whose, ConnectionPool, str | None], T]:
    """Return a function that makes rows; the state before is read now, because aliases may share a pool."""
    before = {
        alias: pool.engine.ledger.suspended for alias, pool in _pools_of(pools, using).items()
    }

    def row(whose: _Whose, pool: ConnectionPool, error: str | None) -> T:
        stats = pool.stats()
        was = before[whose[2]]
        return kind(*whose, error is None, was, stats.suspended, stats.lent, stats.waiting, error)

    return row


def _each(
    pools: Pools,
    using: Sequence[str] | None,
    do: Callable[[str, ConnectionPool], object],
    row: Callable[[_Whose, ConnectionPool, str | None], T],
) -> list[T]:
    """Do something to each pool; one that fails does not save the others."""
    rows = []
    for alias, pool in _pools_of(pools, using).items():
        error: str | None = None
        try:
            do(alias, pool)
        except Exception as failure:
            error = tell(failure, pools.settings[alias])
        rows.append(row(_whose(pools, alias), pool, error))
    return rows


def _pools_of(pools: Pools, using: Sequence[str] | None) -> dict[str, ConnectionPool]:
    problems = [
        Problem(alias, "URL", missing)
        for alias in using or pools.settings
        if (missing := pools.settings_of(alias).missing_driver())
    ]
    if problems:
        raise SettingsError(problems, pools.name)
    return pools.pools_of(using)


def _whose(pools: Pools, alias: str) -> _Whose:
    return socket.gethostname(), os.getpid(), alias, pools.settings[alias].uri


def tell(error: BaseException, settings: PoolSettings) -> str:
    """Return *error* as one line, without the passwords in *settings*, which a broker or driver may quote.

    The URI of the broker is already masked, and stays as it is, even if it contains a password such as ``guest``.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    parts = [_masked(one, settings) for one in text.split(settings.uri)]
    return " ".join(settings.uri.join(parts).split())


def _masked(text: str, settings: PoolSettings) -> str:
    for user, password in _logins(settings):
        for secret in dict.fromkeys((password, quote(password, safe=""))):
            if len(secret) < SHORTEST_SECRET:
                continue
            # In a URL it is masked in any case.
            text = text.replace(f":{secret}@", f":{MASK}@")
            if password == user:
                # The text is the user's name as well, which is shown.
                continue
            if len(secret) < LONG_SECRET:
                # It may be a part of an ordinary word.
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
            else:
                text = text.replace(secret, MASK)
    return text


def _logins(settings: PoolSettings) -> Iterator[tuple[str, str]]:
    """The users and passwords in the URLs."""
    for url in settings.url:
        # Some transports take URLs that only they can read.
        with contextlib.suppress(ValueError):
            parts = parse_url(url)
            yield parts["userid"] or "", parts["password"] or ""
