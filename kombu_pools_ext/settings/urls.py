"""What a broker's URL says: which transport it means, what that needs, and what is wrong with it.

Nothing here connects, and no transport is imported: a check must not depend on what is installed or running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import find_spec
from inspect import signature
from urllib.parse import parse_qsl, unquote, urlsplit

import kombu
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import parse_ssl_cert_reqs

from ..masking import describe
from .problems import nearest

__all__ = [
    "EXAMPLE",
    "driver_of",
    "family_of",
    "implementation_of",
    "missing_driver",
    "tls_in_url",
    "transport_of",
    "url_problems",
    "verified",
    "with_defaults",
]

#: Module to import and requirement to install, by the name of kombu's transport module.
_DRIVERS = {
    "SLMQ": ("softlayer_messaging", "kombu[slmq]"),
    "SQS": ("boto3", "kombu[sqs]"),
    "azureservicebus": ("azure.servicebus", "kombu[azureservicebus]"),
    "azurestoragequeues": ("azure.storage.queue", "kombu[azurestoragequeues]"),
    "confluentkafka": ("confluent_kafka", "kombu[confluentkafka]"),
    "consul": ("consul", "kombu[consul]"),
    "etcd": ("etcd", "python-etcd"),
    "gcpubsub": ("google.cloud.pubsub_v1", "kombu[gcpubsub]"),
    "librabbitmq": ("librabbitmq", "kombu[librabbitmq]"),
    "mongodb": ("pymongo", "kombu[mongodb]"),
    "pgmq": ("pgmq", "kombu[pgmq]"),
    "pyro": ("Pyro4", "kombu[pyro]"),
    "qpid": ("qpid", "kombu[qpid]"),
    "redis": ("redis", "kombu-pools-ext[redis]"),
    "sqlalchemy": ("sqlalchemy", "kombu[sqlalchemy]"),
    "zookeeper": ("kazoo", "kombu[zookeeper]"),
}

#: Those that take their URL as it is (kombu's ``can_parse_url``): only they know what may stand in it.
_PARSE_THEMSELVES = frozenset(
    {"azureservicebus", "azurestoragequeues", "gcpubsub", "mongodb", "sqlalchemy"}
)

#: Ports and paths that kombu's transports fall back to.
_DEFAULTS = {
    "amqp": (5672, "//"),
    "pyamqp": (5672, "//"),
    "amqps": (5671, "//"),
    "redis": (6379, "/0"),
    "rediss": (6379, "/0"),
    "sentinel": (26379, "/0"),
}

#: What people call brokers whose transport has another name; a likeness of letters would mislead.
_KNOWN_AS = {"rabbit": "amqp", "rabbitmq": "amqp", "rabbitmqs": "amqps", "kafkas": "kafka"}

#: Query parameters that kombu understands in any URL, besides ``ssl_…``; the others end in a TypeError.
_QUERY = {"login_method", "credential_provider"} & set(
    signature(kombu.Connection.__init__).parameters
)
_QUERY_SETTINGS = {
    "connect_timeout": "CONNECT_TIMEOUT",
    "heartbeat": "HEARTBEAT",
    "ssl": "SSL",
}

#: A hint.
EXAMPLE = "a broker URL looks like amqp://user:password@host:5672/vhost"
_ENCODE = (
    "in a user name or password, write '/' as %2F, '@' as %40, ':' as %3A, '#' as %23, '?' as %3F, "
    "'%' as %25 and ';' as %3B"
)


def transport_of(url: str) -> str:
    """The transport that *url* names, as kombu's table of transports has it, known or not."""
    scheme = url.partition("://")[0]
    name, plus, _ = scheme.partition("+")
    # kombu takes the name before a + as it stands, and any other without regard to case.
    return name if plus else name.lower()


def implementation_of(transport: str) -> str:
    """The name of kombu's module for *transport*, ``redis`` for ``rediss``; empty for what is not kombu's own."""
    target = TRANSPORT_ALIASES.get(transport)
    if not isinstance(target, str) or not target.startswith("kombu.transport."):
        return ""
    return re.split(r"[.:]", target)[2]


def family_of(transport: str) -> object:
    """Equal for transports that can stand in for each other in a failover list."""
    implementation = implementation_of(transport)
    return implementation if implementation == "pyamqp" else TRANSPORT_ALIASES.get(transport)


def driver_of(transport: str) -> str | None:
    """The module that *transport* imports, which is not part of kombu; ``None`` if it needs none."""
    driver = _DRIVERS.get(implementation_of(transport))
    return driver[0] if driver else None


def missing_driver(transport: str) -> str | None:
    """What to tell whoever lacks the module that *transport* needs; ``None`` if it is there, or none is needed."""
    driver = _DRIVERS.get(implementation_of(transport))
    if driver is None or _is_installed(driver[0]):
        return None
    return (
        f"the transport {transport!r} needs the Python module {driver[0]!r}, which is not installed: "
        f'pip install "{driver[1]}"'
    )


