"""Messages between machines: what proves them, how long they hold, and that none holds twice.

A message is JSON with an HMAC before it. Whoever can read the broker reads it; only who has the project's key can make
one. A command holds for a window of time by the clocks of both, and is taken once. An answer names the command that it
answers, whose number nobody could know before: it needs no clock.
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

from ..masking import describe

__all__ = ["LARGEST", "WINDOW", "Late", "Message", "Refused", "Seal", "Window"]

#: Seconds by which a command may be old, or the clocks of two machines may differ.
WINDOW = 30.0
#: Bytes of a message: what an answer on this machine may have.
LARGEST = 4 << 20
#: Commands that one process remembers: all that it takes within the window. Beyond it refuses, and forgets none.
MOST_REMEMBERED = 10_000

_DIGEST = "sha256"
#: Bytes of the proof, as hexadecimal digits, and the space after it.
_PROOF = 64
#: Bytes of a message's number.
_NUMBER = 16


class Refused(ValueError):
    """A message that nothing is done about; the text says why."""


class Late(Refused):
    """A command that was made longer ago than it holds, or on a machine whose clock differs from ours."""

    def __init__(self, seconds: float) -> None:
        direction = "behind" if seconds > 0 else "ahead of"
        super().__init__(
            f"it was made {abs(seconds):.0f} s {direction} this machine's clock, and holds for {WINDOW:.0f}: it is an "
            "old one, or the clock of one of the two machines is wrong"
        )


@dataclass(frozen=True)
class Message:
    """What was sealed."""

    #: What it is for; each end takes its own kinds.
    kind: str
    #: Different for all messages.
    number: str
    #: When it was made, in seconds since 1970.
    at: float
    content: Mapping[str, Any]
    #: The number of the message that it answers.
    about: str | None = None


class Seal:
    """Makes messages, and proves those of others.

    :param key: the project's own.
    :param place: where the messages are exchanged: one that somebody carries to another place proves nothing there.
    :param clock: in seconds since 1970.
    """

    def __init__(self, key: bytes, place: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(key, place.encode(), _DIGEST)
        self._clock = clock

    def make(
        self, kind: str, content: Mapping[str, Any], about: str | None = None
    ) -> tuple[bytes, str]:
        """A sealed message, and its number.

        :raises ValueError: if it is larger than :data:`LARGEST`.
        """
        number = secrets.token_hex(_NUMBER)
        whole = {
            "kind": kind,
            "number": number,
            "at": self._clock(),
            "about": about,
            "content": content,
        }
        text = json.dumps(whole, separators=(",", ":")).encode()
        if len(text) + _PROOF + 1 > LARGEST:
            raise ValueError(f"{len(text)} bytes, and a message has at most {LARGEST}")
        return self._prove(text) + b" " + text, number

    def open(self, data: Any) -> Message:
        """What is in *data*.

        :raises Refused: unless it was made with the same key, for the same place.
        """
        if not isinstance(data, bytes):
            raise Refused(f"it is no message, but {describe(data)}")
        if len(data) > LARGEST:
            raise Refused(f"it has {len(data)} bytes, and a message has at most {LARGEST}")
        proof, text = data[:_PROOF], data[_PROOF + 1 :]
        # Nothing is read of what is not proven.
        if data[_PROOF : _PROOF + 1] != b" " or not hmac.compare_digest(proof, self._prove(text)):
            raise Refused("it is not signed with this project's key")
        try:
            whole: Any = json.loads(text)
            kind, number, at = whole["kind"], whole["number"], whole["at"]
            content, about = whole["content"], whole["about"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Refused(f"it cannot be read: {type(error).__name__}") from None
        sound = (
            isinstance(kind, str)
            and isinstance(number, str)
            and isinstance(at, int | float)
            and isinstance(content, Mapping)
        )
        if not sound:
            raise Refused("it is of another version")
        return Message(kind, number, at, content, about)

    def _prove(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, _DIGEST).hex().encode()


class Window:
    """Lets each command pass once, while it holds.

    :param clock: in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time, most: int = MOST_REMEMBERED) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        #: When each number that passed has ceased to hold.
        self._passed: dict[str, float] = {}

    def admit(self, message: Message) -> None:
        """Let *message* pass.

        :raises Late: if it does not hold any more, or not yet.
        :raises Refused: if it has passed before, or too many have.
        """
        now = self._clock()
        # Not a number: neither.
        if not abs(now - message.at) <= WINDOW:
            raise Late(now - message.at)
        # Between looking and noting, its double would pass too.
        with self._lock:
            if message.number in self._passed:
                raise Refused("it was sent a second time")
            if len(self._passed) >= self._most:
                self._passed = {one: until for one, until in self._passed.items() if until >= now}
                if len(self._passed) >= self._most:
                    raise Refused(f"{self._most} commands came within {WINDOW:.0f} s")
            self._passed[message.number] = message.at + WINDOW
