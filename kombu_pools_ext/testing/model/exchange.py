"""An exchange: which of its bindings take a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import topic
from .binding import Binding, headers_match
from .message import Message

__all__ = ["TYPES", "Exchange"]

TYPES = ("direct", "fanout", "headers", "topic")


class Exchange:
    """One exchange, with what is bound to it.

    :param provisional: whether it is there because a message was published to it, and nobody has declared it.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
        provisional: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = dict(arguments or {})
        self.provisional = provisional
        self.bindings: list[Binding] = []

    @property
    def alternate(self) -> str | None:
        """The name of the exchange that gets what no binding takes."""
        return self.arguments.get("alternate-exchange")

    def matching(self, message: Message, routing_key: str) -> Iterable[Binding]:
        """Return the bindings that take *message*."""
        if self.kind == "direct":
            return [one for one in self.bindings if one.key == routing_key]
        if self.kind == "topic":
            return [one for one in self.bindings if topic.matches(one.key, routing_key)]
        if self.kind == "headers":
            headers = message.headers
            return [one for one in self.bindings if headers_match(one.arguments, headers)]
        return self.bindings
