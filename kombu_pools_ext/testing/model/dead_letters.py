"""What a dead letter has that the message did not have: where it died, and of what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .message import Message
from .queue import Queue

__all__ = ["Letter", "dead_letter", "is_in_circle"]

#: Makes a message of exchange, routing key, body and properties.
Letter = Callable[[str, str, bytes, dict[str, Any]], Message]


def dead_letter(
    queue: Queue, message: Message, reason: str, exchange: str, now: float, make: Letter
) -> Message:
    """Return *message*, which *queue* gives up, as it goes to *exchange*.

    :param now: seconds since 1970.
    """
    properties = dict(message.properties)
    headers = dict(message.headers)
    deaths = [dict(one) for one in headers.get("x-death") or [] if isinstance(one, dict)]
    again = next(
        (one for one in deaths if one.get("queue") == queue.name and one.get("reason") == reason),
        None,
    )
    if again is not None:
        deaths.remove(again)
        again["count"] = again.get("count", 1) + 1
    else:
        again = {
            "count": 1,
            "exchange": message.exchange,
            "queue": queue.name,
            "reason": reason,
            "routing-keys": [message.routing_key],
            "time": datetime.fromtimestamp(int(now), UTC),
        }
        if reason == "expired" and "expiration" in properties:
            again["original-expiration"] = properties["expiration"]
    headers["x-death"] = [again, *deaths]
    headers.setdefault("x-first-death-exchange", message.exchange)
    headers.setdefault("x-first-death-queue", queue.name)
    headers.setdefault("x-first-death-reason", reason)
    if reason == "expired":
        properties.pop("expiration", None)
    properties["application_headers"] = headers
    key = queue.arguments.get("x-dead-letter-routing-key", message.routing_key)
    return make(exchange, key, message.body, properties)


def is_in_circle(message: Message, queue: str) -> bool:
    """Whether *message* was in *queue* before, and nobody has rejected it since."""
    for death in message.headers.get("x-death") or []:
        if death.get("reason") == "rejected":
            return False
        if death.get("queue") == queue:
            return True
    return False
