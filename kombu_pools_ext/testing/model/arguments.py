"""The arguments of queues and exchanges: which are known, which values they may have, which have to stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .refusals import Refusal, not_modelled
from .words import erlang, named, shown

__all__ = ["check_exchange", "check_queue", "same_arguments", "same_field"]

#: The longest time in milliseconds: Erlang's timers count in 32 bits.
_LONGEST = (1 << 32) - 1


def _whole(value: Any) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return f'"expected integer, got {erlang(value)[0]}"'
    return None


def _from_zero(value: Any) -> str | None:
    return _whole(value) or (f"{{value_negative,{value}}}" if value < 0 else None)


def _time(value: Any) -> str | None:
    wrong = _whole(value)
    if wrong is None and value > _LONGEST:
        wrong = f"{{value_too_big,{value}}}"
    return wrong or _from_zero(value)


def _time_from_one(value: Any) -> str | None:
    return _time(value) or ("{value_zero,0}" if value == 0 else None)


def _priority(value: Any) -> str | None:
    wrong = _from_zero(value)
    if wrong is None and value > 255:
        wrong = f"{{max_value_exceeded,{value}}}"
    return wrong


def _text(value: Any) -> str | None:
    if not isinstance(value, str | bytes):
        return f"{{unacceptable_type,{erlang(value)[0]}}}"
    return None


def _one_of(tag: str, *known: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        wrong = _text(value)
        if wrong is None and value not in known:
            wrong = tag
        return wrong

    return check


_LETTERS, _LETTERS_KEY = "x-dead-letter-exchange", "x-dead-letter-routing-key"
#: In the order in which RabbitMQ looks at them.
_QUEUES: dict[str, Callable[[Any], str | None]] = {
    "x-expires": _time_from_one,
    "x-message-ttl": _time,
    _LETTERS: _text,
    _LETTERS_KEY: _text,
    "x-max-length": _from_zero,
    "x-max-length-bytes": _from_zero,
    "x-max-priority": _priority,
    "x-overflow": _one_of("invalid_overflow", "drop-head", "reject-publish", "reject-publish-dlx"),
    "x-queue-mode": _one_of("invalid_queue_mode", "default", "lazy"),
    "x-queue-type": _text,
}


def check_queue(name: str, vhost: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no queue can have.

    :raises Refusal: 406.
    :raises NotImplementedError: if one is not modelled.
    """
    for key in arguments:
        if key.startswith("x-") and key not in _QUEUES:
            raise not_modelled(f"the queue argument {key!r}")
    for key, check in _QUEUES.items():
        if key in arguments:
            wrong = check(arguments[key])
            if wrong is None and key == _LETTERS_KEY and _LETTERS not in arguments:
                wrong = "routing_key_but_no_dlx_defined"
            if wrong is not None:
                raise _invalid(key, name, vhost, wrong)
    if arguments.get("x-queue-type", "classic") != "classic":
        raise not_modelled(f"queues of type {arguments['x-queue-type']!r}")


def _invalid(key: str, name: str, vhost: str, wrong: str) -> Refusal:
    return Refusal(406, f"invalid arg '{key}' for {named('queue', name, vhost)}: {wrong}")


def check_exchange(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no exchange can have.

    :raises NotImplementedError: if one is not modelled.
    """
    for key in arguments:
        if key.startswith("x-"):
            raise not_modelled(f"the exchange argument {key!r}")
    alternate = arguments.get("alternate-exchange")
    if alternate is not None and not isinstance(alternate, str):
        raise Refusal(
            406,
            f"invalid arg 'alternate-exchange' for exchange '{name}': "
            f"{{unacceptable_type,{erlang(alternate)[0]}}}",
        )


def same_field(what: str, field: str, received: Any, current: Any) -> None:
    """Refuse a second declaration that differs.

    :param what: names the queue or the exchange.
    :raises Refusal: 406.
    """
    if received != current:
        raise Refusal(
            406,
            f"inequivalent arg '{field}' for {what}: received '{_plain(received)}' but current is '{_plain(current)}'",
        )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def same_arguments(
    what: str, received: Mapping[str, Any], current: Mapping[str, Any], keys: tuple[str, ...] | None
) -> None:
    """Refuse a second declaration whose arguments differ.

    :param keys: those that count; ``None`` are all that a queue can have.
    :raises Refusal: 406.
    """
    for key in _QUEUES if keys is None else keys:
        new, old = received.get(key), current.get(key)
        if key == "x-queue-type":
            new, old = new or "classic", old or "classic"
        if new is not None and old is not None:
            same_field(what, key, new, old)
        elif new is not old:
            raise Refusal(
                406,
                f"inequivalent arg '{key}' for {what}: received {shown(new)} but current is {shown(old)}",
            )
