"""The keywords of the publish functions, for type checkers: a misspelt one is an error there too."""

# Without annotations from __future__: a TypedDict compiles each that is text, half a millisecond of every import.
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict

from kombu.abstract import MaybeChannelBound
from kombu.entity import Queue

__all__ = ["MessageKeywords", "PublishKeywords"]


class MessageKeywords(TypedDict, total=False):
    """Keywords of :meth:`kombu.Producer.publish`, and the properties of a message.

    :func:`.arguments.checked` takes the same ones, and says what each value may be.
    """

    # How it is published.
    declare: MaybeChannelBound | Iterable[MaybeChannelBound] | None
    mandatory: bool | None
    immediate: bool | None
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    timeout: float | None
    confirm_timeout: float | None
    # How the body is written.
    serializer: str | None
    compression: str | Literal[False] | None
    content_type: str | None
    content_encoding: str | None
    # AMQP's properties.
    headers: Mapping[str, Any] | None
    delivery_mode: int | str | None
    priority: int | None
    expiration: float | Decimal | None
    timestamp: int | datetime | None
    message_id: str | None
    correlation_id: str | None
    reply_to: str | Queue | None
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None
    # What kombu's transports for Amazon SQS and PGMQ look for.
    message_attributes: Any
    MessageGroupId: Any
    MessageDeduplicationId: Any
    DelaySeconds: Any
    delay_seconds: Any


class PublishKeywords(MessageKeywords, total=False):
    """The same, and ``acquire_timeout``: for a function that passes its keywords on to ``Pools.publish``."""

    acquire_timeout: float | None
