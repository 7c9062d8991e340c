"""Decide when two providers of credentials are equal, so that one made anew for each request gets no pool of its own.

Objects are compared by ``__eq__`` and ``__hash__`` if their class has them, functions by their code and closure, and
other objects by their class and attributes as they are when first seen: a token that an object stores later changes
nothing. An object that holds something that cannot be compared, such as a client or a lock, is equal only to itself; a
process may have a few of those, and more are refused.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from .nested import DEEPEST

__all__ = ["MOST_ALONE", "stand_in"]

#: The most objects of one class that cannot be compared: one for each broker stays below that, and one for each request
#: soon exceeds it.
MOST_ALONE = 16

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_CONTAINERS = (tuple, list, set, frozenset, dict, types.MappingProxyType)
_THEMSELVES = (type, types.ModuleType, types.BuiltinFunctionType)
#: Bytes of an object besides its slots: two more are for attributes and weak references.
_EMPTY, _SLOT = object.__basicsize__, tuple.__itemsize__

#: What stands for an object, as long as that lives.
_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
#: By class, those that are themselves alone, by their ids; ``None`` stands for what cannot be referred to weakly.
_alone: weakref.WeakKeyDictionary[type[Any], dict[int, Any]] = weakref.WeakKeyDictionary()


class _Incomparable(Exception):
    """The object holds something that can be compared only by identity."""


def stand_in(value: Any) -> object:
    """Return a hashable that is equal for equal providers, and shows nothing of them.

    :raises ValueError: if there are more than :data:`MOST_ALONE` objects of its class that cannot be compared.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return _like(value, DEEPEST, outermost=True)
    except _Incomparable:
        return _by_itself(value)


def _like(value: Any, levels: int, *, outermost: bool) -> object:
    kind: Any = type(value)
    if kind in _PLAIN:
        return kind, value
    if not levels:
        raise _Incomparable
    inside = functools.partial(_like, levels=levels - 1, outermost=outermost)
    if kind in _CONTAINERS:
        return kind, _content(value, inside)
    if isinstance(value, _THEMSELVES):
        return value
    if isinstance(value, types.MethodType):
        return kind, inside(value.__func__), inside(value.__self__)
    if isinstance(value, functools.partial):
        return kind, inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, types.FunctionType):
        return _at_first(value, lambda: (value.__code__, *map(inside, _closed_over(value))))
    if kind.__eq__ is not object.__eq__ and kind.__hash__ is not None:
        return value
    within = functools.partial(_like, levels=levels - 1, outermost=False)
    try:
        return _at_first(value, lambda: _content(dict(_attributes(value)), within))
    except _Incomparable:
        if not outermost:
            raise
        return _by_itself(value)


def _at_first(value: Any, make: Any) -> object:
    """What stands for *value*: what *make* returned when it was first seen."""
    try:
        return _known[value]
    except (KeyError, TypeError):
        pass  # new here, or it cannot be hashed or referred to
    found = type(value), make()
    try:
        # Two threads that get here at once both return what the first one has made.
        return _known.setdefault(value, found)
    except TypeError:
        return found


def _content(value: Any, like: Any) -> object:
    if isinstance(value, Mapping):
        return frozenset((like(name), like(one)) for name, one in value.items())
    found = map(like, value)
    return frozenset(found) if isinstance(value, set | frozenset) else tuple(found)


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    # The same code in another module's namespace is another function.
    yield function.__module__
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            content = None  # it is yet to be set
        yield content


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    slots = [
        name
        for one in kind.__mro__
        for name in _slots_of(one)
        if name not in ("__dict__", "__weakref__")
    ]
    state = getattr(value, "__dict__", None)
    if (state is None and not slots) or kind.__basicsize__ > _EMPTY + _SLOT * (len(slots) + 2):
        # An object written in C, such as a lock or a client, has state that cannot be read.
        raise _Incomparable
    yield from (state or {}).items()
    for name in slots:
        if hasattr(value, name):
            yield name, getattr(value, name)


def _slots_of(kind: type[Any]) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _by_itself(value: Any) -> _Alone:
    kind = type(value)
    others = _alone.setdefault(kind, {})
    if id(value) not in others:
        if len(others) >= MOST_ALONE:
            raise ValueError(
                f"{MOST_ALONE} objects of {kind.__module__}.{kind.__qualname__} are used for credentials already, each "
                "with a pool of its own, because they cannot be compared: make one object and keep it, or give the "
                "class __eq__ and __hash__"
            )
        forget = functools.partial(_forget, others, id(value))
        try:
            others[id(value)] = weakref.ref(value, forget)
        except TypeError:
            others[id(value)] = None
    return _Alone(value)


def _forget(others: dict[int, Any], number: int, reference: Any) -> None:
    others.pop(number, None)


class _Alone:
    """Stands for an object by its identity; keeps it alive, so that its id stays its own."""

    __slots__ = ("_one",)

    def __init__(self, one: object) -> None:
        self._one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alone) and self._one is other._one

    def __hash__(self) -> int:
        return id(self._one)
