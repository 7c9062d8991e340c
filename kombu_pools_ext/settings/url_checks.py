"""Check broker URLs. A URL that kombu would read in another way than it is written is refused.

``docs/explanation/broker-urls.md`` says how a URL is read, which ones are refused, and why.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from inspect import signature
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import kombu
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import parse_ssl_cert_reqs

from ..masking import describe
from .problems import nearest, suggestion
from .urls import implementation_of, transport_of

__all__ = [
    "EXAMPLE",
    "HOST_CHARACTERS",
    "PARSE_THEMSELVES",
    "WITH_HOST",
    "url_problems",
]

#: Transports that parse their URLs themselves (kombu's ``can_parse_url``). Their URLs are not checked.
PARSE_THEMSELVES = frozenset(
    {"azureservicebus", "azurestoragequeues", "gcpubsub", "mongodb", "sqlalchemy"}
)
#: Transports that always connect to a host, given as a name or address.
WITH_HOST = frozenset({"librabbitmq", "pyamqp", "qpid", "redis"})

#: Names of brokers whose transport has another name. Similarity of spelling would suggest another transport.
_KNOWN_AS = {"rabbit": "amqp", "rabbitmq": "amqp", "rabbitmqs": "amqps", "kafkas": "kafka"}
#: Schemes with a '+' that people write, and the scheme that does what they mean.
_WITHOUT_PLUS = {
    "amqp+ssl": "amqps",
    "amqp+tls": "amqps",
    "pyamqp+ssl": "amqps",
    "pyamqp+tls": "amqps",
    "redis+sentinel": "sentinel",
    "redis+ssl": "rediss",
    "redis+tls": "rediss",
}

#: Query parameters that kombu understands in any URL, besides ``ssl_…``. Others end in a TypeError.
_QUERY = {"login_method", "credential_provider"} & set(
    signature(kombu.Connection.__init__).parameters
)
_QUERY_SETTINGS = {
    "connect_timeout": "CONNECT_TIMEOUT",
    "heartbeat": "HEARTBEAT",
    "ssl": "SSL",
}

#: What a URL looks like, for error messages.
EXAMPLE = "a broker URL looks like amqp://user:password@host:5672/vhost"
_SEVERAL = "write several brokers to fail over to as a list of URLs"
_SOCKET = "for a Unix socket of Redis, write redis+socket:///path/to/the.sock"

#: Characters that must be escaped in a user name, password or virtual host.
_SPECIAL = "/@:#?%[];"

#: The characters of a host name or an IPv4 address.
HOST_CHARACTERS = re.compile(r"[\w.-]+")
_ANOTHER_URL = re.compile(r",\s*[A-Za-z][A-Za-z0-9+.-]*://")


def _encode(characters: str = _SPECIAL) -> str:
    *others, last = (f"{one!r} as %{ord(one):02X}" for one in characters)
    written = f"{', '.join(others)} and {last}" if others else last
    return f"in a user name, password or virtual host, write {written}; or give HOST, USER and PASSWORD in place of URL"


def url_problems(url: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with *url*, a single URL: a message without secrets, and a hint."""
    if not url.strip():
        yield "the URL is empty", EXAMPLE
        return
    if "://" not in url:
        # Not shown, because without a transport any part of the text may be a password.
        yield (
            f"a text of {len(url)} characters without '://' is not a URL",
            f"{EXAMPLE}; {_encode()}",
        )
        return
    shown = describe(url)
    if _ANOTHER_URL.search(url):
        yield f"{shown} has a ',' between two URLs", _SEVERAL
        return
    if not url.isprintable() or " " in url:
        yield (
            f"{shown} has white space or control characters in it",
            "remove them, or encode them: a space is %20",
        )
        return
    if ";" in url:
        # kombu would cut the URL there.
        yield f"{shown} has a ';' that no other URL follows", _encode(";")
        return
    transport = transport_of(url)
    if transport not in TRANSPORT_ALIASES:
        hint = (
            suggestion(repr(_KNOWN_AS[transport]))
            if transport in _KNOWN_AS
            else nearest(transport, sorted(TRANSPORT_ALIASES, key=str.lower))
        )
        yield f"{shown} has the unknown transport {describe(transport)}", hint
        return
    implementation = implementation_of(transport)
    if "+" in url.partition("://")[0]:
        yield from _plus_problems(url, shown, implementation)
    elif implementation and implementation not in PARSE_THEMSELVES:
        yield from _part_problems(url, shown, implementation)


