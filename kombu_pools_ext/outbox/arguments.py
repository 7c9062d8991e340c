"""The arguments of a prepared message as text, and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kombu.entity import Exchange, Queue, binding
from kombu.utils import json

__all__ = ["dumped", "loaded"]

#: They have columns of their own, or are about the body, which is ready.
_ELSEWHERE = frozenset({"message_id", "exchange", "routing_key", "compression"})
#: They are about a call that waits, and nobody waits for a row.
_OF_A_CALL = frozenset({"acquire_timeout"})


def dumped(arguments: Mapping[str, Any]) -> str:
    """Return *arguments*, those of a :class:`.PreparedMessage`, as JSON with kombu's types.

    :raises TypeError: for what cannot be written down, with its name.
    """
    kept: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None or name in _ELSEWHERE or name in _OF_A_CALL:
            continue
        # A text of its own, because many messages have the same, and it is read once.
        kept[name] = json.dumps([_told(one) for one in value]) if name == "declare" else value
    try:
        text: str = json.dumps(kept)
    except (TypeError, ValueError) as error:
        wrong = ", ".join(name for name, value in kept.items() if not _can_be_written(value))
        raise TypeError(
            f"the outbox writes a message's arguments down as JSON, and cannot write {wrong or 'them'}: {error}"
        ) from error
    return text


def loaded(text: str) -> dict[str, Any]:
    """Return the arguments that were written as *text*.

    :raises ValueError: if it is no such text.
    """
    arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments are a {type(arguments).__name__}, not a dict")
    declare = arguments.get("declare")
    if declare is not None:
        try:
            arguments["declare"] = _entities(declare)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"what has to be declared cannot be read: {error}") from error
    return arguments


@lru_cache(maxsize=1000)
def _entities(text: str) -> tuple[Exchange | Queue, ...]:
    """Return what *text* tells: for the same text the same object, which nobody changes."""
    return tuple(_entity(one) for one in json.loads(text))


def _can_be_written(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _told(entity: Any) -> dict[str, Any]:
    if isinstance(entity, Exchange):
        return {"exchange": _attributes(entity)}
    if isinstance(entity, Queue):
        told = _attributes(entity)
        # A queue with bindings has none, whatever its type says.
        exchange: Any = entity.exchange
        told["exchange"] = None if exchange is None else _attributes(exchange)
        told["bindings"] = [
            {**_attributes(one), "exchange": _attributes(one.exchange)}
            for one in entity.bindings or ()
        ]
        return {"queue": told}
    raise TypeError(
        f"the outbox can declare a kombu.Queue and a kombu.Exchange, not a {type(entity).__name__}"
    )


def _attributes(entity: Any) -> dict[str, Any]:
    """The attributes that kombu's entity is made of, without those that are another entity."""
    names = (
        ["routing_key", "arguments", "unbind_arguments"]
        if isinstance(entity, binding)
        else [name for name, _ in entity.attrs]
    )
    return {
        name: getattr(entity, name)
        for name in names
        if name not in ("exchange", "bindings") and getattr(entity, name, None) is not None
    }


def _entity(told: Mapping[str, Any]) -> Exchange | Queue:
    if "exchange" in told:
        return Exchange(**told["exchange"])
    queue = dict(told["queue"])
    exchange, bindings = queue.pop("exchange"), queue.pop("bindings")
    if bindings:
        queue["bindings"] = [
            binding(**{**one, "exchange": Exchange(**one["exchange"])}) for one in bindings
        ]
    return Queue(exchange=None if exchange is None else Exchange(**exchange), **queue)
