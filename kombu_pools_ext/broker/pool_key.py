"""When two names mean one pool: the key of a broker with its settings.

kombu's own key leaves out ssl, heartbeat, login method and failover list, takes in retry policies, which publishing
changes, and is a list with the password in it, which anybody can print.
"""

from __future__ import annotations

import weakref
from typing import Any

import kombu

from ..settings import PoolSettings
from ..settings.credentials_key import credentials_key
from ..settings.nested import copy_options, freeze
from .naming import like_it, uri_of, with_host

__all__ = [
    "KEY_CACHE",
    "PoolKey",
    "has_own_pool",
    "key_of",
    "make_key",
    "settings_key",
    "token_of",
]

#: Options that kombu's ``publish(retry_policy=…)`` writes into a connection: no part of what it is.
_RETRY_OPTIONS = frozenset(
    {
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
        "errback",
        "callback",
        "retry_errors",
        "on_revive",
    }
)


class PoolKey:
    """Stands for one broker with one set of settings; shows neither."""

    __slots__ = ("_hash", "_parts", "text")

    def __init__(self, parts: tuple[Any, ...], text: str) -> None:
        self._parts = parts
        self._hash = hash(parts)
        #: For people to read, without a password.
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolKey) and self._parts == other._parts

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<PoolKey {self.text}>"


#: Where a connection has its :class:`KeyCache`.
KEY_CACHE = "_pool_key_cache"
#: What may be changed in place.
_CONTAINERS = ("ssl", "transport_options", "alt")
#: What a key is made of; a class that has ways of its own to them may answer otherwise with nothing changed.
_SOURCES = (
    *_CONTAINERS,
    "Pool",
    "transport",
    "_info",
    "transport_cls",
    "hostname",
    "userid",
    "password",
    "virtual_host",
    "port",
    "login_method",
    "connect_timeout",
    "heartbeat",
    "uri_prefix",
    "_failover_strategy",
    "credential_provider",
)


class KeyCache:
    """Keeps the key of a connection with it, until somebody changes the connection.

    It refers to the connection's state, which refers to it: no more of a cycle than kombu's transport is.
    """

    __slots__ = ("key", "seen", "state", "token", "values")

    def __init__(self, state: dict[str, Any]) -> None:
        #: The ``__dict__`` this is about. A copy of it takes this along, and changes without it.
        self.state = state
        #: All there is in it, at any time. To list that takes less time than to pick what the key is made of.
        self.values = state.values()
        # In one step, and all else is made of it: another thread may change the connection, and change it back.
        before = state.copy()
        # In its place, or last, where it comes in.
        before[KEY_CACHE] = self
        for name in _CONTAINERS:
            if name in before:
                before[name] = copy_options(before[name])
        #: What :attr:`values` have to be equal to.
        self.seen = [*before.values()]
        self.key = make_key(like_it(before))
        #: What groups that have found the key's pool know it by; to hash it takes no time.
        self.token: object = None

    def holds(self, state: dict[str, Any]) -> bool:
        """Whether the connection with this *state* is as it was."""
        return self.state is state and [*self.values] == self.seen


def key_of(connection: kombu.Connection) -> PoolKey:
    """The key of the pool for *connection*."""
    state = connection.__dict__
    # Kept with the connection, because making it takes longer than a lease; but a connection may be changed.
    cache: KeyCache | None = state.get(KEY_CACHE)
    if cache is None or not cache.holds(state):
        kind = type(connection)
        if any(getattr(kind, name, None) is not _PLAIN[name] for name in _SOURCES):
            return make_key(connection)
        # Now: it is made for the key in any case, and may change the connection.
        connection.transport  # noqa: B018  # a property that makes it
        cache = state[KEY_CACHE] = KeyCache(state)
    return cache.key


_PLAIN = {name: getattr(kombu.Connection, name, None) for name in _SOURCES}


def has_own_pool(connection: kombu.Connection) -> bool:
    """Whether the class of *connection*, or it alone, has a ``Pool()`` of its own, which makes its pools."""
    return _pool_of(connection) is not kombu.Connection.Pool


def _pool_of(connection: kombu.Connection) -> Any:
    return getattr(connection.Pool, "__func__", connection.Pool)


class _Token:
    """Stands for a key: equal to none but itself, which is found out without a call."""

    __slots__ = ("__weakref__",)


_tokens: weakref.WeakValueDictionary[PoolKey, _Token] = weakref.WeakValueDictionary()


def token_of(connection: kombu.Connection, key: Any) -> object | None:
    """What stands for *key* if it is what :func:`key_of` has found for *connection*, else ``None``."""
    cache: KeyCache | None = connection.__dict__.get(KEY_CACHE)
    # The very same: whoever makes other keys tells apart what has the same one here.
    if cache is None or cache.key is not key:
        return None
    if cache.token is None:
        # Of two threads that come this way at once each may get its own: they mean the same.
        cache.token = _tokens.setdefault(key, _Token())
    return cache.token


def settings_key(settings: PoolSettings) -> PoolKey:
    """The key of the pool with *settings*: equal settings share one. Makes no connection."""
    return PoolKey((PoolSettings, settings.identity), settings.uri)


def _part(value: Any) -> object:
    # A process may have thousands of keys: what most of them have stands for itself, and takes no room.
    return value if value is None or type(value) is str else freeze(value)


def make_key(connection: kombu.Connection) -> PoolKey:
    """:func:`key_of`, made anew, with nothing kept on *connection*."""
    # Another kind of pool is another pool.
    own_pool = (_pool_of(connection),) if has_own_pool(connection) else ()
    connection = with_host(connection)
    info = dict(connection._info())
    host = info["hostname"]
    if host == "localhost" and info["transport"] in ("amqp", "amqps"):
        # kombu rewrites it when it connects, into the connection that is the key.
        host = "127.0.0.1"
    vhost = info["virtual_host"]
    if info["transport"] in ("redis", "rediss"):
        # A number, with or without a slash; without a number it is 0.
        vhost = str(vhost or "").lstrip("/") or "0"
    extras = {
        key: value
        for key, value in (info["transport_options"] or {}).items()
        if key not in _RETRY_OPTIONS
    }
    parts = (
        _part(info["transport"]),
        host,
        info["userid"],
        credentials_key(info["password"]),
        vhost,
        info["port"],
        _part(info["ssl"] or None),
        _part(extras or None),
        info["login_method"],
        info["connect_timeout"],
        float(info["heartbeat"] or 0),
        _part(info["failover_strategy"]),
        _part(tuple(info["alternates"] or ()) or None),
        credentials_key(info.get("credential_provider")),
        *own_pool,
    )
    return PoolKey(parts, uri_of(connection))