def _plus_problems(url: str, shown: str, implementation: str) -> Iterator[tuple[str, str]]:
    scheme, _, rest = url.partition("://")
    if not implementation or implementation in PARSE_THEMSELVES:
        return
    if scheme == "redis+socket":
        yield from _socket_problems(rest, shown)
        return
    # kombu takes what follows the '+' for a host name, which the Redis transport then drops.
    meant = _WITHOUT_PLUS.get(scheme.lower())
    if meant is not None:
        hint = f"write {meant}://"
    elif scheme.lower() == "redis+cluster":
        hint = "kombu does not support Redis Cluster: write redis://, with a server that is not part of one"
    elif implementation == "redis":
        hint = f"write redis:// or rediss://; {_SOCKET}"
    else:
        hint = f"write {scheme.partition('+')[0]}://"
    yield (
        f"{shown} has the scheme {describe(scheme)}, with which kombu would connect to another host",
        hint,
    )


def _socket_problems(rest: str, shown: str) -> Iterator[tuple[str, str]]:
    parts = _split(rest)
    if not isinstance(parts, SplitResult):
        yield f"{shown} {parts[0]}", parts[1]
        return
    yield from _login_problems(parts.netloc, shown, "redis")
    if parts.netloc.rpartition("@")[2] or not parts.path.strip("/"):
        # kombu would drop the host.
        yield f"{shown} does not have the path of a socket, after three slashes", _SOCKET
    for name, value in parse_qsl(parts.query):
        if name == "virtual_host":
            if not _is_redis_database(value):
                yield f"{shown} has a 'virtual_host' that is not the number of a database", ""
        elif name != "credential_provider" or name not in _QUERY:
            yield _unknown_query(name, shown)
    yield from _query_form_problems(parts.query, shown)


def _early_end(rest: str) -> tuple[str, str] | None:
    """Return what would end *rest*, a URL without its scheme, or its password too early, and a hint."""
    if "#" in rest:
        return "has a '#' in it, where kombu would end it", _encode("#")
    end = re.search(r"[/?]", rest)
    if end is None or "@" not in rest[end.start() :]:
        return None
    found = end.group()
    return (
        f"has an '@' after the first {found!r}, where kombu would end user, password and host",
        _encode(f"{found}@"),
    )


def _split(rest: str) -> SplitResult | tuple[str, str]:
    """Split *rest*, a URL without its scheme; if it cannot be split, return what is wrong and a hint."""
    if (early := _early_end(rest)) is not None:
        return early
    # urllib's error quotes the URL, so it must not become the context of another error.
    try:
        # kombu also applies the rules of HTTP, whatever the transport.
        return urlsplit(f"http://{rest}")
    except ValueError:
        return "cannot be parsed", _encode()


def _part_problems(url: str, shown: str, implementation: str) -> Iterator[tuple[str, str]]:
    rest = url.partition("://")[2]
    parts = _split(rest)
    if not isinstance(parts, SplitResult):
        yield f"{shown} {parts[0]}", parts[1]
        return
    try:
        port = parts.port
    except ValueError:
        port = 0
    host = parts.netloc.rpartition("@")[2]
    several = implementation in WITH_HOST and "," in host
    brackets = "[" in host or "]" in host
    if several:
        yield f"{shown} has a ',' in its host", _SEVERAL
    elif port == 0:
        hint = _encode()
        if not brackets and host.count(":") > 1:
            hint = f"write an IPv6 address as [::1]:5672; {hint}"
        yield f"{shown} has a port that is not a number from 1 to 65535", hint
    elif brackets:
        yield from _bracket_problems(host, shown)
    elif implementation in WITH_HOST:
        yield from _host_problems(host, shown)
    yield from _login_problems(parts.netloc, shown, implementation)
    yield from _escape_problems(parts.path, shown)
    if implementation == "redis" and not _is_redis_database(parts.path):
        yield (
            f"{shown} has a path that is not the number of a Redis database",
            "write redis://host:6379/0",
        )
    for name, value in parse_qsl(parts.query):
        yield from _query_problems(name, value, shown)
    yield from _query_form_problems(parts.query, shown)


