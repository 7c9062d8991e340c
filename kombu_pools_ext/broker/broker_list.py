"""The list of brokers that a connection may be set to, as kombu keeps it."""

from __future__ import annotations

from typing import Any

import kombu
from kombu.utils.url import parse_url

from ..settings.url_checks import url_problems
from ..settings.urls import with_defaults
from .addresses import LOCAL_ADDRESS, LOCAL_NAME

__all__ = ["position_of", "switch_to", "turn_cycle"]


def position_of(connection: kombu.Connection) -> int:
    """Which of its list *connection* is set to. It is the first, unless the pool's own connection was switched.

    kombu's ``ensure`` may do that to the connection that a pool was made for.
    """
    if len(connection.alt) > 1 and connection._failover_strategy == "round-robin":
        for number, url in enumerate(connection.alt):
            if _leads_to(url, connection):
                return number
    return 0


def _leads_to(url: str, connection: kombu.Connection) -> bool:
    """Whether *connection* is set to the broker of *url*."""
    if "://" not in url or next(url_problems(url), None):
        return bool(url == connection.hostname)
    parts = parse_url(with_defaults(url, bool(connection._initial_params.get("ssl"))))
    host, port, vhost = (parts[name] for name in ("hostname", "port", "virtual_host"))
    hosts = (host, LOCAL_ADDRESS) if host == LOCAL_NAME else (host,)
    return bool(
        connection.hostname in hosts
        and connection.port == port
        and (connection.virtual_host or "/") == (vhost or "/")
    )


def turn_cycle(connection: kombu.Connection, number: int) -> None:
    """Make the broker after *number* the next of the list, as if kombu had come to *number* by itself."""
    if number and connection._failover_strategy == "round-robin":
        strategy: Any = connection.failover_strategy
        cycle = connection.cycle = strategy(connection.alt)
        for _ in range(number + 1):
            next(cycle)


def switch_to(connection: kombu.Connection, url: str) -> None:
    """Set *connection* to a broker of its list; kombu would keep the port and path of the one before."""
    if "://" in url and not next(url_problems(url), None):
        initial = connection._initial_params
        url = with_defaults(url, bool(initial.get("ssl")))
    connection.switch(url)
