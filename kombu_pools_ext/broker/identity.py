"""When two names mean one pool: the key of a broker with its settings.

kombu's own key leaves out ssl, heartbeat, login method and failover list, takes in retry policies, which publishing
changes, and is a list with the password in it, which anybody can print.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import kombu

from ..settings import PoolSettings
from ..settings.nested import copy_options, freeze

__all__ = ["PoolKey", "key_of", "read", "settings_key", "snapshot", "with_host"]

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


def with_host(connection: kombu.Connection) -> kombu.Connection:
    """*connection*, or one like it with the host that kombu would take, which else says so in the log, again and again.

    ``memory://`` names no host, and needs none.
    """
    if connection.hostname:
        return connection
    like_it = object.__new__(kombu.Connection)
    like_it.__dict__ = {
        **connection.__dict__,
        "hostname": connection.transport.default_connection_params.get("hostname"),
    }
    return like_it


def key_of(connection: kombu.Connection) -> PoolKey:
    """The key of the pool for *connection*."""
    state = connection.__dict__
    # Kept with the connection, for making it takes longer than a lease; and anybody may change a connection.
    read_from = (
        *(state.get(name) for name in _ATTRIBUTES),
        *(freeze(value) if (value := state.get(name)) else None for name in _CONTAINERS),
    )
    known = state.get("_pool_key")
    if known is None or known[0] != read_from:
        known = state["_pool_key"] = read_from, _make_key(connection)
    key: PoolKey = known[1]
    return key


#: What :func:`_make_key` reads from a connection.
_ATTRIBUTES = (
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
_CONTAINERS = ("ssl", "transport_options", "alt")

#: The same at once, from the ``__dict__`` of a connection; a missing one is a :class:`KeyError`.
read = itemgetter(*_CONTAINERS, *(name for name in _ATTRIBUTES if name != "uri_prefix"))


def snapshot(state: dict[str, Any]) -> tuple[Any, ...] | None:
    """What :func:`read` returns as long as *state* stays as it is; ``None`` for a connection of another shape.

    Comparing the two takes a fifth of the time of asking for the key.
    """
    if state.get("uri_prefix") is not None:
        # An attribute of the class, for most.
        return None
    try:
        values = read(state)
    except KeyError:
        return None
    # Containers may be changed in place.
    return (*map(copy_options, values[:3]), *values[3:])


def settings_key(settings: PoolSettings) -> PoolKey:
    """The key of the pool with *settings*: equal settings share one. Makes no connection."""
    return PoolKey((PoolSettings, settings.identity), settings.uri)


def _make_key(connection: kombu.Connection) -> PoolKey:
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
        freeze(info["transport"]),
        host,
        info["userid"],
        freeze(info["password"]),
        vhost,
        info["port"],
        freeze(info["ssl"] or False),
        freeze(extras),
        info["login_method"],
        info["connect_timeout"],
        float(info["heartbeat"] or 0),
        freeze(info["failover_strategy"]),
        freeze(tuple(info["alternates"] or ())),
        freeze(info.get("credential_provider")),
    )
    return PoolKey(parts, connection.as_uri())
