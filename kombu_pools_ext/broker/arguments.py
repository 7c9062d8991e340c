"""The arguments of a publish, checked before anything is opened or sent.

What AMQP cannot encode is refused on every transport, as is a number that RabbitMQ ends the connection for: a test on
``memory://`` finds it. What depends on the broker is found once connected: how much a frame has room for, say.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps
from kombu import compression, serialization
from kombu.abstract import MaybeChannelBound
from kombu.entity import Exchange, Queue

from ..masking import LONGEST, describe, is_secret
from ..settings.problems import did_you_mean, nearest, suggestion

__all__ = ["CANNOT_BE_ENCODED", "check_retry_policy", "checked", "explain", "named"]

#: The parameters of :meth:`kombu.Producer.publish` after the body, in their order.
_PARAMETERS = (
    "routing_key",
    "delivery_mode",
    "mandatory",
    "immediate",
    "priority",
    "content_type",
    "content_encoding",
    "serializer",
    "headers",
    "compression",
    "exchange",
    "retry",
    "retry_policy",
    "declare",
    "expiration",
    "timeout",
    "confirm_timeout",
)
#: What kombu and py-amqp raise for an argument that AMQP cannot carry, before anything of the message was written.
CANNOT_BE_ENCODED = (
    *(TypeError, ValueError, AttributeError, LookupError, OverflowError),
    *(RecursionError, struct.error, FrameSyntaxError),
)

#: Bytes of a name, a routing key and most properties: AMQP counts them in one byte.
LONGEST_TEXT = 255
#: Characters of a text that fits, whatever they are.
_SHORT = LONGEST_TEXT // 4
#: Seconds that RabbitMQ lets a message live at most: ten years of 365 days.
LONGEST_EXPIRATION = 10 * 365 * 86400

#: What the publish functions take besides, which a misspelt keyword may mean.
_OWN = ("routing_key", "exchange", "using", "acquire_timeout")
#: What others call what is meant here.
_MEANT = {
    "queue": "routing_key",
    "queue_name": "routing_key",
    "key": "routing_key",
    "topic": "routing_key",
    "id": "message_id",
    "ttl": "expiration",
    "expires": "expiration",
    "persistent": "delivery_mode",
    "application_headers": "headers",
    "block": "acquire_timeout",
}
_RETRY_POLICY = (
    *("max_retries", "interval_start", "interval_step", "interval_max"),
    *("errback", "on_revive", "retry_errors"),
)

#: Types of header values that AMQP always has an encoding for.
_PLAIN = frozenset({str, bool, bytes, type(None)})
#: Headers by which RabbitMQ routes; it closes the channel for one that is no list.
_ROUTES = ("CC", "BCC")
#: AMQP's largest number.
_LARGEST = 1 << 63
#: Dicts and lists within each other, at most: py-amqp goes two calls deeper for each of them.
DEEPEST = 100

Check = Callable[[str, Any], Any]


def checked(
    routing_key: Any, exchange: Any, options: Mapping[str, Any], body: Any = None
) -> tuple[str, str | Exchange | None, dict[str, Any]]:
    """The arguments of a publish as they are meant; nothing is opened, and nothing of *options* is changed.

    A ``Queue`` as *routing_key* is its name, ``declare`` of one entity is a list of it, a ``Queue`` as ``reply_to`` is
    its name, a ``datetime`` with a time zone as ``timestamp`` is AMQP's seconds.

    :param routing_key: text, or ``None`` with an exchange.
    :param exchange: the name of an exchange, or an ``Exchange``; ``None`` is the default exchange.
    :param options: the further keywords: those of :meth:`kombu.Producer.publish`, AMQP's properties, and
        ``acquire_timeout``. ``mandatory=None`` is left out of what is returned.
    :param body: what is to be published; looked at only where a ``content_type`` says that it is serialized already,
        or ``serializer="raw"`` that it is not to be.
    :returns: routing key, exchange and options.
    :raises TypeError: for an unknown keyword, with the nearest known one, and for a value of a wrong type.
    :raises ValueError: if there is neither routing key nor exchange, and for a value that is too long, too large or not
        known. Where several arguments are wrong, one error has a line for each, a ``TypeError`` if one of them is.
    """
    if (
        type(routing_key) is str
        and 0 < len(routing_key) <= _SHORT
        and routing_key.isascii()
        and (
            exchange is None
            or (type(exchange) is str and len(exchange) <= _SHORT and exchange.isascii())
            or (type(exchange) is Exchange and _is_usual(exchange))
        )
    ):
        if not options:
            return routing_key, exchange, {}
        try:
            meant = {name: _CHECKS[name](name, value) for name, value in options.items()}
        except (KeyError, TypeError, ValueError):
            pass  # it is told below, with the others
        else:
            if meant.get("mandatory", False) is None:
                del meant["mandatory"]
            if not meant.get("content_type") and meant.get("serializer") != "raw":
                return routing_key, exchange, meant
    return _checked_all(routing_key, exchange, options, body)


def explain(error: Exception, body: Any, options: Mapping[str, Any]) -> None:
    """Say what AMQP cannot carry of *options*, the keywords of a :meth:`kombu.Producer.publish` that failed.

    kombu takes more than :func:`checked` does, so nothing is refused here that did not fail there. If none of it is the
    reason, it returns.

    :param error: what the publish failed with, one of :data:`CANNOT_BE_ENCODED`; the cause of what is raised.
    :raises TypeError, ValueError: with the names and values of the arguments.
    """
    problems: list[Exception] = []
    for name, value in options.items():
        if name in ("routing_key", "exchange"):
            if not isinstance(value, Exchange | bytes):
                _try(problems, _text, name, value)
        elif name in _ENCODED and not isinstance(value, bytes):
            _try(problems, _ENCODED[name], name, value)
    _check_body(problems, body, options)
    if problems:
        raise _joined(problems) from error


def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Give names in *kwargs* to arguments of ``publish``, where there are so many that ``retry`` may be among them."""
    if len(args) > len(_PARAMETERS):
        # kombu says what is wrong with it.
        return args
    for name, value in zip(_PARAMETERS, args, strict=False):
        if name in kwargs:
            raise TypeError(f"publish() got multiple values for argument {name!r}")
        kwargs[name] = value
    return ()


