"""What a connection is called in names, errors and logs: made here of what the connection says, and never by kombu.

kombu masks what it took for the password. What it took for something else, because it read a URL otherwise than it was
written, it shows.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import kombu

from ..masking import MASK, describe, mask_url

__all__ = ["describe_resource", "like_it", "masked_uri", "uri_of", "with_host"]


def like_it(state: dict[str, Any]) -> kombu.Connection:
    """A connection with this ``__dict__``."""
    like_it = object.__new__(kombu.Connection)
    like_it.__dict__ = state
    return like_it


def with_host(connection: kombu.Connection) -> kombu.Connection:
    """*connection*, or one like it with the host that kombu would take, which else says so in the log, again and again.

    ``memory://`` names no host, and needs none.
    """
    if connection.hostname:
        return connection
    host = connection.transport.default_connection_params.get("hostname")
    return like_it({**connection.__dict__, "hostname": host})


def uri_of(connection: kombu.Connection, mask: str = MASK) -> str:
    """The URI of the broker that *connection* is set to, for people to read: without a password.

    :param mask: stands for the password, and for each part that may be a piece of one.
    """
    connection = with_host(connection)
    host = connection.hostname or "localhost"
    if connection.uri_prefix or connection.transport.can_parse_url:
        # Such a transport takes its URL as it is, and has it for a host.
        prefix = f"{connection.uri_prefix}+" if connection.uri_prefix else ""
        return mask_url(f"{prefix}{host}") if "://" in host else f"{prefix}{_part(host, mask)}"
    told = dict(connection._info())
    user, port = told["userid"], told["port"]
    if user and connection.password:
        user = quote(str(user), safe="")
    elif user:
        # Alone it may be a password that lacks its user.
        user = _part(user, mask)
    login = f"{user or ''}:{mask}@"
    authority = f"{_part(host, mask)}{_port(port, mask)}"
    return f"{told['transport']}://{login}{authority}/{_part(told['virtual_host'], mask, '/')}"


def _part(value: Any, mask: str, safe: str = "") -> str:
    text = str(value)
    # It stands between a password and its host.
    return mask if "@" in text else quote(text, safe=safe)


def _port(value: Any, mask: str) -> str:
    if not value:
        return ""
    return f":{value}" if str(value).isdecimal() else f":{mask}"


def masked_uri(connection: kombu.Connection) -> str:
    """The URI of *connection* and its alternates, for people to read: without passwords."""
    return ";".join([uri_of(connection), *map(mask_url, (connection.alt or ())[1:])])


def describe_resource(value: object) -> str:
    """Whatever somebody gave in the place of a lease or of a broker, for an error."""
    if isinstance(value, kombu.Connection):
        return f"<Connection: {uri_of(value)}>"
    return describe(value)
