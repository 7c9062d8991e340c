"""Decide when two credential providers are equal, so that one made anew for each request does not get a new pool.

Objects are compared by ``__eq__`` and ``__hash__`` if their class defines them, functions by their code and closure,
and other objects by their class and their attributes as they are when first seen: a token that an object stores later
changes nothing. An object that holds something that cannot be compared, such as a client or a lock, is equal only to
itself; a process may use a few of those, and more are refused.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from .nested import DEEPEST, ByIdentity

__all__ = ["MAX_INCOMPARABLE", "credentials_key"]

#: The most objects of one class that cannot be compared. One for each broker stays below this; one for each request
#: soon exceeds it.
MAX_INCOMPARABLE = 16

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_CONTAINERS = (tuple, list, set, frozenset, dict, types.MappingProxyType)
_BY_REFERENCE = (type, types.ModuleType, types.BuiltinFunctionType)
#: Sizes in bytes, to tell an object with hidden state: two slots more are for ``__dict__`` and weak references.
_EMPTY, _SLOT = object.__basicsize__, tuple.__itemsize__

#: The key of each object that is alive.
_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
#: By class, the objects that cannot be compared, by their ids; ``None`` stands for one without weak references.
_incomparable: weakref.WeakKeyDictionary[type[Any], dict[int, Any]] = weakref.WeakKeyDictionary()


class _Incomparable(Exception):
    """The object holds something that can be compared only by identity."""


def credentials_key(value: Any) -> object:
    """Return a hashable key that is equal for equal providers, and does not show what they hold.

    :raises ValueError: if there are more than :data:`MAX_INCOMPARABLE` objects of its class that cannot be compared.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return _key(value, DEEPEST, outermost=True)
    except _Incomparable:
        return _by_identity(value)


def _key(value: Any, levels: int, *, outermost: bool) -> object:
    kind: Any = type(value)
    if kind in _PLAIN:
        return kind, value
    if not levels:
        raise _Incomparable
    inside = functools.partial(_key, levels=levels - 1, outermost=outermost)
    if kind in _CONTAINERS:
        return kind, _content(value, inside)
    if isinstance(value, _BY_REFERENCE):
        return value
    if isinstance(value, types.MethodType):
        return kind, inside(value.__func__), inside(value.__self__)
    if isinstance(value, functools.partial):
        return kind, inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, types.FunctionType):
        return _made_once(value, lambda: (value.__code__, *map(inside, _closed_over(value))))
    if kind.__eq__ is not object.__eq__ and kind.__hash__ is not None:
        return value
    within = functools.partial(_key, levels=levels - 1, outermost=False)
    try:
        return _made_once(value, lambda: _content(dict(_attributes(value)), within))
    except _Incomparable:
        if not outermost:
            raise
        return _by_identity(value)


def _made_once(value: Any, make: Any) -> object:
    """Return the key of *value* that *make* returned when the object was first seen."""
    try:
        return _known[value]
    except (KeyError, TypeError):
        pass  # it is new, cannot be hashed, or has no weak references
    found = type(value), make()
    try:
        # If two threads make a key at once, both return the first one.
        return _known.setdefault(value, found)
    except TypeError:
        return found


def _content(value: Any, key: Any) -> object:
    if isinstance(value, Mapping):
        return frozenset((key(name), key(one)) for name, one in value.items())
    found = map(key, value)
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
            content = None  # the variable has no value yet
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
        # An object written in C, such as a lock, has state that cannot be read.
        raise _Incomparable
    yield from (state or {}).items()
    for name in slots:
        if hasattr(value, name):
            yield name, getattr(value, name)


def _slots_of(kind: type[Any]) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _by_identity(value: Any) -> ByIdentity:
    kind = type(value)
    others = _incomparable.setdefault(kind, {})
    if id(value) not in others:
        if len(others) >= MAX_INCOMPARABLE:
            raise ValueError(
                f"{MAX_INCOMPARABLE} objects of {kind.__module__}.{kind.__qualname__} are used for credentials "
                "already, each with a pool of its own, because they cannot be compared: make one object and keep it, "
                "or give the class __eq__ and __hash__"
            )
        forget = functools.partial(_forget, others, id(value))
        try:
            others[id(value)] = weakref.ref(value, forget)
        except TypeError:
            others[id(value)] = None
    return ByIdentity(value)


def _forget(others: dict[int, Any], number: int, reference: Any) -> None:
    others.pop(number, None)
