"""How RabbitMQ writes values into its messages."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

__all__ = ["erlang", "named", "shown"]


def named(kind: str, name: str, vhost: str) -> str:
    """Name a queue or an exchange."""
    return f"{kind} '{name}' in vhost '{vhost}'"


def erlang(value: Any) -> tuple[str, str]:
    """Return the type and the value of an argument, in Erlang's words."""
    if isinstance(value, bool):
        return "bool", str(value).lower()
    if isinstance(value, int):
        # As py-amqp encodes them.
        return ("signedint" if abs(value) <= 2147483647 else "long"), str(value)
    if isinstance(value, float):
        return "double", repr(value)
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        return "longstr", f'<<"{text}">>'
    if isinstance(value, Decimal):
        return "decimal", str(value)
    if isinstance(value, datetime):
        return "timestamp", str(int(value.timestamp()))
    if value is None:
        return "void", "undefined"
    return ("array" if isinstance(value, list) else "table"), str(value)


def shown(value: Any) -> str:
    """Return an argument as the message of an inequivalent one has it."""
    if value is None:
        return "none"
    kind, written = erlang(value)
    if kind == "longstr":
        written = written[3:-3]
    return f"the value '{written}' of type '{kind}'"
