"""Which transport a broker URL means, and which module that needs.

Nothing here connects or imports a transport, because a check must not depend on what is installed or running.
"""

from __future__ import annotations

import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from urllib.parse import parse_qsl, urlsplit

from kombu.transport import TRANSPORT_ALIASES

__all__ = [
    "TEST",
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

#: The broker in memory: a name for kombu to look up, so that nothing of it is imported before it is used.
TEST = "test"
TRANSPORT_ALIASES.setdefault(TEST, "kombu_pools_ext.testing.transport:Transport")

#: By the name of kombu's transport module: the module that it imports, and the requirement to install.
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

#: The default ports and paths of kombu's transports.
_DEFAULTS = {
    "amqp": (5672, "//"),
    "pyamqp": (5672, "//"),
    "amqps": (5671, "//"),
    "redis": (6379, "/0"),
    "rediss": (6379, "/0"),
    "sentinel": (26379, "/0"),
}


def transport_of(url: str) -> str:
    """Return the name of the transport in *url*, as kombu looks it up, whether kombu knows it or not."""
    scheme = url.partition("://")[0]
    name, plus, _ = scheme.partition("+")
    # kombu ignores case, but not in a name before a +.
    return name if plus else name.lower()


def implementation_of(transport: str) -> str:
    """Return the name of kombu's module for *transport*, ``redis`` for ``rediss``; empty if it is not part of kombu.

    For the broker in memory it is that of AMQP, which it speaks.
    """
    if transport == TEST:
        return "pyamqp"
    target = TRANSPORT_ALIASES.get(transport)
    if not isinstance(target, str) or not target.startswith("kombu.transport."):
        return ""
    return re.split(r"[.:]", target)[2]


def family_of(transport: str) -> object:
    """Return a key that is equal for transports that can be in one failover list."""
    implementation = implementation_of(transport)
    if transport == TEST:
        return TEST
    return implementation if implementation == "pyamqp" else TRANSPORT_ALIASES.get(transport)


def driver_of(transport: str) -> str | None:
    """Return the module that *transport* needs besides kombu; ``None`` if it needs no other."""
    driver = _DRIVERS.get(implementation_of(transport))
    return driver[0] if driver else None


def missing_driver(transport: str) -> str | None:
    """Return an error message if the module that *transport* needs is not installed; else ``None``."""
    driver = _DRIVERS.get(implementation_of(transport))
    if driver is None or is_installed(driver[0]):
        return None
    return (
        f"the transport {transport!r} needs the Python module {driver[0]!r}, which is not installed: "
        f'pip install "{driver[1]}"'
    )


def is_installed(module: str) -> bool:
    """Return whether *module* is installed. Imports nothing."""
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        # It is imported already, and has no spec.
        return True
    path = top
    for name in below:
        if spec is None:
            return False
        path = f"{path}.{name}"
        # Not find_spec(), because that would import the parent packages.
        spec = PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec is not None


def tls_in_url(url: str) -> bool:
    """Return whether *url* has TLS options among its query parameters."""
    return any(name.startswith("ssl_") for name, _ in parse_qsl(url.partition("?")[2]))


def verified(url: str) -> str:
    """Return *url*; if it is a ``rediss://`` URL without TLS options, have it verify the certificate.

    kombu would accept any certificate there.

    :param url: a valid URL.
    """
    if transport_of(url) != "rediss" or tls_in_url(url):
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def with_defaults(url: str, tls: bool) -> str:
    """Return *url* with the default port and path of its transport written out.

    When kombu switches to a URL of a failover list that lacks them, it keeps those of the URL before.

    :param url: a valid URL.
    :param tls: whether ``SSL`` is set. AMQP's default port depends on it.
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
