"""The two groups of pools that everybody shares, and what governs every group: limit and reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from kombu.connection import Connection
from kombu.resource import Resource

from .. import events
from ..engine import fork
from ..engine.stats import Drained
from ..errors import UnknownAlias
from ..masking import describe
from ..settings import CHECKS, PoolSettings, Problem, SettingsError
from ..settings.problems import collect, did_you_mean
from .base_pool import BasePool
from .connections import ConnectionPool
from .credentials import Credentials
from .naming import describe_resource
from .pool_group import PoolGroup, get_limit, global_limit, use_global_limit
from .pool_key import PoolKey, has_own_pool, key_of, settings_key
from .producers import ProducerPool
from .validate import valid_limit

__all__ = [
    "Connections",
    "PoolGroup",
    "Producers",
    "connections",
    "get_limit",
    "name_aliases",
    "named_settings",
    "producers",
    "register_group",
    "registered_groups",
    "reset",
    "set_limit",
    "use_global_limit",
]

#: The pools of a group, and a group.
P = TypeVar("P")
G = TypeVar("G")

_groups: list[Any] = []
_options_of = attrgetter("options")
#: Aliases of plain Python, by :func:`kombu_pools_ext.configure`.
_aliases: dict[str, PoolSettings] = {}


def name_aliases(settings: Mapping[str, PoolSettings]) -> None:
    """Have the groups understand these aliases, instead of those they understood until now."""
    global _aliases
    # In one step: a look-up in another thread finds the old ones or the new ones, never none.
    _aliases = dict(settings)
    for group in _groups:
        if isinstance(group, PoolGroup):
            group.forget_names()


def named_settings() -> Mapping[str, PoolSettings]:
    """Return the aliases that :func:`name_aliases` was last called with."""
    return _aliases


def unknown_alias(alias: str, known: Mapping[str, Any]) -> UnknownAlias:
    """The error for *alias*, with the known ones and the nearest."""
    near = did_you_mean(alias, known)
    hint = f"; {near}" if near else ""
    names = ", ".join(map(repr, known)) or "none"
    return UnknownAlias(
        f"no broker pool is configured under {describe(alias)}{hint} (configured: {names}); a URL has '://' in it"
    )


def _connection_to(urls: str | Sequence[str]) -> Connection:
    _refuse_misread(urls)
    if isinstance(urls, str):
        return Connection(urls)
    # A list of one has no alternates: it is the same pool as its URL's.
    return Connection(urls[0] if len(urls) == 1 else list(urls))


def _refuse_misread(urls: str | Sequence[str]) -> None:
    """Refuse URLs that kombu would misread, as the setting ``URL`` does.

    :raises SettingsError: with every problem.
    """
    problems: list[Problem] = []
    CHECKS["url"](urls, collect(problems, None, None))
    if problems:
        raise SettingsError(problems)


def _urls_in(connection: Connection) -> list[str]:
    """Return the URLs in *connection* that kombu reads only when it connects."""
    urls = [one for one in connection.alt or () if isinstance(one, str) and "://" in one]
    if connection.uri_prefix and "://" in (connection.hostname or ""):
        urls.append(f"{connection.uri_prefix}+{connection.hostname}")
    return list(dict.fromkeys(urls))


class _BrokerGroup(PoolGroup[P]):
    """A group keyed by a connection, a URL, a list of URLs, a configured alias, or settings."""

    def resolve(self, resource: Any) -> Any:
        if isinstance(resource, str):
            if resource in _aliases:
                return _aliases[resource]
            if "://" not in resource:
                raise unknown_alias(resource, _aliases)
            return _connection_to(resource)
        if isinstance(resource, list | tuple):
            if not resource:
                raise ValueError("a pool is looked up by a list of URLs with at least one in it")
            return _connection_to(resource)
        if isinstance(resource, Connection):
            if resource.alt or resource.uri_prefix:
                for url in _urls_in(resource):
                    _refuse_misread(url)
            return resource
        if isinstance(resource, PoolSettings):
            return resource
        raise TypeError(
            "a pool is looked up by a kombu.Connection, a URL, a list of URLs or an alias, not "
            f"{describe_resource(resource)}"
        )

    def key(self, resource: Any) -> Any:
        if isinstance(resource, PoolSettings):
            return settings_key(resource)
        return key_of(resource)

    def _make(self, resource: Any, resolved: Any, limit: int | None) -> P:
        kind = type(self)
        if (
            isinstance(resource, str | list | tuple)
            and isinstance(resolved, Connection)
            # A subclass with its own `resolve` or `create` gets a connection, as in kombu.
            and kind.resolve is _BrokerGroup.resolve
            and kind.create in (Connections.create, Producers.create)
        ):
            # The connection has served to check the URL, and to make the key. A pool that has the URL alone takes half
            # the memory.
            return self.create(resource if isinstance(resource, str) else tuple(resource), limit)
        return self.create(resolved, limit)

    def _note_limit(self, pool: Any, resource: Any) -> None:
        super()._note_limit(pool, resource)
        if isinstance(resource, PoolSettings) and not resource.uses_global_limit:
            pool.follows_global_limit = False


class Connections(_BrokerGroup[ConnectionPool]):
    """Connection pools, by broker."""

    def create(  # pyright: ignore[reportIncompatibleMethodOverride]  # kombu's name for it
        self, connection: Any, limit: int | None
    ) -> ConnectionPool:
        """Make the pool for *connection*, which may be :class:`~.PoolSettings`, a URL, or several."""
        if isinstance(connection, str | tuple):
            return ConnectionPool(partial(_connection_to, connection), limit=limit)
        if not isinstance(connection, PoolSettings):
            if has_own_pool(connection):
                # Of a subclass: kombu makes every pool by it.
                own: ConnectionPool = connection.Pool(limit=limit)
                return own
            return ConnectionPool(connection, limit=limit)
        settings = connection
        if missing := settings.missing_driver():
            raise ImportError(missing)
        return ConnectionPool(
            settings.connection,
            limit=settings.own_limit(limit),
            options=partial(_options_of, settings),
            name=settings.uri,
            confirm_timeout=settings.confirm_timeout,
            credentials=Credentials.of(settings),
        )


class Producers(_BrokerGroup[ProducerPool]):
    """Producer pools, by broker, each on the connection pool of the same broker in :data:`connections`."""

    def create(  # pyright: ignore[reportIncompatibleMethodOverride]  # kombu's name for it
        self, connection: Any, limit: int | None
    ) -> ProducerPool:
        """Make the pool for *connection*, which may be :class:`~.PoolSettings`, a URL, or several."""
        if not isinstance(connection, PoolSettings):
            return ProducerPool(connections[connection], limit=limit)
        settings = connection
        return ProducerPool(
            connections[settings],
            limit=settings.own_limit(limit),
            Producer=partial(
                ProducerPool.Producer,
                serializer=settings.serializer,
                compression=settings.compression,
            ),
            retry=settings.retry,
            # Without confirms nobody hears of a message that comes back.
            mandatory=settings.has_confirms and settings.mandatory,
            confirm_timeout=settings.confirm_timeout,
            in_flight=settings.in_flight if settings.is_shared else None,
        )

    def key(self, resource: Any) -> Any:
        """As for connections; producers with other defaults are another pool on the same connections."""
        key = super().key(resource)
        if not isinstance(resource, PoolSettings):
            return key
        own = (
            resource.serializer,
            resource.compression,
            resource.retry,
            resource.mandatory,
            resource.confirm_timeout,
            resource.in_flight if resource.is_shared else None,
        )
        return PoolKey((key, *own), key.text)


def register_group(group: G) -> G:
    """Have :func:`reset` and :func:`set_limit` reach *group*.

    :returns: *group*.
    :raises TypeError: if *group* has no pools, such as a class in place of its instance.
    """
    if isinstance(group, type):
        name = group.__name__
        raise TypeError(
            f"register_group takes a group, and {name} is a class, which has no pools; register an instance: "
            f"{name.lower()} = register_group({name}(limit=use_global_limit))"
        )
    if not callable(getattr(group, "values", None)):
        raise TypeError(
            f"register_group takes a group of pools, with a method values(), not {group!r}"
        )
    _groups.append(group)
    return group


def registered_groups() -> tuple[Any, ...]:
    """All groups registered."""
    return tuple(_groups)


#: The connection pools of this process: one for each broker and its settings.
connections: Connections = register_group(Connections(limit=use_global_limit))
#: The producer pools of this process, on the connections of :data:`connections`.
producers: Producers = register_group(Producers(limit=use_global_limit))


def _all_pools() -> Iterator[tuple[Any, Any]]:
    for group in _groups:
        for pool in group.all_pools() if isinstance(group, PoolGroup) else list(group.values()):
            yield group, pool


def set_limit(
    limit: int | None,
    force: bool = False,
    reset_after: bool = False,
    ignore_errors: bool = False,
) -> int:
    """Set the limit of every pool that follows the global one, and of no other.

    :param limit: most connections a pool; 0 or ``None`` is unlimited.
    :param force: go below what is lent; what is over the limit is closed as it comes back.
    :param reset_after: close the old connections too, the lent ones as they come back.
    :param ignore_errors: as *force*.
    :returns: the limit; 0 is unlimited.
    :raises TypeError, ValueError: if *limit* is not valid.
    :raises RuntimeError: if a pool lends more than *limit* now; then nothing has changed, anywhere.
    :raises Exception: what a pool of a group of your own, or a hook, raises, after all others have the limit.
    """
    new = valid_limit(limit)
    followers = [
        pool
        for group, pool in _all_pools()
        if (
            group.follows_global_limit(pool)
            if isinstance(group, PoolGroup)
            else getattr(group, "limit", None) is use_global_limit
        )
    ]
    if new is not None and not (force or ignore_errors):
        for pool in followers:
            lent = pool.lent if isinstance(pool, BasePool) else len(getattr(pool, "_dirty", ()))
            if lent > new:
                raise RuntimeError(
                    f"can't shrink pool when in use: {pool!r} lends {lent}, the limit would be {new}; pass "
                    "force=True to close the rest as it comes back; nothing has changed"
                )
    global_limit.value = new
    failures: list[Exception] = []
    for pool in followers:
        try:
            if isinstance(pool, BasePool):
                pool.take_limit(new, force=True, reset=reset_after)
                continue
            # kombu's pools refuse to shrink while anything is lent, be it ever so little, and `force` breaks what is
            # lent: that is for the caller to ask for.
            pool.resize(
                new or 0, force=force, ignore_errors=ignore_errors or not force, reset=reset_after
            )
        except Exception as error:
            # One application's pool or hook that fails must not keep the others from the new limit.
            failures.append(error)
    if failures:
        raise failures[0]
    return new or 0


def _start_anew(pool: Any) -> Any:
    """Close what *pool* holds, and leave it usable where that is known how."""
    if isinstance(pool, BasePool):
        return pool.force_close_all(close_pool=False)
    if not isinstance(pool, Resource):
        return pool.force_close_all()
    pool.force_close_all(close_pool=False)
    # kombu leaves the pool without a place to wait for: acquire(block=True) would hang.
    pool.setup()
    return None


def reset(*args: Any, reason: str = "api", **kwargs: Any) -> Drained:
    """Close what is idle now and what is lent when it comes back, and empty the groups.

    The pools stay usable, with their limits: they open new connections.

    :param reason: sent with :data:`kombu_pools_ext.events.pools_reset`. Other arguments are ignored, as in kombu.
    :returns: how many connections were closed, and how many are still lent.
    """
    closed = lent = 0
    for group, pool in _all_pools():
        try:
            done = _start_anew(pool)
        except Exception:
            # A pool of the application's own that fails must not keep the rest from the reset.
            events.logger.exception("%r of %r could not be reset", pool, group)
            continue
        # Connection and producer pool share their connections: count them once.
        if isinstance(done, Drained) and not (
            isinstance(pool, ProducerPool) and isinstance(pool.connections, ConnectionPool)
        ):
            closed, lent = closed + done.closed, lent + done.lent
    for group in _groups:
        group.clear()
    events.pools_reset.send(reason=reason)
    return Drained(closed, lent)


fork.on_fork(lambda: events.pools_reset.send(reason="fork"))
