"""What the outbox needs of a database: a small protocol, for Django's connections as well as those of the DB-API."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Cursor", "Database", "Listener"]


class Cursor(Protocol):
    """A cursor as in the DB-API (PEP 249). The place of a parameter is ``%s``, whatever the driver's style is."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed, or found."""
        ...

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        """Carry out *statement*."""
        ...

    def fetchall(self) -> Sequence[Sequence[Any]]:
        """Return all rows that the last statement found."""
        ...


class Listener(Protocol):
    """A connection of its own that hears the notifications of those who write to the outbox."""

    def wait(self, seconds: float) -> bool:
        """Wait for a notification, for *seconds* at most; return whether there was one.

        :raises Exception: one of :attr:`Database.errors`, if the connection broke.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Database(Protocol):
    """The database that the outbox is in, as a relay or a command uses it: from one thread."""

    @property
    def vendor(self) -> str:
        """``"postgresql"``, ``"mysql"`` (MariaDB as well) or ``"sqlite"``."""
        ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The classes of the driver's errors, lost connections among them."""
        ...

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Begin a transaction at READ COMMITTED. It is committed at the end of the block, rolled back by an error.

        A connection that was lost is opened again with the next transaction.
        """
        ...

    def listen(self, channel: str) -> Listener | None:
        """Hear the notifications of *channel*; ``None`` for a database that has none."""
        ...

    def close(self) -> None:
        """Close the connection. The next transaction opens one."""
        ...
