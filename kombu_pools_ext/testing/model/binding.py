"""A binding: what leads from an exchange to a queue, or to another exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .refusals import Refusal, not_modelled
from .words import erlang

__all__ = ["Binding", "check_headers_binding", "headers_match"]

QUEUE, EXCHANGE = "queue", "exchange"


@dataclass(frozen=True, eq=False)
class Binding:
    """One binding.

    :param kind: ``"queue"`` or ``"exchange"``: what *destination* names.
    """

    kind: str
    destination: str
    key: str
    arguments: Mapping[str, Any]

    def is_same(self, kind: str, destination: str, key: str, arguments: Mapping[str, Any]) -> bool:
        """Whether a bind or an unbind means this one."""
        mine = (self.kind, self.destination, self.key, dict(self.arguments))
        return mine == (kind, destination, key, dict(arguments))


def check_headers_binding(arguments: Mapping[str, Any]) -> None:
    """Refuse what a headers exchange cannot be bound with.

    :raises Refusal: 406.
    """
    how = arguments.get("x-match", "all")
    if not isinstance(how, str):
        raise Refusal(
            406,
            f"Invalid x-match field type {erlang(how)[0]} (value {erlang(how)[1]}); expected longstr",
        )
    if how in ("all-with-x", "any-with-x"):
        raise not_modelled(f"bindings of a headers exchange with x-match {how!r}")
    if how not in ("all", "any"):
        raise Refusal(
            406,
            f'Invalid x-match field value <<"{how}">>; expected all, any, all-with-x, or any-with-x',
        )


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether a headers exchange takes a message with *headers* along a binding with *arguments*."""
    found = [
        name in headers and _equal(value, headers[name])
        for name, value in arguments.items()
        if not name.startswith("x-")
    ]
    return any(found) if arguments.get("x-match") == "any" else all(found)


def _equal(wanted: Any, value: Any) -> bool:
    # A binding without a value asks for the header alone.
    return wanted is None or (_class(wanted) is _class(value) and bool(wanted == value))


def _class(value: Any) -> type[Any]:
    for kind in (bool, int, float, Decimal, str, bytes):
        if isinstance(value, kind):
            return str if kind is bytes else kind
    return type(value)
