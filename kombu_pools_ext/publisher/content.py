"""The body of a message, serialized, and its properties."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Content"]


class Content(NamedTuple):
    """What is the same in each try of a message, on whatever channel."""

    #: The body.
    octets: bytes
    content_type: str | None
    content_encoding: str | None
    priority: int
    delivery_mode: int
    headers: dict[str, Any]
    #: The other properties, as AMQP has them.
    properties: dict[str, Any]
