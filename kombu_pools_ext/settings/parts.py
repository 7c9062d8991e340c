"""``HOST``, ``PORT``, ``USER``, ``PASSWORD``, ``VHOST`` and ``TRANSPORT``, which can be given in place of ``URL``.

They are made into a URL with the right escapes, so that all other code sees only URLs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from kombu.transport import TRANSPORT_ALIASES

from ..masking import describe
from .problems import Report, nearest, refuse
from .url_checks import EXAMPLE, HOST_CHARACTERS, PARSE_THEMSELVES, WITH_HOST
from .urls import implementation_of

__all__ = ["PARTS", "PART_CHECKS", "urls_from"]

#: The transport if none is given.
_TRANSPORT = "amqp"
_OWN_URL = frozenset(
    name for name in TRANSPORT_ALIASES if implementation_of(name) in PARSE_THEMSELVES
)


def _text(value: Any, report: Report) -> str | None:
    # Only the type of a wrong value is shown, because it may be a secret.
    if not isinstance(value, str):
        number = isinstance(value, int | float)
        report(
            f"expected a text, got a value of type {type(value).__name__}",
            "quote it if it is read as JSON, as Flask reads the environment" if number else "",
        )
    elif not value:
        report("it is empty", "leave it out, or write None; is a variable not set?")
    elif "\0" in value or not _encodable(value):
        report("it has a null character in it, or one that cannot be encoded in UTF-8", "")
    else:
        return value
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _password(value: Any, report: Report) -> str | None:
    checked = _text(value, report)
    if checked is not None and checked.strip("\r\n") != checked:
        report(
            "it begins or ends with a line break",
            "call strip() on what you read from a file",
        )
    return checked


def _host(value: Any, report: Report) -> tuple[str, ...]:
    hosts = value if isinstance(value, list | tuple) else [value]
    if not hosts:
        report("the list of hosts is empty", "give at least one")
    found = []
    for number, one in enumerate(hosts, 1):
        place = f"host {number} of {len(hosts)}: " if len(hosts) > 1 else ""
        if not isinstance(one, str):
            report(f"{place}expected a name, an address or a list of them, got {describe(one)}", "")
            continue
        host = one.removeprefix("[").removesuffix("]")
        if _is_ipv6(host):
            found.append(f"[{host.replace('%', '%25')}]")
        elif HOST_CHARACTERS.fullmatch(one):
            found.append(one)
        else:
            # Not shown if it may be a URL, because any part of it could be the password.
            shown = describe(one) if one.isprintable() and "@" not in one else "this"
            report(f"{place}{shown} is neither a name nor an address", _host_hint(one))
    return tuple(found)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _host_hint(host: str) -> str:
    if "://" in host or "@" in host:
        return "put a URL into the setting URL"
    if "," in host or ";" in host:
        return "write several hosts as a list"
    if "/" in host:
        return "for a socket of Redis, set URL to redis+socket:///path/to/the.sock"
    if ":" in host:
        return (
            "put the port into the setting PORT; for hosts with different ports, set URL to a list"
        )
    return "is a variable not set?" if not host.strip() else ""


def _port(value: Any, report: Report) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        refuse(report, value, "a whole number from 1 to 65535")
        return None
    return int(value)


def _vhost(value: Any, report: Report) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    return _text(value, report)


def _transport(value: Any, report: Report) -> str | None:
    name = value.lower() if isinstance(value, str) else value
    if not isinstance(name, str) or name not in TRANSPORT_ALIASES:
        known = sorted(set(map(str.lower, TRANSPORT_ALIASES)) - _OWN_URL)
        refuse(report, value, "the name of a transport of kombu's", nearest(name, known))
        return None
    if name in _OWN_URL:
        report(f"{describe(value)} reads its URL in its own way", "use the setting URL")
        return None
    return name


#: The check of each part, by its name in lower case.
PART_CHECKS: Mapping[str, Any] = {
    "host": _host,
    "port": _port,
    "user": _text,
    "password": _password,
    "vhost": _vhost,
    "transport": _transport,
}
PARTS = tuple(PART_CHECKS)


def urls_from(
    parts: Mapping[str, Any], spelling: Mapping[str, str], has_credentials: bool, report: Any
) -> tuple[str, ...]:
    """Make a URL of *parts* for each host.

    :param parts: the checked values that were given, by their names in lower case.
    :param spelling: the names as they were written.
    :param has_credentials: whether ``CREDENTIALS`` is set, so that no password is needed.
    :param report: a function that takes the name of a setting, a message and a hint.
    """
    transport = parts.get("transport", _TRANSPORT)
    implementation = implementation_of(transport)
    hosts = parts.get("host", ("",))
    if hosts == ("",) and implementation in WITH_HOST:
        report("host", "missing", f"or write the whole as {spelling['url']}: {EXAMPLE}")
    vhost = parts.get("vhost")
    if implementation == "redis":
        if vhost is not None and not (vhost.isascii() and vhost.isdecimal() and len(vhost) < 10):
            report("vhost", f"expected the number of a Redis database, got {describe(vhost)}", "")
    elif implementation in WITH_HOST:
        # kombu would fill in "guest" for either of them if it is missing.
        if "user" in parts and "password" not in parts and not has_credentials:
            report(
                "password",
                f"missing, but {spelling['user']} is given",
                f"or give {spelling['credentials']}; is a variable not set?",
            )
        if "password" in parts and "user" not in parts:
            report(
                "user", f"missing, but {spelling['password']} is given", "is a variable not set?"
            )
    login = quote(parts.get("user", ""), safe="")
    if "password" in parts:
        login += f":{quote(parts['password'], safe='')}"
    start = f"{transport}://{login}{'@' if login else ''}"
    port = f":{parts['port']}" if "port" in parts else ""
    # Without a virtual host, the transport uses its default.
    path = f"/{quote(vhost, safe='')}" if vhost is not None else "/"
    return tuple(f"{start}{host}{port}{path}" for host in hosts)
