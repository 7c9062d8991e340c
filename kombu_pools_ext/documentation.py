"""The addresses of the documentation pages that messages point to."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["BASE", "Page"]

#: The documentation of the newest release.
BASE = "https://kombu-pools-ext.readthedocs.io/en/stable/"


class Page(StrEnum):
    """The address of a page, or of a section of one."""

    SETTINGS = f"{BASE}reference/settings.html"
    CONTROL = f"{BASE}reference/control.html"
    MEMORY = f"{BASE}reference/settings.html#memory"
    SIZE_A_POOL = f"{BASE}howto/size-a-pool.html"
    HEALTH = f"{BASE}howto/probe-it.html"
    TLS = f"{BASE}howto/tls.html"
