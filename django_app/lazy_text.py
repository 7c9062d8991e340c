"""Render lazy text, such as ``gettext_lazy()`` returns, when a message is made, in the caller's language."""

from __future__ import annotations

from typing import Any

from django.utils.functional import Promise

__all__ = ["rendered"]

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


def rendered(value: Any, levels: bool = True) -> Any:
    """Return *value* with text in place of lazy text; *value* itself if it contains none.

    :param levels: whether to look into dicts, lists, tuples and sets as well.
    """
    if isinstance(value, Promise):
        return _text_of(value)
    if not levels:
        return value
    try:
        return _within(value)
    except RecursionError:
        # The value contains itself. The serializer decides what to do with it.
        return value


def _text_of(value: Promise) -> Any:
    # Other lazy values, such as numbers, are left to the serializer.
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