def _bracket_problems(host: str, shown: str) -> Iterator[tuple[str, str]]:
    hint = "write an IPv6 address as [::1]:5672"
    found = re.fullmatch(r"\[([^\[\]]+)\](?::\d*)?", host)
    if found is None:
        yield f"{shown} has a host with stray brackets", hint
        return
    try:
        ipaddress.IPv6Address(unquote(found.group(1)))
    except ValueError:
        yield f"{shown} has something other than an IPv6 address between its brackets", hint


def _host_problems(host: str, shown: str) -> Iterator[tuple[str, str]]:
    name = unquote(host.partition(":")[0])
    if name and not HOST_CHARACTERS.fullmatch(name):
        yield f"{shown} has a host that is neither a name nor an address", _encode()


def _login_problems(netloc: str, shown: str, implementation: str) -> Iterator[tuple[str, str]]:
    login, at, _ = netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if "[" in login or "]" in login:
        # Some versions of Python accept them, others do not.
        yield f"{shown} has brackets in its user name or password", _encode("[]")
    yield from _escape_problems(login, shown)
    if at and colon and implementation in ("librabbitmq", "pyamqp"):
        # kombu uses "guest" for each of them that is empty.
        if not password:
            yield (
                f"{shown} has an empty password, and kombu would send 'guest' instead",
                "is it made of a variable that is not set?",
            )
        if not user:
            yield (
                f"{shown} has an empty user name, and kombu would send 'guest' instead",
                "is it made of a variable that is not set?",
            )


def _escape_problems(text: str, shown: str) -> Iterator[tuple[str, str]]:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        decoded = None
    if decoded is None:
        yield f"{shown} has escapes that are not UTF-8", "write 'é' as %C3%A9"
    elif "\0" in decoded:
        yield f"{shown} has a null character in it", "remove %00"


def _is_redis_database(path: str) -> bool:
    # kombu removes up to two slashes.
    database = unquote(path.removeprefix("/")).removeprefix("/")
    return not database or (database.isascii() and database.isdecimal() and len(database) < 10)


def _query_problems(name: str, value: str, shown: str) -> Iterator[tuple[str, str]]:
    if name == "ssl_cert_reqs":
        try:
            parse_ssl_cert_reqs(value)
            known = True
        except KeyError:
            known = False
        if not known:
            yield f"{shown} has an unknown 'ssl_cert_reqs'", "known: required, optional, none"
    elif name in _QUERY_SETTINGS:
        yield (
            f"{shown} has the query parameter {name!r}, which kombu would read as text",
            f"use the setting {_QUERY_SETTINGS[name]}",
        )
    elif name not in _QUERY and not name.startswith("ssl_"):
        yield _unknown_query(name, shown)


def _unknown_query(name: str, shown: str) -> tuple[str, str]:
    # If its name is masked in the URL, it is part of a password that contains a '?'.
    named = describe(name) if name in shown else "(masked)"
    return (
        f"{shown} has the unknown query parameter {named}",
        "put a transport's options into TRANSPORT_OPTIONS; if it is part of a password, write '?' as %3F",
    )


def _query_form_problems(query: str, shown: str) -> Iterator[tuple[str, str]]:
    """Yield what urllib would drop from *query* or read in another way than it is written."""
    if not query:
        return
    pairs = [one.partition("=") for one in query.split("&")]
    if not all(name and value for name, _, value in pairs):
        yield (
            f"{shown} has a query parameter without a name or a value, which kombu would drop",
            "write ?name=value, or remove it; if it is part of a password, write '?' as %3F",
        )
    elif len({unquote(name) for name, _, _ in pairs}) < len(pairs):
        yield f"{shown} has a query parameter twice; kombu would use the last one", ""
    if "+" in query:
        yield (
            f"{shown} has a '+' in its query, which kombu would read as a space",
            "write it as %2B, and a space as %20",
        )
    yield from _escape_problems(query, shown)
