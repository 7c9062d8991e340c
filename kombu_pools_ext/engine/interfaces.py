"""What the engine asks of its host."""

from __future__ import annotations

from typing import Protocol, TypeVar

__all__ = ["Driver", "Listener"]

T = TypeVar("T")


class Driver(Protocol[T]):
    """Opens and closes what a pool holds. Every method runs outside the pool's lock and may block."""

    def open(self) -> T:
        """Open an item; an exception opens the breaker."""
        ...

    def open_within(self, seconds: float) -> T:
        """:meth:`open` for a caller who has no more than *seconds*, in its own thread."""
        ...

    def check(self, item: T, *, thorough: bool) -> bool:
        """Whether *item*, unused for a while, may be lent.

        An exception is not about the item: somebody interrupted the check, and the borrower gets it.

        :param thorough: another item broke in use, or was found dead: a look is not enough, the peer must answer.
        """
        ...

    def is_hung_up(self, item: T) -> bool:
        """Whether a look shows that *item*, idle, is dead, without reading; ``False`` leaves it to :meth:`check`.

        Somebody may borrow or close it at this moment.
        """
        ...

    def keep_alive_every(self, item: T) -> float | None:
        """Seconds between two calls of :meth:`keep_alive` for *item*; ``None`` for none. Asked once."""
        ...

    def keep_alive(self, item: T, *, lent: bool) -> bool:
        """Keep *item* alive, without waiting; ``False`` if it is dead.

        :param lent: a borrower holds it, and may be using it in another thread at this moment; else nobody does.
        """
        ...

    def may_pass(self, error: Exception) -> bool:
        """Whether an opening that failed with *error* may succeed later, without anybody's doing."""
        ...

    def close(self, item: T, *, broken: bool, timeout: float | None = None) -> None:
        """Close *item* for good, within *timeout* seconds, or within a bound of the driver's own.

        *broken* says that the item's state is unknown or its peer gone: close without a word, and
        without waiting. Exceptions are logged, and change nothing.
        """
        ...

    def announce_close(self, item: T) -> None:
        """At exit: begin to close *item*, without waiting for an answer; :meth:`close` follows."""
        ...

    def abandon(self, item: T) -> None:
        """In a forked child: close the inherited descriptors of *item*, send nothing, shut nothing down."""
        ...


class Listener(Protocol):
    """Is told of a pool's events, outside its lock. An exception is logged, and changes nothing."""

    def wanted(self) -> None:
        """An item is about to be opened, or would be if the pool were not suspended."""

    def opened(self) -> None:
        """An item was opened."""

    def closed(self, reason: str) -> None:
        """An item was closed, because of *reason* (see :data:`kombu_pools_ext.stats.CLOSE_REASONS`)."""

    def exhausted(self, reason: str) -> None:
        """A caller was refused: ``"exhausted"``, ``"timeout"`` or ``"full"``."""