def _check_body(problems: list[Exception], body: Any, options: Mapping[str, Any]) -> None:
    if options.get("content_type"):
        _try(problems, _serialized, "body", body)
    elif options.get("serializer") == "raw":
        _try(problems, _raw, "body", body)


def _checked_all(
    routing_key: Any, exchange: Any, options: Mapping[str, Any], body: Any
) -> tuple[str, str | Exchange | None, dict[str, Any]]:
    problems: list[Exception] = []
    meant: dict[str, Any] = {}
    unknown = ""
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            unknown += _unknown(name)
            problems.append(TypeError(_unknown(name)))
        else:
            meant[name] = _try(problems, check, name, value)
    if meant.get("mandatory", False) is None:
        del meant["mandatory"]
    _check_body(problems, body, meant)
    exchange = _try(problems, _exchange, "exchange", exchange)
    name = exchange.name if isinstance(exchange, Exchange) else exchange
    if isinstance(routing_key, Queue) and isinstance(name, str) and name:
        problems.append(
            ValueError(
                f"routing_key is the queue {describe(routing_key.name)}, which the default exchange delivers to, and "
                f"there is the exchange {describe(name)} as well; leave the exchange out, or write as the routing_key "
                "what the queue is bound with"
            )
        )
    else:
        routing_key = _try(problems, _routing_key, "routing_key", routing_key)
    # Else the key is there, misspelt.
    if not routing_key and not name and "'routing_key'" not in unknown:
        problems.append(
            ValueError(
                "there is neither a routing_key nor an exchange, so that no queue could get the message; "
                "write routing_key='the name of a queue', or exchange='the name of an exchange'"
            )
        )
    if problems:
        raise _joined(problems)
    return routing_key or "", exchange if name else None, meant


def _try(problems: list[Exception], check: Callable[[Any, Any], Any], name: Any, value: Any) -> Any:
    try:
        return check(name, value)
    except (TypeError, ValueError) as error:
        # Without its traceback, that holds this list.
        problems.append(error.with_traceback(None))
        return value


def _joined(problems: Sequence[Exception]) -> TypeError | ValueError:
    kind = TypeError if any(isinstance(one, TypeError) for one in problems) else ValueError
    if len(problems) == 1:
        return kind(f"publish: {problems[0]}")
    lines = "\n".join(f"  {one}" for one in problems)
    return kind(f"publish: {len(problems)} arguments are wrong:\n{lines}")


def _unknown(name: str) -> str:
    near = _MEANT.get(name.lower())
    hint = suggestion(repr(near)) if near else did_you_mean(name.lower(), (*_OWN, *_CHECKS))
    hint = hint or f"what is your own goes into the headers, headers={{{name!r}: …}}, or the body"
    return f"unknown keyword {describe(name)}; {hint}"


def _shown(value: Any) -> str:
    """*value* for a message, shortened."""
    if isinstance(value, UUID | Decimal | date | timedelta):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return describe(value)


