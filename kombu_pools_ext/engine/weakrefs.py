"""What a pool knows of, and somebody else holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["Holding", "WeakPlaces", "snapshot"]

T = TypeVar("T")
V = TypeVar("V")


def snapshot(read: Callable[[], Iterable[T]]) -> list[T]:
    """All that *read* gives, although another thread may add to it meanwhile."""
    while True:
        try:
            return list(read())
        except RuntimeError:  # pragma: no cover - another thread has just added one
            continue


class WeakPlaces(set["weakref.ref[T]"]):
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


class Holding(dict["weakref.ref[T]", V]):
    """Things that somebody else holds, and what is held for each as long as it lives.

    What is held is not garbage together with its thing, if the collector finds that in a cycle: the finalizer of the
    thing has it whole.
    """

    __slots__ = ()

    def keep(self, thing: T, value: V) -> None:
        """Know of *thing*, and hold *value*."""
        self[weakref.ref(thing, self._gone)] = value

    def _gone(self, reference: weakref.ref[T]) -> None:
        self.pop(reference, None)

    def knows(self, thing: T) -> bool:
        """Whether *thing* is among them."""
        return weakref.ref(thing) in self

    def drop(self, thing: T) -> None:
        """Forget *thing*, and what was held for it."""
        self.pop(weakref.ref(thing), None)

    def alive(self) -> list[T]:
        """All of them, held."""
        return [thing for reference in list(self) if (thing := reference()) is not None]

    def values_alive(self) -> list[V]:
        """What is held for each of them."""
        return snapshot(self.values)