def _is_installed(module: str) -> bool:
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        # It is imported already, by something that gave it no spec.
        return True
    path = top
    for name in below:
        if spec is None:
            return False
        path = f"{path}.{name}"
        # Not find_spec(), which would import the packages above it.
        spec = PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec is not None


def url_problems(url: str) -> Iterator[tuple[str, str]]:
    """What is wrong with *url*, one broker's: each a message without secrets, and a hint."""
    if not url.strip():
        yield "the URL is empty", EXAMPLE
        return
    if "://" not in url:
        # Not shown: without its transport it cannot be told what in it is a password.
        yield (
            f"a text of {len(url)} characters without '://' is no URL",
            f"{EXAMPLE}; {_ENCODE}",
        )
        return
    shown = describe(url)
    if not url.isprintable() or " " in url:
        yield (
            f"{shown} has white space or control characters in it",
            "remove them, or encode them: a space is %20",
        )
        return
    if ";" in url:
        # kombu would cut it there.
        yield f"{shown} has a ';' in it that no other URL follows", _ENCODE
        return
    transport = transport_of(url)
    if transport not in TRANSPORT_ALIASES:
        hint = (
            f"did you mean {_KNOWN_AS[transport]!r}?"
            if transport in _KNOWN_AS
            else nearest(transport, sorted(TRANSPORT_ALIASES, key=str.lower))
        )
        yield f"{shown} has the unknown transport {describe(transport)}", hint
        return
    implementation = implementation_of(transport)
    if (
        implementation
        and implementation not in _PARSE_THEMSELVES
        and "+" not in url.partition("://")[0]
    ):
        yield from _part_problems(url, shown, implementation)


def _part_problems(url: str, shown: str, implementation: str) -> Iterator[tuple[str, str]]:
    # What urllib raises quotes the URL, so nothing of it is passed on, not even as a context.
    try:
        # As kombu does: the rules of HTTP, whatever the transport.
        parts = urlsplit(f"http://{url.partition('://')[2]}")
    except ValueError:
        parts = None
    if parts is None:
        yield f"{shown} cannot be read", _ENCODE
        return
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        yield f"{shown} has a port that is not a number from 1 to 65535", _ENCODE
    host = parts.netloc.rpartition("@")[2]
    if ("[" in host or "]" in host) and not re.fullmatch(r"\[[^\[\]]+\](?::\d*)?", host):
        yield f"{shown} has a host with stray brackets", "write an IPv6 address as [::1]:5672"
    if implementation == "redis" and not _is_redis_database(parts.path):
        yield (
            f"{shown} has a path that is not the number of a Redis database",
            "write redis://host:6379/0",
        )
    for name, value in parse_qsl(parts.query):
        yield from _query_problems(name, value, shown)


def _is_redis_database(path: str) -> bool:
    # kombu takes off up to two slashes.
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
            f"{shown} has the query parameter {name!r}, which kombu would take for text",
            f"use the setting {_QUERY_SETTINGS[name]}",
        )
    elif name not in _QUERY and not name.startswith("ssl_"):
        # Where it is masked, it is part of a password that has a ? in it.
        named = describe(name) if name in shown else "(masked)"
        yield (
            f"{shown} has the unknown query parameter {named}",
            "put a transport's options into TRANSPORT_OPTIONS; if it is part of a password, write '?' as %3F",
        )


def tls_in_url(url: str) -> bool:
    """Whether *url* has options of TLS among its query parameters, which is how kombu knows them."""
    return any(name.startswith("ssl_") for name, _ in parse_qsl(url.partition("?")[2]))


def verified(url: str) -> str:
    """*url*, with the certificate to be verified where it asks for TLS to Redis and says no more about it.

    Of a bare ``rediss://`` kombu takes any certificate.

    :param url: a valid one.
    """
    if transport_of(url) != "rediss" or tls_in_url(url):
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def with_defaults(url: str, tls: bool) -> str:
    """*url* with the port and path that its transport falls back to written out, where it has a known one.

    In a list this matters: switching to a URL without them, kombu keeps those of the broker that it leaves.

    :param url: a valid one.
    :param tls: whether TLS was asked for beside the URL, as AMQP's default port depends on it.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _DEFAULTS:
        return url
    port, path = _DEFAULTS[scheme.lower()]
    if port == 5672 and tls:
        port = 5671
    parts = urlsplit(f"http://{rest}")
    netloc = parts.netloc if parts.port else f"{parts.netloc.removesuffix(':')}:{port}"
    given = parts.path if parts.path not in ("", "/") else path
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{netloc}{given}{query}"
