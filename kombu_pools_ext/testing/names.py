"""The host that stands for an alias in a URL: kombu writes hosts in lower case."""

from __future__ import annotations

import re

__all__ = ["host_of", "url_of"]

_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]*")


def host_of(name: str) -> str:
    """Return the host for the broker called *name*. That of a host is the host itself."""
    return name if _PLAIN.fullmatch(name) else f"x-{name.encode('utf-8', 'surrogatepass').hex()}"


def url_of(name: str) -> str:
    """Return the URL of the broker called *name*."""
    return f"test://{host_of(name)}"