# -- one function for each kind of argument: what is meant by the value, or an error with the argument's name ----------


def _text(name: str, value: Any) -> str | None:
    if type(value) is str and len(value) <= _SHORT:
        return value
    if value is None:
        return None
    if not isinstance(value, str):
        hint = "decode it" if isinstance(value, bytes) else "write str(…) if that is meant"
        raise TypeError(f"{name} must be text, not {_shown(value)}; {hint}")
    # Of an enum or a safe string: the text alone.
    text = str.__str__(value)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > LONGEST_TEXT:
        raise ValueError(
            f"{name} has {size} bytes in UTF-8, and AMQP takes {LONGEST_TEXT} at most: {describe(text)}"
        )
    return text


def _utf8(name: str, value: Any) -> str | None:
    """:func:`_text` that is a name in the broker: Redis's client encodes no half of a surrogate pair."""
    text = _text(name, value)
    if text is not None and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} is {describe(text)}, which UTF-8 cannot encode ({error.reason}); decode what it comes from "
                "without errors='surrogateescape'"
            ) from error
    return text


def _routing_key(name: str, value: Any) -> str | None:
    if isinstance(value, Queue):
        if not value.name:
            raise ValueError(f"{name} is a queue without a name; declare it, and write its name")
        value = value.name
    elif isinstance(value, Exchange):
        raise TypeError(
            f"{name} is the exchange {describe(value.name)}; write exchange={describe(value.name)}"
        )
    return _utf8(name, value)


def _exchange(name: str, value: Any) -> str | Exchange | None:
    if isinstance(value, Exchange):
        _utf8(name, value.name)
        mode: Any = value.delivery_mode
        if mode is not None:
            _delivery_mode("the exchange's delivery_mode", mode)
        return value
    if isinstance(value, Queue):
        raise TypeError(
            f"exchange is the queue {describe(value.name)}; write routing_key={describe(value.name)} without an "
            "exchange, or the queue's own, exchange=queue.exchange"
        )
    if value is not None and not isinstance(value, str):
        raise TypeError(f"exchange must be text or a kombu.Exchange, not {_shown(value)}")
    return _utf8(name, value)


def _is_usual(exchange: Exchange) -> bool:
    name = exchange.name
    return (
        type(name) is str
        and 0 < len(name) <= _SHORT
        and name.isascii()
        and exchange.delivery_mode is None
    )


def _message_id(name: str, value: Any) -> str | None:
    if isinstance(value, str) and not value:
        raise ValueError(
            f"{name} is empty, so that a copy of the message could not be told by it; leave it out to have one given"
        )
    return _text(name, value)


def _reply_to(name: str, value: Any) -> str | None:
    if isinstance(value, Queue) and not value.name:
        raise ValueError(f"{name} is a queue without a name; declare it, and write its name")
    return _text(name, value.name if isinstance(value, Queue) else value)


def _flag(name: str, value: Any) -> bool | None:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {_shown(value)}")


def _priority(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number from 0 to 255, not {_shown(value)}")
    if not 0 <= value <= 255:
        raise ValueError(f"{name} must be a whole number from 0 to 255, not {describe(value)}")
    return int(value)


def _delivery_mode(name: str, value: Any) -> int | str | None:
    if value is None or value in ("persistent", "transient"):
        return value  # type: ignore[no-any-return]  # one of kombu's names
    expected = "1 or 'transient', 2 or 'persistent'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{name} must be {expected}, not {_shown(value)}")
    if value not in (1, 2):
        raise ValueError(f"{name} must be {expected}, not {describe(value)}")
    return int(value)


def _expiration(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Decimal) and not value.is_nan():
        _number(name, float(value))
    else:
        _number(name, value)
    if value > LONGEST_EXPIRATION:
        raise ValueError(
            f"{name} must be at most {LONGEST_EXPIRATION} seconds, which are ten years, the longest that RabbitMQ "
            f"takes, not {_shown(value)}"
        )
    return value


def _seconds(name: str, value: Any) -> Any:
    return None if value is None else _number(name, value)


def _confirm_timeout(name: str, value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value) and value > 0:
        raise ValueError(f"{name} must have an end: a broker that has fallen silent says nothing")
    return _seconds(name, value)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = "; write .total_seconds()" if isinstance(value, timedelta) else ""
        raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}{hint}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 seconds or more, not {_shown(value)}")
    return value


