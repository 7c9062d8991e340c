"""The commands for the pools of this process: status, reset, reload, ping, limit, suspend and resume.

Each returns a row for each pool. Rows are plain data (``dataclasses.asdict`` makes JSON of them), and name their
process, so that one table can have rows of several processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from kombu.utils.url import parse_url

from .. import events, renewing
from ..aliases import Pools
from ..broker.connections import ConnectionPool
from ..broker.failed_openings import is_login_refused
from ..engine.stats import Drained, PoolNumbers
from ..errors import ConnectionsKept
from ..masking import MASK
from ..settings import PoolSettings, Problem, SettingsError
from ..settings.parser import LEASED
from .log import logger
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
    "error_text",
    "limit",
    "ping",
    "reload",
    "reset",
    "resume",
    "status",
    "suspend",
]

T = TypeVar("T")

#: Numbers of characters. A password shorter than the first is not masked in errors, because it occurs in ordinary
#: words; one at least as long as the second is masked within words as well.
SHORTEST_SECRET, LONG_SECRET = 4, 8


@dataclass(frozen=True)
class Row:
    """The fields of all rows."""

    #: Name of the machine.
    host: str
    #: Number of the process.
    pid: int
    alias: str
    #: The broker's URLs, joined by ``;``, without passwords.
    broker: str


@dataclass(frozen=True)
class StatusRow(PoolNumbers, Row):
    """A pool's present numbers and its totals, as in :class:`~kombu_pools_ext.PoolStats`."""

    #: ``"shared"`` if all threads publish over one connection, else ``"leased"``.
    publish_over: str = LEASED
    #: How many messages on that connection have no outcome yet.
    in_flight: int = 0
    #: How many tasks of Celery this process has sent over the alias; ``None`` if no application publishes over it here.
    tasks: int | None = None
    #: What a relay in this process tells of the alias's outbox: ``delivered``, ``rate`` (messages a second), ``rows``,
    #: ``lag`` (seconds) and ``dead``; ``None`` if none runs here.
    relay: dict[str, Any] | None = None


@dataclass(frozen=True)
class ResetRow(Row):
    """The result of a reset for a pool."""

    ok: bool
    #: How many idle connections were closed.
    closed: int
    #: How many connections are lent, and will be closed when they come back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None
    #: The alias whose row has the numbers, if both aliases share a pool; else ``None``.
    shared_with: str | None = None


@dataclass(frozen=True)
class ReloadRow(Row):
    """The result of a reload for an alias. For an alias that is gone, ``broker`` is its former one."""

    ok: bool
    #: ``"changed"``, ``"stayed"``, ``"new"`` or ``"gone"``; ``"kept"`` if the reload failed, and nothing has changed.
    change: str
    #: How many idle connections were closed.
    closed: int
    #: How many connections are lent, and will be closed when they come back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class PingRow(Row):
    """The result of a ping."""

    ok: bool
    #: Seconds for waiting for a connection, opening it if needed, and the round trip; ``None`` if it failed.
    seconds: float | None
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class LimitRow(Row):
    """The result of setting the limit of a pool."""

    ok: bool
    #: The limit before; ``None`` means no limit.
    before: int | None
    #: The limit now.
    limit: int | None
    #: How many connections are lent. Those over the limit are closed when they come back.
    lent: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class SuspendRow(Row):
    """The result of suspending a pool."""

    ok: bool
    #: The mode in which it was suspended before, ``"wait"`` or ``"fail"``; ``None`` if it was not suspended.
    before: str | None
    suspended: bool
    #: How many connections are lent.
    lent: int
    #: How many callers wait until the pool is resumed.
    waiting: int
    #: Why it failed; ``None`` if it did not.
    error: str | None


@dataclass(frozen=True)
class ResumeRow(SuspendRow):
    """The result of resuming a pool."""


