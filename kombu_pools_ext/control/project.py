"""Whose processes these are: the pools that are steered together, and the secret that proves who may."""

from __future__ import annotations

import hashlib
import hmac
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from ..aliases import Pools
from .answer import Answer, Process
from .options import SHORTEST_KEY, ControlSettings
from .request import Request

__all__ = ["Project", "Way"]

#: Bytes of secrets that are derived, each for its own use.
_DIGEST = "sha256"


class Project:
    """The processes with one secret are one project: they find each other, and take commands from each other.

    :param settings: how its processes are reached.
    :param secret: of the framework; ``None`` where there is none: then *fallback* tells projects apart, and the proof
        is a random key in a file that only this user can read.
    :param fallback: what tells this project from others of this user where there is no secret: a path, a name.
    :param former_secrets: the framework's, from before a rotation: these processes take commands that have one of them,
        and a command reaches processes that have one of them. KEY replaces these as well.
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
        #: Characters of the secret, or bytes; 0 without one.
        self.secret_length = len(secret or "")
        #: This project under its former secrets, which give it other names; the pools are the same.
        self.former = tuple(
            Project(_by_former(settings, one), one)
            for one in _distinct(former_secrets)
            if _encoded(one) != self._secret
        )
        digest = (
            self._derive(b"name")
            if self._secret
            else hashlib.sha256(b"kombu-pools\0" + fallback.encode()).digest()
        )
        #: Sixteen hexadecimal digits; they give nothing of the secret away.
        self.name = digest.hex()[:16]
        #: The sets of aliases of this process that belong to it, as long as they live.
        self.pools: weakref.WeakSet[Pools] = weakref.WeakSet()

    @property
    def with_former(self) -> tuple[Project, ...]:
        """This project, and the same project under each of its former secrets."""
        return (self, *self.former)

    def key(self, use: str) -> bytes | None:
        """32 bytes for one *use*, the same in all its processes; ``None`` without a secret."""
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
        # A text without brackets is one secret, not one for each character.
        secrets = (secrets,)
    return {_encoded(one): one for one in secrets if one and isinstance(one, str | bytes)}.values()


def _by_former(settings: ControlSettings, secret: str | bytes) -> ControlSettings:
    """Return the settings for a former *secret*: without BROADCAST if the secret is too short for it."""
    return settings if len(secret) >= SHORTEST_KEY else replace(settings, broadcast=None)


class Way(Protocol):
    """A way to the processes of a project: this machine's sockets, or a broker."""

    def who(self, request: Request, deadline: float) -> list[Process]:
        """Those whom *request* is for and who are there.

        :param deadline: in seconds of ``time.monotonic``.
        :raises ControlError: if that cannot be told.
        """
        ...

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """Have them do it, and wait until all have answered, or until *deadline*.

        :param known: is called once, with those who are there, before they are waited for.
        :param heard: is called with each answer as it comes, those of the silent ones included, in whichever thread.
        :raises ControlError: if nobody could be asked; some may have done it.
        """
        ...
