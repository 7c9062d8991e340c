"""Nested options: copy them, make hashable keys of them, and limit their depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["DEEPEST", "ByIdentity", "Identity", "copy_options", "freeze", "is_deeper"]

#: The most levels of nested options. A deeper value is most likely a container inside itself.
DEEPEST = 20


def is_deeper(value: object, levels: int) -> bool:
    """Return whether the containers in *value* are nested deeper than *levels*, or contain themselves."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    return not levels or any(is_deeper(one, levels - 1) for one in value)


def copy_options(value: Any) -> Any:
    """Copy the containers in *value*, but nothing else: objects such as an ``SSLContext`` cannot be copied."""
    if isinstance(value, dict):
        return {name: copy_options(one) for name, one in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(copy_options, value))
    return value


class Identity(tuple[object, ...]):
    """A dictionary key whose ``repr`` does not show what it holds, because people print dictionaries."""

    def __repr__(self) -> str:
        return f"<identity {hash(self):#x}>"


class ByIdentity:
    """A key that is equal only for the same object. It keeps the object alive, so that its id is not used again."""

    __slots__ = ("_one",)

    def __init__(self, one: object) -> None:
        self._one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self._one is other._one

    def __hash__(self) -> int:
        return id(self._one)


def freeze(value: Any) -> object:
    """Return a hashable key for *value*. Equal values have equal keys, whatever the order of their items."""
    if isinstance(value, Mapping):
        return dict, frozenset((freeze(name), freeze(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(freeze, value))
    if isinstance(value, set | frozenset):
        return set, frozenset(map(freeze, value))
    try:
        hash(value)
    except TypeError:
        return ByIdentity(value)
    # With its type, because 1, 1.0 and True are equal, but not the same option.
    return type(value), value