def status(pools: Pools, using: Sequence[str] | None = None) -> list[StatusRow]:
    """Return the numbers of the pools of these aliases, or of all. Opens nothing.

    :raises UnknownAlias: for an alias that is not configured.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    return [
        StatusRow(
            *_origin(pools, alias),
            **{**_numbers(pool), **_road(pools, alias)},
            tasks=_tasks(pools, alias),
            relay=_relay(pools, alias),
        )
        for alias, pool in _pools_of(pools, using).items()
    ]


def _road(pools: Pools, alias: str) -> dict[str, Any]:
    """Return how messages are published, as far as that has turned out."""
    settings = pools.settings[alias]
    if not settings.is_shared:
        return {"publish_over": LEASED}
    road = pools.producers[alias].shared_road
    if road is None:
        return {"publish_over": settings.publish_over}
    over = LEASED if road.publisher.unfit else settings.publish_over
    return {"publish_over": over, "in_flight": road.publisher.live}


def _tasks(pools: Pools, alias: str) -> int | None:
    counter = pools.task_counters.get(alias)
    return None if counter is None else counter.count


def _relay(pools: Pools, alias: str) -> dict[str, Any] | None:
    report = pools.relay_reports.get(alias)
    return None if report is None else asdict(report)


def _numbers(pool: ConnectionPool) -> dict[str, Any]:
    stats = pool.stats()
    numbers = {each.name: getattr(stats, each.name) for each in fields(PoolNumbers)}
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def reset(
    pools: Pools,
    using: Sequence[str] | None = None,
    reason: str = "command",
    *,
    timeout: float = renewing.TIMEOUT,
    force: bool = False,
) -> list[ResetRow]:
    """Reset the pools of these aliases, or of all, as :meth:`.Pools.reset`; a failure is in the row of its alias.

    If aliases share a pool, the row of the first one has the numbers.

    :param reason: sent with :data:`kombu_pools_ext.events.pools_reset`.
    :raises UnknownAlias: for an alias that is not configured; no pool is reset then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    rows = []
    closed_by: dict[ConnectionPool, str] = {}
    chosen = _pools_of(pools, using)
    done = renewing.renew(chosen.values(), timeout, force=force)
    for alias, pool in chosen.items():
        outcome, error = done[pool], None
        if isinstance(outcome, renewing.Kept):
            error = outcome.told(error_text(outcome.error, pools.settings[alias]))
            error += _login_hint(pools, alias, outcome.error)
        elif isinstance(outcome, Exception):
            error = error_text(outcome, pools.settings[alias])
        else:
            first = closed_by.setdefault(pool, alias)
            # If aliases share a pool, the first one has the numbers.
            closed, sharing = (outcome.closed, None) if first == alias else (0, first)
            origin = _origin(pools, alias)
            rows.append(ResetRow(*origin, True, closed, outcome.lent, None, sharing))
        if error is not None:
            rows.append(ResetRow(*_origin(pools, alias), False, 0, pool.lent, error))
    events.pools_reset.send(reason=reason)
    return rows


def _login_hint(pools: Pools, alias: str, error: Exception) -> str:
    """Return what to do if a reset failed because the broker refused the login; else an empty text."""
    if not is_login_refused(error):
        return ""
    if pools.settings[alias].asks_for_credentials:
        return "; CREDENTIALS returned this login: does it know the new password yet?"
    if pools.can_change:
        return "; has the password changed? change it where the settings come from, and `reload`"
    return "; has the password changed? these settings cannot be reloaded: restart the process"


#: The error of a reload of settings that cannot be read again.
NOTHING_TO_READ = (
    "nothing to reload: the settings are a plain dict, which stays the same until the process ends; give a function, a "
    "dotted path to one, or a file"
)


def reload(
    pools: Pools,
    *,
    timeout: float = renewing.TIMEOUT,
    force: bool = False,
    needed: Collection[str] = (),
) -> list[ReloadRow]:
    """Reload the settings, as :meth:`.Pools.reload`; failures are in the rows, and it never raises.

    If the settings are wrong, there is one row, whose alias is the name of the setting. A plain dict cannot be
    reloaded: unless it was changed in place, each alias has a row with that failure.
    """
    former: dict[str, PoolSettings] = {}
    with contextlib.suppress(Exception):
        former = dict(pools.settings)
    here = socket.gethostname(), os.getpid()

    def row(alias: str, change: str, drained: Drained, error: str | None = None) -> ReloadRow:
        # An alias that is gone is only in the former settings.
        known = former if change in ("gone", "kept") else pools.settings
        broker = known[alias].uri if alias in known else ""
        origin = (*here, alias, broker)
        return ReloadRow(*origin, error is None, change, drained.closed, drained.lent, error)

    nothing = Drained(0, 0)
    try:
        done = pools.reload(timeout=timeout, force=force, needed=needed)
    except ConnectionsKept as error:
        return [row(alias, "kept", nothing, _reason_kept(error, alias)) for alias in former]
    except SettingsError as error:
        reason = "; ".join(str(error).splitlines())
        return [row(pools.name, "kept", nothing, f"{reason}; the old settings stay in force")]
    except Exception as error:
        # Only its class is shown, because its text may contain a secret.
        logger.exception("control: %s cannot be read", pools.name)
        reason = (
            f"{type(error).__name__}; see the log of that process; the old settings stay in force"
        )
        return [row(pools.name, "kept", nothing, reason)]
    same = not (done.changed or done.gone or done.new)
    why = NOTHING_TO_READ if same and not pools.can_change else None
    rows = {alias: row(alias, "stayed", nothing, why) for alias in done.stayed}
    rows |= {alias: row(alias, "new", nothing) for alias in done.new}
    for alias, drained in done.changed.items():
        failed = done.failures.get(alias)
        text = None
        if failed is not None:
            text = f"changed, because of force; no connection: {error_text(failed, pools.settings[alias])}"
        rows[alias] = row(alias, "changed", drained, text)
    gone = [row(alias, "gone", drained) for alias, drained in done.gone.items()]
    return [*(rows[alias] for alias in pools.settings), *gone]


