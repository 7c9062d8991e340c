"""Sign and check messages between machines. Each command is accepted only once, and only for a short time.

A message is JSON, preceded by an HMAC. Everybody who can read the broker's traffic can read it, but only a process with
the project's key can make one. A command is valid for a short time, by the clocks of both machines, and is accepted
once. An answer contains the random number of its command, so it needs no clock.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...masking import describe

__all__ = [
    "LARGEST",
    "VALID_FOR",
    "ExpiredCommand",
    "Message",
    "RejectedMessage",
    "ReplayGuard",
    "Signer",
]

#: Seconds for which a command is valid, and by which the clocks of two machines may differ.
VALID_FOR = 30.0
#: The most bytes of a message, as many as an answer over a socket may have.
LARGEST = 4 << 20
#: The most commands that one process remembers, and so accepts within their validity.
MOST_REMEMBERED = 10_000

_DIGEST = "sha256"
#: Bytes of the signature in hexadecimal digits; a space follows it.
_SIGNATURE_SIZE = 64
#: Bytes of a message's number.
_NUMBER_SIZE = 16


class RejectedMessage(ValueError):
    """A message was refused; the text says why."""


class ExpiredCommand(RejectedMessage):
    """A command is no longer valid, or was made on a machine whose clock differs from this one's."""

    def __init__(self, seconds: float) -> None:
        direction = "behind" if seconds > 0 else "ahead of"
        super().__init__(
            f"it was made {abs(seconds):.0f} s {direction} this machine's clock, and is valid for {VALID_FOR:.0f} s: "
            "it is old, or the clock of one of the two machines is wrong"
        )


@dataclass(frozen=True)
class Message:
    """A message whose signature is valid."""

    #: What it is for. Listeners and clients accept different kinds.
    kind: str
    #: A random number, different for each message.
    number: str
    #: When it was made, in seconds since 1970.
    at: float
    content: Mapping[str, Any]
    #: The number of the message that it answers.
    about: str | None = None


class Signer:
    """Signs messages, and checks those of other processes.

    :param key: the project's key.
    :param scope: the virtual host or database. A message that is copied to another one is refused there.
    :param clock: in seconds since 1970.
    """

    def __init__(self, key: bytes, scope: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(key, scope.encode(), _DIGEST)
        self._clock = clock

    def make(
        self, kind: str, content: Mapping[str, Any], about: str | None = None
    ) -> tuple[bytes, str]:
        """Return a signed message, and its number.

        :raises ValueError: if it is larger than :data:`LARGEST`.
        """
        number = secrets.token_hex(_NUMBER_SIZE)
        document = {
            "kind": kind,
            "number": number,
            "at": self._clock(),
            "about": about,
            "content": content,
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        if len(text) + _SIGNATURE_SIZE + 1 > LARGEST:
            raise ValueError(f"{len(text)} bytes, and a message has at most {LARGEST}")
        return self._signature(text) + b" " + text, number

    def open(self, data: Any) -> Message:
        """Check *data*, and return the message in it.

        :raises RejectedMessage: if it was not signed with the same key for the same scope, or cannot be parsed.
        """
        if not isinstance(data, bytes):
            raise RejectedMessage(f"it is not a message, but {describe(data)}")
        if len(data) > LARGEST:
            raise RejectedMessage(f"it has {len(data)} bytes, and a message has at most {LARGEST}")
        signature, text = data[:_SIGNATURE_SIZE], data[_SIGNATURE_SIZE + 1 :]
        # The signature is checked before anything is parsed.
        if data[_SIGNATURE_SIZE : _SIGNATURE_SIZE + 1] != b" " or not hmac.compare_digest(
            signature, self._signature(text)
        ):
            raise RejectedMessage("it is not signed with this project's key")
        try:
            document: Any = json.loads(text)
            kind, number, at = document["kind"], document["number"], document["at"]
            content, about = document["content"], document["about"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise RejectedMessage(f"it cannot be parsed: {type(error).__name__}") from None
        is_valid = (
            isinstance(kind, str)
            and isinstance(number, str)
            and isinstance(at, int | float)
            and isinstance(content, Mapping)
        )
        if not is_valid:
            raise RejectedMessage("it is of another version")
        return Message(kind, number, at, content, about)

    def _signature(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, _DIGEST).hex().encode()


class ReplayGuard:
    """Admits each command once, while it is valid.

    :param clock: in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time, most: int = MOST_REMEMBERED) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        #: By number, when the validity of each admitted command ends.
        self._admitted: dict[str, float] = {}

    def admit(self, message: Message) -> None:
        """Admit *message*.

        :raises ExpiredCommand: if it is no longer valid, or not yet.
        :raises RejectedMessage: if it was admitted before, or too many others were.
        """
        now = self._clock()
        # Written so that it also refuses NaN, with which all comparisons are false.
        if not abs(now - message.at) <= VALID_FOR:
            raise ExpiredCommand(now - message.at)
        # Without the lock, two copies that arrive at once could both be admitted.
        with self._lock:
            if message.number in self._admitted:
                raise RejectedMessage("it was sent a second time")
            if len(self._admitted) >= self._most:
                self._admitted = {
                    one: until for one, until in self._admitted.items() if until >= now
                }
                if len(self._admitted) >= self._most:
                    raise RejectedMessage(f"{self._most} commands came within {VALID_FOR:.0f} s")
            self._admitted[message.number] = message.at + VALID_FOR
