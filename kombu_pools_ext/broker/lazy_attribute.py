"""What a pool makes when it is first used: a process may have a pool for each of its tenants, most of them unused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["LazyAttribute"]

T = TypeVar("T")


class LazyAttribute(Generic[T]):
    """An attribute that is made when it is first asked for; from then on it costs what any attribute costs.

    Of two threads that ask at once both may make one, and both get the same.

    :param make: makes it for an instance.
    :param then: is called with instance and attribute once it is there for all to see.
    """

    def __init__(
        self, make: Callable[[Any], T], then: Callable[[Any, T], None] | None = None
    ) -> None:
        self._make = make
        self._then = then

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any = None) -> T:
        made: T = instance.__dict__.setdefault(self._name, self._make(instance))
        if self._then is not None:
            self._then(instance, made)
        return made

    @staticmethod
    def of(instance: Any, name: str) -> Any:
        """The attribute *name* of *instance* if it was made, else ``None``."""
        return instance.__dict__.get(name)
