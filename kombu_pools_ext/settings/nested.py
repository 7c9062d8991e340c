"""Options that are dicts and lists within each other: copied, compared, and kept from going too deep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["DEEPEST", "Identity", "copy_options", "freeze", "is_deeper"]

#: Levels of nested options; what is deeper is most likely a container inside itself.
DEEPEST = 20


def is_deeper(value: object, levels: int) -> bool:
    """Whether *value* has containers in more than *levels* levels; true of one that contains itself."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    return not levels or any(is_deeper(one, levels - 1) for one in value)


def copy_options(value: Any) -> Any:
    """A copy of *value* as deep as its containers go: an ``SSLContext`` and its like cannot be copied."""
    if isinstance(value, dict):
        return {name: copy_options(one) for name, one in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(copy_options, value))
    return value


class Identity(tuple[object, ...]):
    """A key of dictionaries, which people print: it shows nothing of what it holds."""

    def __repr__(self) -> str:
        return f"<identity {hash(self):#x}>"


class _ById:
    """Stands for an object that cannot be hashed; keeps it alive, so that its id stays its own."""

    __slots__ = ("_one",)

    def __init__(self, one: object) -> None:
        self._one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self._one is other._one

    def __hash__(self) -> int:
        return id(self._one)


def freeze(value: Any) -> object:
    """A hashable stand-in for *value*: equal values have equal stand-ins, whatever the order of their keys."""
    if isinstance(value, Mapping):
        return dict, frozenset((freeze(name), freeze(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(freeze, value))
    if isinstance(value, set | frozenset):
        return set, frozenset(map(freeze, value))
    try:
        hash(value)
    except TypeError:
        return _ById(value)
    # With its type: 1, 1.0 and True are equal, and not the same option.
    return type(value), value
