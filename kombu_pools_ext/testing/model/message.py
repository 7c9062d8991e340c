"""A message, as it was published: its bytes, and its properties, which are decoded when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Message"]


class Message:
    """One message. It does not change: what a dead letter has besides is a message of its own.

    :param body: the bytes of the body.
    :param encoded: the properties as they came, their flags first.
    :param decode: makes a dict of that.
    """

    __slots__ = ("_decode", "_properties", "body", "encoded", "exchange", "routing_key")

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        encoded: bytes,
        decode: Callable[[bytes], dict[str, Any]],
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = body
        self.encoded = encoded
        self._decode = decode
        self._properties: dict[str, Any] | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """The properties by name; the headers are ``application_headers``. Nobody changes it."""
        if self._properties is None:
            self._properties = self._decode(self.encoded)
        return self._properties

    @property
    def headers(self) -> dict[str, Any]:
        """The headers."""
        return self.properties.get("application_headers") or {}

    def has(self, flags: int) -> bool:
        """Whether it has one of the properties that *flags*, AMQP's bits for them, stand for."""
        return bool((self.encoded[0] << 8 | self.encoded[1]) & flags)
