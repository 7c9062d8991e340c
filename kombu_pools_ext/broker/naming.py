"""Make the name of a connection for errors and logs; kombu's own URI is never shown.

kombu masks only what it took for the password. If it misread a URL, its URI shows the rest of the password.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import kombu

from ..engine import Lease
from ..masking import MASK, describe, mask_url

__all__ = ["describe_resource", "like_it", "masked_uri", "uri_of", "with_host"]


def like_it(state: dict[str, Any]) -> kombu.Connection:
    """A connection with this ``__dict__``."""
    like_it = object.__new__(kombu.Connection)
    like_it.__dict__ = state
    return like_it


def with_host(connection: kombu.Connection) -> kombu.Connection:
    """Return *connection*, or a copy with kombu's default host, because kombu would log a warning at each use.

    ``memory://`` names no host, and needs none.
    """
    if connection.hostname:
        return connection
    if isinstance(connection, Lease):
        connection = connection.item
    host = connection.transport.default_connection_params.get("hostname")
    return like_it({**connection.__dict__, "hostname": host})


def uri_of(connection: kombu.Connection, mask: str = MASK) -> str:
    """The URI of the broker that *connection* is set to, for people to read: without a password.

    :param mask: stands for the password, and for each part that may be a piece of one.
    """
    connection = with_host(connection)
    host = connection.hostname or "localhost"
    if connection.uri_prefix or connection.transport.can_parse_url:
        # Such a transport takes its URL as it is, and keeps it as the host.
        prefix = f"{connection.uri_prefix}+" if connection.uri_prefix else ""
        return mask_url(f"{prefix}{host}") if "://" in host else f"{prefix}{_part(host, mask)}"
    told = dict(connection._info())
    user, port = told["userid"], told["port"]
    if user and connection.password:
        user = quote(str(user), safe="")
    elif user:
        # A user without a password may be a password whose user is missing.
        user = _part(user, mask)
    login = f"{user or ''}:{mask}@"
    authority = f"{_part(host, mask)}{_port(port, mask)}"
    return f"{told['transport']}://{login}{authority}/{_part(told['virtual_host'], mask, '/')}"


def _part(value: Any, mask: str, safe: str = "") -> str:
    text = str(value)
    # An '@' stands between a password and the host, so the part may contain a password.
    return mask if "@" in text else quote(text, safe=safe)


def _port(value: Any, mask: str) -> str:
    if not value:
        return ""
    return f":{value}" if str(value).isdecimal() else f":{mask}"


def masked_uri(connection: kombu.Connection) -> str:
    """The URI of *connection* and its alternates, for people to read: without passwords."""
    return ";".join([uri_of(connection), *map(mask_url, (connection.alt or ())[1:])])


def describe_resource(value: object) -> str:
    """Return a text for an error about a value that was given in place of a lease or a broker."""
    if isinstance(value, kombu.Connection):
        return f"<Connection: {uri_of(value)}>"
    return describe(value)
