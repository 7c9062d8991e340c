"""Connections that are not this library's: those of kombu's own pools, and of pools of anybody else."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .addresses import SHORTEST
from .failed_openings import may_pass
from .plain import PlainSession, is_connected
from .sender import Sender
from .session import Session

if TYPE_CHECKING:
    from kombu.connection import ConnectionPool as KombuConnectionPool

__all__ = ["ForeignDriver", "ForeignSession", "session_of"]


#: Arguments of ``publish`` after the body and before ``timeout``.
_BEFORE_TIMEOUT = 15


class ForeignSession(PlainSession):
    """Of a connection that another pool, or none, has opened.

    :param connection: one of kombu's.
    :param lent: whether the producer's pool has lent it, so that kombu's arguments mean what they mean in kombu.
        On any other, what the caller allowed for all tries bounds each read and each write.
    """

    bounds_batches = False

    def __init__(self, connection: Any, *, lent: bool = False) -> None:
        super().__init__(connection)
        self._lent = lent

    def publish(
        self,
        sender: Sender,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        if "message_id" in kwargs:
            # py-amqp's own bounds, for each read and each write: there is no deadline below.
            left = max(SHORTEST, deadline - time.monotonic())
            if self._lent:
                kwargs = {"confirm_timeout": left, **kwargs}
            else:
                kwargs = {**kwargs, "confirm_timeout": left}
                if len(args) <= _BEFORE_TIMEOUT:
                    kwargs["timeout"] = left
        return super().publish(sender, body, args, kwargs, deadline)

    def is_sound(self) -> bool:
        established = self.connection._connection
        return (
            established is not None
            and not self.is_turned_away
            and is_connected(self.connection, established)
        )


def session_of(connection: Any) -> Session:
    """Return the session of *connection*, which may be of another pool, or of none."""
    found: Any = getattr(connection, "pooled_session", None)
    # An application's connection may have anything of that name.
    return found if hasattr(found, "knows_its_sockets") else ForeignSession(connection)


def _with_session(connection: Any) -> Any:
    """Return *connection*, which another pool has lent, with a session for the time of that."""
    session = session_of(connection)
    if isinstance(session, ForeignSession):
        connection.pooled_session = ForeignSession(connection, lent=True)
    return connection


class ForeignDriver:
    """Draws on a pool that is not ours: kombu's own, or anything with its interface."""

    def __init__(self, connections: KombuConnectionPool) -> None:
        self._connections = connections
        # What a borrower who does not wait has taken already, for the opening that it causes.
        self._offered: deque[Any] = deque()

    @contextlib.contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Within, there is a connection of the other pool to open.

        :raises LimitExceeded: if the other pool has none.
        """
        connection = self._connections.acquire()
        self._offered.append(connection)
        try:
            yield
        finally:
            try:
                self._offered.remove(connection)
            except ValueError:
                pass  # taken
            else:
                connection.release()

    def open(self) -> Any:
        """Lend a connection of the other pool; the borrower's deadline is held by the engine."""
        try:
            return _with_session(self._offered.popleft())
        except IndexError:
            return _with_session(self._connections.acquire(block=True))

    def open_within(self, seconds: float) -> Any:
        """:meth:`open` for a caller who has no more than *seconds*, in its own thread."""
        try:
            return _with_session(self._offered.popleft())
        except IndexError:
            return _with_session(self._connections.acquire(block=True, timeout=seconds))

    def check(self, item: Any, *, thorough: bool) -> bool:
        """Nothing stays idle here: the other pool keeps it."""
        return True

    def is_hung_up(self, item: Any) -> bool:
        """As :meth:`check`."""
        return False

    def keep_alive_every(self, item: Any) -> float | None:
        """Never: the other pool keeps its own."""
        return None

    def keep_alive(self, item: Any, *, lent: bool) -> bool:
        """Nothing, for the same reason."""
        return True

    def may_pass(self, error: BaseException) -> bool:
        """Whether an opening that failed with *error* may succeed later by itself."""
        return may_pass(error)

    def close(self, item: Any, *, broken: bool, timeout: float | None = None) -> None:
        """Give *item* back to its own pool."""
        item.__dict__.pop("pooled_session", None)
        if broken:
            item.collect()
        # Not what a borrower may have put in the place of its release.
        self._connections.release(item)

    def announce_close(self, item: Any) -> None:
        """Nothing: the other pool closes its own."""

    def abandon(self, item: Any) -> None:
        """In a forked child: the other pool takes care of its own."""
