"""The project: the processes and pools that a command reaches, and the secret that authenticates commands."""

from __future__ import annotations

import hashlib
import hmac
import weakref
from collections.abc import Iterable
from dataclasses import replace

from ..aliases import Pools
from ..engine.weakrefs import snapshot
from .options import SHORTEST_KEY, ControlSettings

__all__ = ["Project"]

#: The hash for the keys that are derived from the secret, one for each use.
_DIGEST = "sha256"


class Project:
    """The processes with one secret: they find each other, and accept commands from each other.

    :param settings: how commands reach its processes.
    :param secret: the framework's secret; ``None`` if there is none. Then *fallback* distinguishes projects, and a
        random key in a file that only this user can read authenticates commands.
    :param fallback: a path or name that distinguishes this project from others of this user if there is no secret.
    :param former_secrets: the framework's secrets from before a rotation. Processes accept commands that use one of
        them, and commands reach processes that use one of them. KEY replaces these as well.
    """

    def __init__(
        self,
        settings: ControlSettings,
        secret: str | bytes | None,
        fallback: str = "",
        *,
        former_secrets: Iterable[str | bytes] = (),
    ) -> None:
        if settings.key is not None:
            secret, former_secrets = settings.key, ()
        self.settings = settings
        self._secret = _encoded(secret) if secret else None
        #: The number of characters, or bytes, of the secret; 0 without one.
        self.secret_length = len(secret or "")
        #: This project with its former secrets, from which other names follow. The pools are the same.
        self.former = tuple(
            Project(_settings_for_former(settings, one), one)
            for one in _distinct(former_secrets)
            if _encoded(one) != self._secret
        )
        digest = (
            self._derive(b"name")
            if self._secret
            else hashlib.sha256(b"kombu-pools\0" + fallback.encode()).digest()
        )
        #: Sixteen hexadecimal digits, from which the secret cannot be derived.
        self.name = digest.hex()[:16]
        #: The sets of aliases of this process that belong to it, held weakly.
        self.pools: weakref.WeakSet[Pools] = weakref.WeakSet()

    @property
    def with_former(self) -> tuple[Project, ...]:
        """This project, and the same project with each of its former secrets."""
        return (self, *self.former)

    def pools_in_order(self) -> list[Pools]:
        """Return its sets of aliases in this process, always in the same order."""
        return sorted(snapshot(lambda: self.pools), key=lambda pools: (pools.name, id(pools)))

    def key(self, use: str) -> bytes | None:
        """Return the key of 32 bytes for one *use*, the same in all its processes; ``None`` without a secret."""
        return self._derive(use.encode()) if self._secret else None

    def _derive(self, use: bytes) -> bytes:
        assert self._secret is not None
        return hmac.digest(self._secret, b"kombu-pools-ext control: " + use, _DIGEST)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _encoded(secret: str | bytes) -> bytes:
    return secret.encode() if isinstance(secret, str) else secret


def _distinct(secrets: Iterable[str | bytes]) -> Iterable[str | bytes]:
    if isinstance(secrets, str | bytes):
        # A text is one secret, not a list of characters.
        secrets = (secrets,)
    return {_encoded(one): one for one in secrets if one and isinstance(one, str | bytes)}.values()


def _settings_for_former(settings: ControlSettings, secret: str | bytes) -> ControlSettings:
    """Return the settings for a former *secret*: without BROADCAST if the secret is too short for it."""
    return settings if len(secret) >= SHORTEST_KEY else replace(settings, broadcast=None)
