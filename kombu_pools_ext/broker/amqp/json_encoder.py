"""``kombu.Producer._prepare`` with an encoder of JSON that is made once, not for each message."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kombu.messaging
from kombu import serialization
from kombu.exceptions import EncodeError
from kombu.serialization import registry
from kombu.utils import json as kombus_json

from ..own_errors import passed_through, raised_by_library

__all__ = ["octets_of", "problems", "serialized"]

_dumps = kombus_json.dumps
_encoder = kombus_json.JSONEncoder()
_registry_dumps = kombu.messaging.dumps
_known = False
# Not str | bytes, which Python makes anew each time.
_TEXTS = str, bytes
_TRIAL = {"a": [1, 1.5, None, True, {"é": "\\ \x7f"}], "b": {}, "c": [], 1: uuid.UUID(int=1)}


def _make_chunks() -> Callable[[Any, int], Iterable[str]] | None:
    """What ``JSONEncoder.encode`` makes for each message, but for its look-out for circles; ``None`` without C.

    One that looks out cannot be shared: it writes down what it is at, and two threads may be at the same.
    """
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # pragma: no cover - Pythons without json's part in C
        return None
    chunks: Callable[[Any, int], Iterable[str]] = make(
        *(None, _encoder.default, json.encoder.encode_basestring_ascii, None),
        *(_encoder.key_separator, _encoder.item_separator),
        *(_encoder.sort_keys, _encoder.skipkeys, _encoder.allow_nan),
    )
    return chunks


_chunks = _make_chunks()


def _encode(body: Any) -> str:
    if _chunks is not None:
        try:
            return "".join(_chunks(body, 0))
        except RecursionError:
            pass  # a circle, which has an error of its own
    encoded: str = _encoder.encode(body)
    return encoded


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
    elif _encode(_TRIAL) != _dumps(_TRIAL):
        yield "kombu.utils.json.dumps encodes otherwise"
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
        elif not isinstance(body, _TEXTS):
            encode = registry._default_encode
            kind, encoding = registry._default_content_type, registry._default_content_encoding
        if encode is _dumps:
            try:
                return _encode(body), kind, encoding
            except Exception as error:
                # Its encoder calls the body's own methods by way of kombu: what comes straight is a signal handler's.
                if not raised_by_library(error, ("json",)) and not passed_through(error, "kombu"):
                    raise
                with serialization._reraise_errors(EncodeError):
                    raise
    prepared: tuple[Any, Any, Any] = producer._prepare(
        body, serializer, content_type, content_encoding, None, headers
    )
    return prepared


def octets_of(content: Any, encoding: Any) -> bytes | None:
    """As py-amqp encodes it; ``None`` if it has to say what is wrong."""
    if type(content) is bytes:
        return content
    if type(content) is str and type(encoding) is str:
        try:
            return content.encode(encoding)
        except (LookupError, ValueError):
            return None
    return None
