"""The pool, as those see it that work for it: the opener, the checker, a waiting caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .decision import Decision
from .interfaces import Driver
from .lease import Entry, Lease
from .options import PoolOptions
from .refusals import Refusals
from .reports import Reports
from .state import PoolState
from .waiters import Waiter

__all__ = ["PoolInterface"]

T = TypeVar("T")
R = TypeVar("R")
D = TypeVar("D", bound=Decision[Any])


class PoolInterface(Protocol[T]):
    """The pool: it takes the lock, and carries decisions out."""

    name: str
    options: PoolOptions
    clock: Callable[[], float]
    driver: Driver[T]
    state: PoolState[T]
    reports: Reports
    refusals: Refusals
    #: Runs a function in a thread of that name, and returns whether it could.
    spawn: Callable[[Callable[[], None], str], bool]

    def locked(self, decide: Callable[[], R]) -> R:
        """Return what *decide* says under the lock."""
        ...

    def insist(self, decide: Callable[[], R]) -> R:
        """Return what *decide*, a step that must not be lost, says under the lock."""
        ...

    def decide(
        self, decide: Callable[[], D], deadline: float | None = None, *, here: bool = False
    ) -> D:
        """Carry out, and return, what *decide* says under the lock."""
        ...

    def carry_out(
        self, decision: Decision[T], deadline: float | None = None, *, here: bool = False
    ) -> None:
        """Start the openings of *decision*, and close what it says."""
        ...

    def look_after(self, due: float | None = None) -> None:
        """Have the maintenance thread look at the pool, at the latest when something is *due*."""
        ...

    def why_unfit(self, lease: Lease[T], now: float) -> str | None:
        """Return why what was lent must not be used but closed, or ``None``."""
        ...

    def release(self, lease: Lease[T], broken: str | None = None) -> None:
        """Take *lease* back."""
        ...

    def close_entry(self, entry: Entry[T], reason: str, timeout: float | None = None) -> None:
        """Close *entry*, with at most *timeout* seconds for its goodbye."""
        ...

    def leave(self, waiter: Waiter[T], began: float) -> float:
        """Take *waiter*, who has waited since *began*, out of the queue; return the seconds."""
        ...

    def look_again(self, deadline: float | None = None, waiter: Waiter[T] | None = None) -> None:
        """Do for *waiter* what a killed thread may have left undone."""
        ...

    def refuse(self, reason: str, seconds: float = 0.0) -> Exception:
        """Count a refusal, tell of it, and return the error."""
        ...
