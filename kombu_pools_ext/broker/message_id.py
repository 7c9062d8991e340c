"""Names for messages: a UUID each, in a tenth of the time that uuid's take."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from os import urandom

from ..engine.fork import child_begins, mark, register

__all__ = ["message_ids", "new_message_id"]


class MessageIds:
    """UUIDs of version 4 that share their random part within a process, and count on from a random number."""

    __slots__ = ("__weakref__", "make")

    #: The next one; written in C, so that no two threads get the same.
    make: Callable[[], str]

    def __init__(self) -> None:
        self.after_fork_in_child()
        register(self)

    def after_fork_in_child(self) -> None:
        """Have another random part than the parent."""
        digits = urandom(16).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        shared = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}"
        # Half of the numbers at least are left: more than a process ever sends.
        first = int(digits[20:], 16) >> 1
        self.make = map(f"{shared}-%012x".__mod__, count(first)).__next__


#: Those of this process. Where :data:`~.engine.fork.mark` is looked at anyway, ``message_ids.make()`` is
#: :func:`new_message_id`.
message_ids = MessageIds()


def new_message_id() -> str:
    """A ``message_id`` that nobody else has, in this process or another."""
    if not mark[0]:
        child_begins()
    return message_ids.make()
