"""What a broker's URL says: which transport it means, and what that needs.

Nothing here connects, and no transport is imported: a check must not depend on what is installed or running.
"""

from __future__ import annotations

import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from urllib.parse import parse_qsl, urlsplit

from kombu.transport import TRANSPORT_ALIASES

__all__ = [
    "driver_of",
    "family_of",
    "implementation_of",
    "is_installed",
    "missing_driver",
    "tls_in_url",
    "transport_of",
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

#: Ports and paths that kombu's transports fall back to.
_DEFAULTS = {
    "amqp": (5672, "//"),
    "pyamqp": (5672, "//"),
    "amqps": (5671, "//"),
    "redis": (6379, "/0"),
    "rediss": (6379, "/0"),
    "sentinel": (26379, "/0"),
}


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
    if driver is None or is_installed(driver[0]):
        return None
    return (
        f"the transport {transport!r} needs the Python module {driver[0]!r}, which is not installed: "
        f'pip install "{driver[1]}"'
    )


def is_installed(module: str) -> bool:
    """Whether there is *module*; imports nothing."""
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