def _timestamp(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = math.floor(value.timestamp())
    if isinstance(value, bool) or not isinstance(value, int):
        hint = "give it a time zone" if isinstance(value, datetime) else "write int(…)"
        raise TypeError(
            f"{name} must be a whole number of seconds since 1970, or a datetime with a time zone, not "
            f"{_shown(value)}; {hint}"
        )
    if not 0 <= value < 2 * _LARGEST:
        raise ValueError(f"{name} must be 0 seconds or more, in 64 bits, not {describe(value)}")
    return int(value)


def _headers(name: str, value: Any) -> dict[Any, Any] | None:
    headers = _table(name, value, str)
    if not headers:
        return headers
    for key in _ROUTES:
        if key in headers and not isinstance(headers[key], list | tuple):
            raise TypeError(
                f"{name}[{key!r}] must be a list of routing keys, to which RabbitMQ sends copies, not "
                f"{_shown(headers[key])}"
            )
    return headers


def _kombus_headers(name: str, value: Any) -> dict[Any, Any] | None:
    # A key of bytes is as good as text to py-amqp.
    return _table(name, value, (str, bytes))


def _table(name: str, value: Any, keys: Any) -> dict[Any, Any] | None:
    if value is None:
        return None
    if type(value) is not dict and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, not {_shown(value)}")
    headers = value if isinstance(value, dict) else dict(value)
    try:
        if _is_plain(headers):
            return headers
        problems = list(_wrong_in_table(name, headers, keys, DEEPEST))
    except RecursionError:
        raise ValueError(
            f"{name} are nested too deeply, or hold themselves; at most {DEEPEST} dicts and lists "
            "may be within each other"
        ) from None
    if problems:
        kind = TypeError if any(isinstance(one, TypeError) for one in problems) else ValueError
        raise kind("; ".join(map(str, problems)))
    return headers


def _is_plain(value: Any, room: int = DEEPEST) -> bool:
    """Whether *value* holds nothing that needs a closer look; without a path to it, which takes longer to tell."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        return bool(-_LARGEST <= value < _LARGEST)
    if kind is float:
        return math.isfinite(value)
    if not room:
        return False
    if isinstance(value, dict):
        for key, one in value.items():
            if type(key) is not str or len(key) > _SHORT:
                return False
            if type(one) not in _PLAIN and not _is_plain(one, room - 1):
                return False
        return True
    return isinstance(value, list | tuple) and all(
        type(one) in _PLAIN or _is_plain(one, room - 1) for one in value
    )


def _wrong_in_table(path: str, table: dict[Any, Any], keys: Any, room: int) -> Iterator[Exception]:
    if not room:
        raise RecursionError
    for key, one in table.items():
        if not isinstance(key, keys):
            yield TypeError(f"{path} has the key {_shown(key)}, and AMQP takes text alone")
            continue
        raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        if len(raw) > LONGEST_TEXT:
            yield ValueError(
                f"{path} has a key of {len(raw)} bytes in UTF-8, and AMQP takes {LONGEST_TEXT} at most: "
                f"{describe(key)}"
            )
            continue
        secret = is_secret(key if isinstance(key, str) else repr(key))
        yield from _wrong_in_value(f"{path}[{describe(key)}]", one, secret, keys, room - 1)


def _wrong_in_value(
    path: str, value: Any, secret: bool, keys: Any, room: int
) -> Iterator[Exception]:
    if isinstance(value, dict):
        yield from _wrong_in_table(path, value, keys, room)
    elif isinstance(value, list | tuple):
        if not room:
            raise RecursionError
        for number, one in enumerate(value):
            yield from _wrong_in_value(f"{path}[{number}]", one, secret, keys, room - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            # RabbitMQ ends the connection for it, with the messages that come after it.
            yield ValueError(
                f"{path} is {_shown(value)}, and RabbitMQ takes finite numbers alone; write str(…) if that is meant"
            )
    elif type(value) not in _PLAIN:
        try:
            dumps("F", ({"": value},))
        except Exception as error:
            known = isinstance(value, int | Decimal | datetime)
            kind = type(value).__name__
            shown = f"a value of type {kind}" if secret else _shown(value)
            why = "which is out of AMQP's range" if known else "which AMQP cannot encode"
            hint = "" if known else "; write str(…) if that is meant"
            wrong = f"{path} is {shown}, {why}{hint}"
            problem = ValueError(wrong) if known else TypeError(wrong)
            problem.__cause__ = error
            yield problem


def _declare(name: str, value: Any) -> list[Any] | None:
    if value is None:
        return None
    if isinstance(value, MaybeChannelBound):
        return [value]
    if type(value) is not list and (
        isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    ):
        raise TypeError(
            f"{name} must be a list of kombu.Queue and kombu.Exchange, not {_shown(value)}"
        )
    entities = list(value)
    for number, one in enumerate(entities):
        if not isinstance(one, MaybeChannelBound):
            raise TypeError(
                f"{name}[{number}] must be a kombu.Queue or a kombu.Exchange, not {_shown(one)}"
            )
    return entities


def _serializer(name: str, value: Any) -> str | None:
    # kombu takes "raw" too, which is in no registry.
    names = serialization.registry.name_to_type
    if value is None or (type(value) is str and (value in names or value == "raw")):
        return value
    return _known(name, value, [*names, "raw"])


def _compression(name: str, value: Any) -> str | None:
    if value is None:
        return None
    # kombu's way to say "none", whatever the alias says.
    if value is False or value == "":
        return ""
    return _known(name, value, [*compression._aliases, *compression.encoders()])


def _known(name: str, value: Any, known: list[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name of one that kombu knows, not {_shown(value)}")
    if value not in known:
        hint = nearest(value, sorted(known))
        raise ValueError(f"{name} {describe(value)} is not one that kombu knows; {hint}")
    return str.__str__(value)


def _retry_policy(name: str, value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    check_retry_policy(name, value)
    for one in value:
        if one not in _RETRY_POLICY:
            raise TypeError(
                f"{name}[{describe(one)}] is no part of it; {nearest(one, _RETRY_POLICY)}"
            )
    most = value.get("max_retries")
    if isinstance(most, float):
        raise TypeError(f"{name}['max_retries'] must be a whole number or None, not {most}")
    return value  # type: ignore[no-any-return]  # looked at above


def check_retry_policy(name: str, policy: Any) -> None:
    """Whether *policy* can be kombu's ``retry_policy``, which takes parts that it does not know, and any number.

    :param name: what it is called in the error.
    :raises TypeError, ValueError: for the first that cannot, with its name.
    """
    if not isinstance(policy, Mapping):
        raise TypeError(f"{name} must be a dict, not {_shown(policy)}")
    for part, value in policy.items():
        if value is None or part not in _RETRY_POLICY:
            continue
        path = f"{name}[{part!r}]"
        if part in ("errback", "on_revive"):
            if not callable(value):
                raise TypeError(f"{path} must be a function, not {_shown(value)}")
        elif part == "retry_errors":
            classes = value if isinstance(value, tuple | list) else (value,)
            for one in classes:
                if not (isinstance(one, type) and issubclass(one, BaseException)):
                    raise TypeError(
                        f"{path} must be a list of exception classes, or one, and has {_shown(one)}"
                    )
        elif part == "max_retries":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{path} must be a whole number or None, not {_shown(value)}")
            if not value >= 0:
                raise ValueError(f"{path} must be 0 or more, or None, not {describe(value)}")
        else:
            _number(path, value)


def _serialized(name: str, value: Any) -> None:
    if not isinstance(value, str | bytes | bytearray):
        raise TypeError(
            f"{name} must be text or bytes where a content_type says what it is, not {_shown(value)}; leave the "
            "content_type out to have it serialized"
        )


def _raw(name: str, value: Any) -> None:
    if not isinstance(value, str | bytes | bytearray):
        raise TypeError(
            f"{name} must be text or bytes where the serializer is 'raw', not {_shown(value)}; write another "
            "serializer, 'json' say"
        )


def _as_it_is(name: str, value: Any) -> Any:
    return value


#: What is encoded for AMQP, each by its own rule.
_ENCODED: Mapping[str, Check] = {
    **dict.fromkeys(
        (
            *("message_id", "correlation_id", "type", "user_id", "app_id", "cluster_id"),
            *("content_type", "content_encoding"),
        ),
        _text,
    ),
    "reply_to": _reply_to,
    "headers": _kombus_headers,
    "delivery_mode": _delivery_mode,
    "priority": _priority,
    "expiration": _expiration,
    "timestamp": _timestamp,
}

#: All known keywords.
_CHECKS: Mapping[str, Check] = {
    **_ENCODED,
    "headers": _headers,
    "message_id": _message_id,
    "mandatory": _flag,
    "immediate": _flag,
    "retry": _flag,
    "retry_policy": _retry_policy,
    "serializer": _serializer,
    "compression": _compression,
    "declare": _declare,
    "timeout": _seconds,
    "confirm_timeout": _confirm_timeout,
    "acquire_timeout": _seconds,
    # Amazon's and PGMQ's, which kombu's transports look for among the properties.
    **dict.fromkeys(
        (
            *("message_attributes", "MessageGroupId", "MessageDeduplicationId"),
            *("DelaySeconds", "delay_seconds"),
        ),
        _as_it_is,
    ),
}
