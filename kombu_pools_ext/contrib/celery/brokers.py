"""Whether an application and an alias have the same broker. Nothing is opened, and no name is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.connection import Connection

from ...settings import PoolSettings
from ...settings.urls import TEST, implementation_of

__all__ = ["difference"]

#: Names of this machine.
_LOCAL = frozenset({"", "localhost", "127.0.0.1", "::1"})
#: Transports in whose URLs only a part, or nothing, says where messages go.
_IN_PROCESS = ("memory", "filesystem")
#: Options of a transport that are about connecting or consuming, and not about where and how a message is stored.
_OTHERWISE = frozenset(
    {
        *("max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout"),
        *("socket_keepalive_options", "health_check_interval", "max_connections", "client_name"),
        *("visibility_timeout", "unacked_key", "unacked_index_key", "unacked_mutex_key"),
        *("unacked_mutex_expire", "unacked_restore_limit", "queue_order_strategy"),
        *("polling_interval", "wait_time_seconds", "credential_provider", "sentinel_kwargs"),
        *("data_folder_in", "processed_folder", "store_processed"),
    }
)


def difference(app: Any, alias: str, settings: PoolSettings) -> str | None:
    """Return why the tasks that *app* publishes over *alias* would not reach its workers, and what to do.

    :param app: a Celery application, which is configured now unless it was.
    :returns: ``None`` if they would.
    """
    if settings.transport == TEST:
        # In a test no worker is to get the tasks.
        return None
    theirs, ours = app.connection_for_write(), settings.connection()
    if _addresses_of(theirs).isdisjoint(_addresses_of(ours)):
        return (
            f"the broker of the Celery app {app.main!r} (broker_url) is {_shown(theirs)}, and that of the alias "
            f"{alias!r} is {settings.uri}, so tasks would go where no worker of the app looks for them; give both the "
            "same broker, with the same host name and virtual host, or adopt the app with the alias of its broker"
        )
    if settings.is_amqp:
        # No option of AMQP says where a message goes.
        return None
    options = _different(app.conf.broker_transport_options or {}, settings.transport_options)
    if options:
        return (
            f"the Celery app {app.main!r} and the alias {alias!r} differ in the transport options "
            f"{', '.join(map(repr, options))}, so its workers may not find the tasks; write the same into Celery's "
            "broker_transport_options and the alias's TRANSPORT_OPTIONS"
        )
    return None


def _shown(connection: Connection) -> str:
    urls = connection.alt or [connection.as_uri()]
    return ";".join(Connection(url).as_uri() for url in urls)


def _addresses_of(connection: Connection) -> set[tuple[str, str, Any, str]]:
    """Return the kind of transport, host, port and virtual host of each broker of *connection*."""
    alternates = [one for one in connection.alt or () if isinstance(one, str)]
    # Of one connection, because user, password and virtual host may be set beside the URL.
    connections = (
        [Connection(one, ssl=connection.ssl) for one in alternates]
        if len(alternates) > 1
        else [connection]
    )
    return {_address_of(one) for one in connections}


def _address_of(connection: Connection) -> tuple[str, str, Any, str]:
    info = connection.info()
    kind = implementation_of(str(info["transport"]))
    if kind == "librabbitmq":
        kind = "pyamqp"
    if kind in _IN_PROCESS:
        return kind, "", None, ""
    host = str(info["hostname"] or "").lower()
    vhost = str(info["virtual_host"] or "").strip("/")
    if kind == "redis" and not vhost:
        vhost = "0"
    return kind, "localhost" if host in _LOCAL else host, info["port"], vhost


def _different(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return sorted(
        name
        for name in {*theirs, *ours} - _OTHERWISE
        if _comparable(theirs.get(name)) != _comparable(ours.get(name))
    )


def _comparable(value: Any) -> Any:
    # Settings make tuples of lists.
    return [*value] if isinstance(value, list | tuple) else value