def _reason_kept(error: ConnectionsKept, alias: str) -> str:
    if alias not in error.failures:
        named = ", ".join(map(repr, error.failures))
        return f"keeps its settings, because {named} cannot be connected to"
    why = error_text(error.failures[alias], error.tried[alias])
    return f"keeps its settings, because a connection with the new ones cannot be opened: {why}"


def ping(pools: Pools, using: Sequence[str] | None = None, timeout: float = 5.0) -> list[PingRow]:
    """Make a round trip to each broker, to all at the same time, on a connection of the pool.

    On AMQP it opens and closes a channel, on Redis it sends a PING. Other transports only connect. If a round trip
    fails, its connection is closed.

    :param timeout: seconds for all round trips together; a silent broker does not exceed it.
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
            error = error_text(failure, pools.settings[alias])
        rows.append(PingRow(*_origin(pools, alias), error is None, seconds, error))
    return rows


def limit(pools: Pools, limit: int, using: Sequence[str] | None = None) -> list[LimitRow]:
    """Set the limit of the connections and producers in the pools of these aliases, or of all.

    Connections over the limit are closed: idle ones now, lent ones when they come back. The limit lasts until the
    process ends, or until the settings are read again.

    :raises UnknownAlias: for an alias that is not configured; no limit is set then.
    :raises SettingsError: if the settings are wrong, or a transport's driver is not installed.
    """
    before = {alias: pool.limit for alias, pool in _pools_of(pools, using).items()}

    def resize(alias: str, pool: ConnectionPool) -> None:
        # Producers first, so that a failure in between leaves too many producers, and not too few.
        pools.producers[alias].resize(limit, force=True)
        pool.resize(limit, force=True)

    return _for_each(
        pools,
        using,
        resize,
        lambda origin, pool, error: LimitRow(
            *origin, error is None, before[origin[2]], pool.limit, pool.stats().lent, error
        ),
    )


def suspend(
    pools: Pools, mode: Literal["fail", "wait"] = "wait", using: Sequence[str] | None = None
) -> list[SuspendRow]:
    """Suspend the pools of these aliases, or of all, as :meth:`.Pools.suspend`."""
    row = _suspension_rows(SuspendRow, pools, using)
    return _for_each(pools, using, lambda alias, pool: pool.suspend(mode), row)


def resume(pools: Pools, using: Sequence[str] | None = None) -> list[ResumeRow]:
    """Resume the pools of these aliases, or of all, as :meth:`.Pools.resume`."""
    row = _suspension_rows(ResumeRow, pools, using)
    return _for_each(pools, using, lambda alias, pool: pool.resume(), row)


_Origin = tuple[str, int, str, str]


def _suspension_rows(
    kind: Callable[..., T], pools: Pools, using: Sequence[str] | None
) -> Callable[[_Origin, ConnectionPool, str | None], T]:
    """Return a function that makes rows. The states before are read at once, because aliases may share a pool."""
    before = {alias: pool.engine.state.suspended for alias, pool in _pools_of(pools, using).items()}

    def row(origin: _Origin, pool: ConnectionPool, error: str | None) -> T:
        stats = pool.stats()
        was = before[origin[2]]
        return kind(*origin, error is None, was, stats.suspended, stats.lent, stats.waiting, error)

    return row


def _for_each(
    pools: Pools,
    using: Sequence[str] | None,
    do: Callable[[str, ConnectionPool], object],
    row: Callable[[_Origin, ConnectionPool, str | None], T],
) -> list[T]:
    """Call *do* for each pool, also after it has failed for one, and return the rows."""
    rows = []
    for alias, pool in _pools_of(pools, using).items():
        error: str | None = None
        try:
            do(alias, pool)
        except Exception as failure:
            error = error_text(failure, pools.settings[alias])
        rows.append(row(_origin(pools, alias), pool, error))
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


def _origin(pools: Pools, alias: str) -> _Origin:
    return socket.gethostname(), os.getpid(), alias, pools.settings[alias].uri


def error_text(error: BaseException, settings: PoolSettings) -> str:
    """Return *error* as one line, without the passwords in *settings*, which a broker or driver may quote.

    The broker's URI is masked already, and does not change, even if it contains a text such as ``guest``.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    parts = [_masked(one, settings) for one in text.split(settings.uri)]
    return " ".join(settings.uri.join(parts).split())


def _masked(text: str, settings: PoolSettings) -> str:
    for user, password in _logins(settings):
        for secret in dict.fromkeys((password, quote(password, safe=""))):
            if len(secret) < SHORTEST_SECRET:
                continue
            # In a URL it is always masked.
            text = text.replace(f":{secret}@", f":{MASK}@")
            if password == user:
                # The user name is the same text, and may be shown.
                continue
            if len(secret) < LONG_SECRET:
                # A short password may occur within an ordinary word.
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
            else:
                text = text.replace(secret, MASK)
    return text


def _logins(settings: PoolSettings) -> Iterator[tuple[str, str]]:
    """Yield the users and passwords in the URLs."""
    for url in settings.url:
        # Some transports have URLs that only they can parse.
        with contextlib.suppress(ValueError):
            parts = parse_url(url)
            yield parts["userid"] or "", parts["password"] or ""
