"""What a pool knows of, and somebody else holds."""

from __future__ import annotations

import weakref
from typing import TypeVar

__all__ = ["Weakly"]

T = TypeVar("T")


class Weakly(set["weakref.ref[T]"]):
    """Things that a thread is at work on; when the thread is killed, they are gone from here too.

    That is how capacity comes back from an opening or a closing that nobody will end. Unlike a ``WeakSet``,
    its length costs as little as a set's, and it may change at any moment: do not iterate, ask :meth:`alive`.
    """

    __slots__ = ()

    def keep(self, thing: T) -> None:
        """Know of *thing*, as long as somebody else holds it."""
        self.add(weakref.ref(thing, self.discard))

    def drop(self, thing: T) -> None:
        """Forget *thing*."""
        self.discard(weakref.ref(thing))

    def knows(self, thing: T) -> bool:
        """Whether *thing* is among them."""
        return weakref.ref(thing) in self

    def alive(self) -> list[T]:
        """All of them, held."""
        return [thing for reference in list(self) if (thing := reference()) is not None]
