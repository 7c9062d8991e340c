"""Lazy text, such as ``gettext_lazy``'s: rendered when a message is made, in the language of whoever makes it."""

from __future__ import annotations

from typing import Any

from django.utils.functional import Promise

__all__ = ["rendered"]

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


def rendered(value: Any, levels: bool = True) -> Any:
    """*value* with text in place of lazy text; *value* itself, if there is none in it.

    :param levels: look into dicts, lists, tuples and sets, too.
    """
    if isinstance(value, Promise):
        return _text_of(value)
    if not levels:
        return value
    try:
        return _within(value)
    except RecursionError:
        # Whoever serializes it knows what to do with a circle.
        return value


def _text_of(value: Promise) -> Any:
    # Other lazy values, numbers say, are the serializer's to judge.
    return str(value) if hasattr(value, "encode") else value


def _within(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Promise):
        return _text_of(value)
    if kind is dict:
        items = [(key, _within(key), one, _within(one)) for key, one in value.items()]
        if all(key is new_key and one is new for key, new_key, one, new in items):
            return value
        return {new_key: new for _, new_key, _, new in items}
    if kind in (list, tuple, set, frozenset):
        parts = list(map(_within, value))
        return value if all(map(_is, value, parts)) else kind(parts)
    return value


def _is(one: Any, other: Any) -> bool:
    return one is other
