"""Whose processes these are: the pools that are steered together, and the secret that proves who may."""

from __future__ import annotations

import hashlib
import hmac
import weakref
from collections.abc import Callable
from typing import Protocol

from ..aliases import Pools
from .answer import Answer, Process
from .options import ControlSettings
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
    """

    def __init__(
        self, settings: ControlSettings, secret: str | bytes | None, fallback: str = ""
    ) -> None:
        secret = settings.key if settings.key is not None else secret
        self.settings = settings
        self._secret = secret.encode() if isinstance(secret, str) else secret
        digest = (
            self._derive(b"name")
            if self._secret
            else hashlib.sha256(b"kombu-pools\0" + fallback.encode()).digest()
        )
        #: Sixteen hexadecimal digits; they give nothing of the secret away.
        self.name = digest.hex()[:16]
        #: The sets of aliases of this process that belong to it, as long as they live.
        self.pools: weakref.WeakSet[Pools] = weakref.WeakSet()

    def key(self, use: str) -> bytes | None:
        """32 bytes for one *use*, the same in all its processes; ``None`` without a secret."""
        return self._derive(use.encode()) if self._secret else None

    def _derive(self, use: bytes) -> bytes:
        assert self._secret is not None
        return hmac.digest(self._secret, b"kombu-pools-ext control: " + use, _DIGEST)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


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
