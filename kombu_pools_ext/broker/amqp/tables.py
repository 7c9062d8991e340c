"""A table of AMQP, such as the headers of a message, byte for byte as py-amqp writes it.

py-amqp asks of each value which of eight types it is. The headers of a Celery task have some twenty values, and most
of them are texts, so this takes a third of that time.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from amqp.serialization import dumps

__all__ = ["encode_table"]

#: Names of headers whose encoding is kept, at most. Applications have few.
_MOST_KEPT = 1024
#: py-amqp's: an integer between this and its negative has 32 bits in a table, any other has 64.
_LARGEST_SHORT = (1 << 31) - 1

_long = Struct(">I").pack
_text = Struct(">cI").pack
_short_integer = Struct(">ci").pack
_long_integer = Struct(">cq").pack
_float = Struct(">cd").pack
_BOOLS = (b"t\0", b"t\1")
_NOTHING = b"V"

# A dict's operations are atomic: at the worst two threads encode the same name.
_names: dict[str, bytes] = {}


class _Unusual(Exception):
    """There is a key or a value whose encoding is py-amqp's to say."""


def encode_table(table: dict[Any, Any]) -> bytes:
    """Return *table* as AMQP has it, its length in the first four bytes.

    :raises Exception: py-amqp's, for what has no encoding.
    """
    try:
        body = b"".join(_entries(table))
    except _Unusual:
        encoded: bytes = dumps("F", (table,))
        return encoded
    return _long(len(body)) + body


def _entries(table: dict[Any, Any]) -> list[bytes]:
    parts = []
    for name, value in table.items():
        parts.append(_names.get(name) or _keep_name(name))
        if type(value) is str:
            raw = value.encode("utf-8", "surrogatepass")
            parts.append(_text(b"S", len(raw)))
            parts.append(raw)
        elif value is None:
            parts.append(_NOTHING)
        else:
            parts.append(_value(value))
    return parts


def _value(value: Any) -> bytes:
    kind = type(value)
    if kind is str:
        raw: bytes = value.encode("utf-8", "surrogatepass")
        return _text(b"S", len(raw)) + raw
    if value is None:
        return _NOTHING
    if kind is int:
        short = -_LARGEST_SHORT <= value <= _LARGEST_SHORT
        return _short_integer(b"I", value) if short else _long_integer(b"L", value)
    if kind is bool:
        return _BOOLS[value]
    if kind is list or kind is tuple:
        body = b"".join(map(_value, value))
        return _text(b"A", len(body)) + body
    if kind is dict:
        body = b"".join(_entries(value))
        return _text(b"F", len(body)) + body
    if kind is float:
        return _float(b"d", value)
    raise _Unusual


def _keep_name(name: Any) -> bytes:
    if type(name) is not str:
        raise _Unusual
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > 255:
        raise _Unusual
    encoded = bytes((len(raw),)) + raw
    if len(_names) >= _MOST_KEPT:
        _names.clear()
    _names[name] = encoded
    return encoded
