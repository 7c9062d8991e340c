"""``kombu.Producer._prepare`` with an encoder of JSON that is made once, not for each message."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import kombu.messaging
from kombu import serialization
from kombu.exceptions import EncodeError
from kombu.serialization import registry
from kombu.utils import json as kombus_json

__all__ = ["problems", "serialized"]

_dumps = kombus_json.dumps
_encode = kombus_json.JSONEncoder().encode
_registry_dumps = kombu.messaging.dumps
_known = False


def problems() -> Iterator[str]:
    """Why kombu may encode JSON otherwise."""
    global _known
    _known = False
    parameters = inspect.signature(_dumps).parameters
    if (
        tuple(parameters) != ("s", "_dumps", "cls", "default_kwargs", "kwargs")
        or parameters["_dumps"].default is not json.dumps
        or parameters["cls"].default is not kombus_json.JSONEncoder
        or parameters["default_kwargs"].default is not None
    ):
        yield "kombu.utils.json.dumps has other parameters"
    elif not callable(getattr(serialization, "_reraise_errors", None)):
        yield "kombu.serialization._reraise_errors is not there"
    else:
        _known = True


def serialized(
    producer: Any,
    body: Any,
    serializer: str | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: dict[str, Any],
) -> tuple[Any, Any, Any]:
    """What kombu's ``_prepare`` returns for a message without compression: body, content type and encoding.

    :raises EncodeError: if *body* cannot be encoded.
    """
    if not content_type and _known and kombu.messaging.dumps is _registry_dumps:
        name = serializer or producer.serializer
        kind = encoding = encode = None
        if name:
            codec = registry._encoders.get(name)
            if codec is not None:
                kind, encoding, encode = codec
        elif not isinstance(body, str | bytes):
            encode = registry._default_encode
            kind, encoding = registry._default_content_type, registry._default_content_encoding
        if encode is _dumps:
            try:
                return _encode(body), kind, encoding
            except Exception:
                with serialization._reraise_errors(EncodeError):
                    raise
    prepared: tuple[Any, Any, Any] = producer._prepare(
        body, serializer, content_type, content_encoding, None, headers
    )
    return prepared
