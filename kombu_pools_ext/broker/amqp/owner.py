"""What the parts of one AMQP connection know of the session that they belong to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Owner"]


class Owner(Protocol):
    """The session, as its parts see it."""

    #: The connection of kombu's.
    connection: Any
    #: When what is being done must have ended, in seconds of ``time.monotonic``; ``None`` is never.
    deadline: float | None
    #: Set to ``False`` before a publish; ``True`` once something was, or may have been, written.
    spoken: bool
    #: The socket.
    transport: Any
    #: Who counts what is published on the default channel, where that is in confirm mode.
    confirms: Any
    #: Who publishes by the fast path, on the channel that was published on last.
    publisher: Any
    #: The channel that was opened together with the connection, until it is used.
    first_channel: Any

    def within(self, deadline: float | None) -> AbstractContextManager[None]:
        """Within, every read and write ends by *deadline*, with a :class:`TimeoutError`."""
        ...
