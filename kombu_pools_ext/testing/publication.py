"""One message that was published: what it was, where it went, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kombu.compression import decompress
from kombu.serialization import loads

from .model.message import Message

__all__ = ["REFUSED", "Publication", "Task", "publication_of"]

#: The outcome of a message for which the broker has closed the channel or the connection.
REFUSED = "REFUSED"


@dataclass(frozen=True)
class Task:
    """The task of a Celery message."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    id: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One message that came to a broker in memory."""

    #: The bytes of the body that were sent.
    raw: bytes
    exchange: str
    routing_key: str
    headers: dict[str, Any]
    #: The other properties by their names, such as ``message_id``, ``priority``, ``delivery_mode`` and ``expiration``.
    properties: dict[str, Any]
    #: The alias that it was published over: the name of the broker.
    alias: str
    #: Whether it was to come back if no queue takes it.
    mandatory: bool
    #: The names of the queues that it was routed to.
    queues: tuple[str, ...]
    #: ``ACKED``, ``NACKED``, ``RETURNED``, or ``UNKNOWN``, as :class:`kombu_pools_ext.errors.Outcome` has them; or
    #: ``REFUSED`` if the broker has closed the channel or the connection for it. What is published without confirms has
    #: the outcome that it would have had with them.
    outcome: str
    #: What the broker said when it refused the message; else empty.
    reason: str = ""
    #: Whether it has waited for a commit of Django's.
    on_commit: bool = False

    @cached_property
    def body(self) -> Any:
        """The body as a consumer gets it: decompressed and deserialized. It is :attr:`raw` if that fails."""
        # Not before somebody asks: it takes time, and a serializer may be the application's own.
        try:
            return _decoded(self.raw, self.headers, self.properties)
        except Exception:
            # A publisher of its own may say what is not so. Whoever asserts on it sees the bytes.
            return self.raw

    @property
    def message_id(self) -> str | None:
        """What a consumer knows a copy by."""
        return self.properties.get("message_id")

    @property
    def task(self) -> Task | None:
        """The task, if it is a message of Celery's."""
        name, body = self.headers.get("task"), self.body
        if not isinstance(name, str) or not isinstance(body, list | tuple) or len(body) != 3:
            return None
        args, kwargs, _ = body
        return Task(name, list(args), dict(kwargs), str(self.headers.get("id")))


def publication_of(sent: Message, **rest: Any) -> Publication:
    """Return what is known of *sent*; *rest* are the fields that it does not tell itself."""
    properties = dict(sent.properties)
    headers = properties.pop("application_headers", None) or {}
    return Publication(
        raw=sent.body,
        exchange=sent.exchange,
        routing_key=sent.routing_key,
        headers=headers,
        properties=properties,
        **rest,
    )


def _decoded(body: Any, headers: dict[str, Any], properties: dict[str, Any]) -> Any:
    compression, content_type = headers.get("compression"), properties.get("content_type")
    if compression:
        body = decompress(body, compression)
    if content_type is None:
        return body
    # Everything is accepted: it was made in this process.
    return loads(body, content_type, properties.get("content_encoding"), accept=None, force=True)
