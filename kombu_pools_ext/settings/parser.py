"""Check the values of the settings. Each check takes a value, reports what is wrong, and returns the value to use."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Final

import kombu.pools
from kombu import compression, serialization

from ..masking import describe, split_urls
from .credentials import credential_problems, credentials
from .nested import DEEPEST, copy_options, is_deeper
from .parts import PART_CHECKS, PARTS, urls_from
from .problems import (
    Problem,
    Report,
    SettingsError,
    collect,
    did_you_mean,
    nearest,
    refuse,
    text_hint,
)
from .tls import tls_problems
from .url_checks import EXAMPLE, url_problems
from .urls import family_of, implementation_of, transport_of

__all__ = [
    "AUTO",
    "CHECKS",
    "DEFAULT_EXCHANGE",
    "LEASED",
    "SHARED",
    "RetryPolicy",
    "UseGlobalLimit",
    "check_values",
    "has_confirms",
    "read_keys",
    "use_global_limit",
]

#: The longest wait in seconds that Python's locks accept.
LONGEST = threading.TIMEOUT_MAX

#: The longest interval in seconds that fits into the 16 bits of AMQP's ``tune`` method.
LONGEST_HEARTBEAT = 65535

#: The value of ``MANDATORY`` that concerns only messages to the default exchange.
DEFAULT_EXCHANGE: Final = "default_exchange"

#: The values of ``PUBLISH_OVER``.
AUTO: Final = "auto"
SHARED: Final = "shared"
LEASED: Final = "leased"


class UseGlobalLimit(Enum):
    """The type of :data:`use_global_limit`."""

    USE_GLOBAL_LIMIT = "use_global_limit"

    def __repr__(self) -> str:
        return self.value


#: The value of ``LIMIT`` that stands for the global limit, which :func:`kombu_pools_ext.pools.set_limit` sets.
use_global_limit: Final = UseGlobalLimit.USE_GLOBAL_LIMIT

Check = Callable[[Any, Report], Any]


def _whole(expected: str, none: bool = False) -> Check:
    """Return a check for whole numbers from 0; it accepts ``None`` as well if *none*."""

    def check(value: Any, report: Report) -> int | None:
        if none and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            refuse(report, value, expected)
            return None
        return int(value)

    return check


def _seconds(expected: str, zero: bool = False, none: bool = False) -> Check:
    """Return a check for seconds above 0; it accepts 0 as well if *zero*, and ``None`` if *none*."""

    def check(value: Any, report: Report) -> float | None:
        if none and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(report, value, expected)
        elif value == math.inf and none:
            refuse(report, value, expected, "write None")
        elif not value >= 0 or (value == 0 and not zero):
            refuse(report, value, expected)
        elif value > LONGEST:
            refuse(
                report, value, f"at most {LONGEST:.0f} seconds, the longest wait of Python's locks"
            )
        else:
            return float(value)
        return None

    return check


def _limit(value: Any, report: Report) -> int | UseGlobalLimit | None:
    if value is use_global_limit or value is kombu.pools.use_global_limit:
        return use_global_limit
    checked: int | None = _whole("a whole number above 0, or None (unlimited)", none=True)(
        value, report
    )
    return checked or None


def _heartbeat(value: Any, report: Report) -> float:
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    # AMQP has no fractions of seconds: py-amqp would round the number for the broker, but not its own.
    if not valid or not 0 <= value <= LONGEST_HEARTBEAT or value != int(value):
        refuse(report, value, f"a whole number of seconds up to {LONGEST_HEARTBEAT}, or 0 (off)")
        return 0.0
    return float(value)


def _flag(value: Any, report: Report) -> bool:
    if not isinstance(value, bool):
        refuse(report, value, "True or False")
    return value is True


def _mandatory(value: Any, report: Report) -> bool | str:
    if not isinstance(value, bool) and value != DEFAULT_EXCHANGE:
        expected = f"True, False or {DEFAULT_EXCHANGE!r}"
        hint = text_hint(value, expected) or did_you_mean(value, [DEFAULT_EXCHANGE])
        refuse(report, value, expected, hint)
    return value  # type: ignore[no-any-return]  # one of these, or not used


def _publish_over(value: Any, report: Report) -> str:
    known = [AUTO, SHARED, LEASED]
    if value not in known:
        expected = f"{AUTO!r}, {SHARED!r} or {LEASED!r}"
        refuse(report, value, expected, did_you_mean(value, known))
    return value  # type: ignore[no-any-return]  # one of these, or not used


def _in_flight(value: Any, report: Report) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(report, value, "a whole number from 1")
        return 1
    return int(value)


def _url(value: Any, report: Report) -> tuple[str, ...]:
    expected = "a broker URL, or a list of them"
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        refuse(report, value, expected)
        return ()
    if not given:
        report("the list of URLs is empty", "give at least one")
    urls: list[str] = []
    for one in given:
        if isinstance(one, str):
            urls += split_urls(one)
        else:
            refuse(report, one, f"{expected}, each a str")
    sound = True
    for number, url in enumerate(urls, 1):
        place = f"URL {number} of {len(urls)}: " if len(urls) > 1 else ""
        for message, hint in url_problems(url):
            sound = False
            report(place + message, hint)
    if sound and len(urls) > 1:
        _failover(urls, report)
    return tuple(urls)


def _failover(urls: list[str], report: Report) -> None:
    transports = list(dict.fromkeys(map(transport_of, urls)))
    if len({family_of(transport) for transport in transports}) > 1:
        report(
            f"a failover list cannot mix the transports {', '.join(map(repr, transports))}",
            "give each broker an alias of its own",
        )
    elif any("+" in url.partition("://")[0] for url in urls):
        report("a URL with '+' in its transport cannot be in a failover list", "give only one")


def _ssl(value: Any, report: Report) -> bool | dict[str, Any]:
    if isinstance(value, bool):
        return value
    return _options(value, report, "True, False or a dict of the transport's TLS options")


def _transport_options(value: Any, report: Report) -> dict[str, Any]:
    return _options(value, report, "a dict")


def _options(value: Any, report: Report, expected: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        # Only its type is shown, because the value may be a secret.
        kind = type(value).__name__
        report(f"expected {expected}, got a value of type {kind}", text_hint(value, expected))
        return {}
    options = dict(value)
    names = [name for name in options if not isinstance(name, str)]
    for name in names:
        report(f"expected names of type str in it, got {describe(name)}", "")
    if is_deeper(options, DEEPEST):
        report(f"it is nested deeper than {DEEPEST} levels", "is there a container inside itself?")
        return {}
    copied: dict[str, Any] = copy_options(options)
    return copied


def _serializer(value: Any, report: Report) -> str | None:
    registry = serialization.registry
    return _registered(
        value,
        report,
        "serializer",
        sorted(registry._encoders),
        # kombu registers these only if their package is installed.
        {"yaml": "kombu[yaml]", "msgpack": "kombu[msgpack]"},
    )


def _compression(value: Any, report: Report) -> str | None:
    return _registered(
        value,
        report,
        "compression",
        sorted({*compression._aliases, *compression.encoders()}),
        {
            "brotli": "kombu[brotli]",
            "zstd": "kombu[zstd]",
            "zstandard": "kombu[zstd]",
        },
    )


def _registered(
    value: Any, report: Report, what: str, known: list[str], extras: Mapping[str, str]
) -> str | None:
    if value is None or (isinstance(value, str) and value in known):
        return value
    expected = f"the name of a {what} that kombu knows, or None"
    hint = text_hint(value, expected) if isinstance(value, str) and value else ""
    if isinstance(value, str) and not hint:
        hint = f'pip install "{extras[value]}"' if value in extras else nearest(value, known)
    refuse(report, value, expected, hint)
    return None


def _connection_name(value: Any, report: Report) -> str | None:
    if value is None or (isinstance(value, str) and value and value.isprintable()):
        return value
    refuse(report, value, "a text of printable characters, or None")
    return None


_RETRY_CHECKS: Mapping[str, Check] = {
    "max_retries": _whole("a whole number from 0"),
    "interval_start": _seconds("a number of seconds from 0", zero=True),
    "interval_step": _seconds("a number of seconds from 0", zero=True),
    "interval_max": _seconds("a number of seconds from 0", zero=True),
    "nacked": _flag,
}


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and when a publish is tried again after its connection broke, or the broker refused it.

    The names are those of kombu's ``retry_policy``, but for :attr:`nacked`.

    :raises SettingsError: if a value is not valid.
    """

    #: The most attempts after the first one.
    max_retries: int = 3
    #: Seconds before the second attempt.
    interval_start: float = 0.0
    #: Seconds added before each further attempt.
    interval_step: float = 0.2
    #: The most seconds between two attempts.
    interval_max: float = 1.0
    #: Whether a message that the broker has refused is tried again until its time is up, however often that is.
    #: Otherwise it is an error at once.
    nacked: bool = True

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        for field in fields(self):
            value = _RETRY_CHECKS[field.name](
                getattr(self, field.name), collect(problems, None, field.name)
            )
            object.__setattr__(self, field.name, value)
        if problems:
            raise SettingsError(problems)


def _retry(value: Any, report: Report) -> RetryPolicy | None:
    if value is None or isinstance(value, RetryPolicy):
        return value
    if not isinstance(value, Mapping):
        hint = "None turns it off" if value is False else ""
        refuse(report, value, f"a dict of {', '.join(_RETRY_CHECKS)}, or None (off)", hint)
        return None
    problems: list[Problem] = []
    checked = {}
    for name, one in value.items():
        if name in _RETRY_CHECKS:
            checked[name] = _RETRY_CHECKS[name](one, collect(problems, None, name))
        else:
            hint = nearest(name.lower(), list(_RETRY_CHECKS)) if isinstance(name, str) else ""
            report(f"{describe(name)} is not part of it", hint)
    for problem in problems:
        report(f"{problem.key}: {problem.message}", problem.hint)
    return None if problems else RetryPolicy(**checked)


#: The check of each setting, by its name in lower case.
CHECKS: Mapping[str, Check] = {
    "url": _url,
    **PART_CHECKS,
    "credentials": credentials,
    "limit": _limit,
    "min_idle": _whole("a whole number from 0"),
    "acquire_timeout": _seconds(
        "a number of seconds from 0, or None (without end)", zero=True, none=True
    ),
    "max_waiting": _whole("a whole number from 0, or None (100 times the limit)", none=True),
    "connect_timeout": _seconds("a number of seconds above 0"),
    "outage_patience": _seconds("a number of seconds from 0 (none)", zero=True),
    "idle_timeout": _seconds("a number of seconds above 0, or None (never)", none=True),
    "max_lifetime": _seconds("a number of seconds above 0, or None (never)", none=True),
    "check_after": _seconds("a number of seconds from 0 (always)", zero=True),
    "heartbeat": _heartbeat,
    "confirm": _flag,
    "confirm_timeout": _seconds("a number of seconds above 0"),
    "retry": _retry,
    "mandatory": _mandatory,
    "publish_over": _publish_over,
    "in_flight": _in_flight,
    "outbox": _flag,
    "leak_after": _seconds("a number of seconds above 0, or None (off)", none=True),
    "ssl": _ssl,
    "serializer": _serializer,
    "compression": _compression,
    "transport_options": _transport_options,
    "connection_name": _connection_name,
}


def check_values(
    given: Mapping[str, Any], spelling: Mapping[str, str], alias: str | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """Check each of the settings, and whether they fit together.

    :param given: values by names in lower case, all of which are in :data:`CHECKS`.
    :param spelling: the names as they were written.
    :returns: the valid values, and what is wrong with the others.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None and name in PARTS:
            continue  # as if it were not given
        before = len(problems)
        checked = CHECKS[name](value, collect(problems, alias, spelling[name]))
        if len(problems) == before:
            values[name] = checked

    def report(name: str, message: str, hint: str) -> None:
        collect(problems, alias, spelling[name])(message, hint)

    _make_url(given, values, spelling, report)
    if values.get("credentials") is not None and values.get("url"):
        options = values.get("transport_options", {})
        for one in credential_problems(values["url"], options, spelling):
            report(*one)
    limit, min_idle = values.get("limit"), values.get("min_idle", 0)
    if isinstance(limit, int) and limit < min_idle:
        collect(problems, alias, spelling["limit"])(
            f"{limit} is below {spelling['min_idle']} ({min_idle})",
            "raise the one or lower the other",
        )
    shown, urls = values.get("connection_name") or "", values.get("url", ())
    if urls and isinstance(tls := values.get("ssl"), dict):
        for message, hint in tls_problems(tls, implementation_of(transport_of(urls[0])), urls):
            collect(problems, alias, spelling["ssl"])(message, hint)
    _need_confirms(values, spelling, report)
    # Redis refuses such a name at CLIENT SETNAME.
    if (" " in shown or not shown.isascii()) and urls and _is_redis(urls[0]):
        collect(problems, alias, spelling["connection_name"])(
            f"Redis takes a name without spaces, in ASCII, got {describe(shown)}",
            "write it with dashes",
        )
    return values, problems


def _need_confirms(values: Mapping[str, Any], spelling: Mapping[str, str], report: Any) -> None:
    """Report the settings that mean nothing without confirms, on AMQP."""
    urls = values.get("url")
    if not urls or implementation_of(transport_of(urls[0])) != "pyamqp":
        return
    if has_confirms(values.get("confirm", True), values.get("transport_options", {})):
        return
    for name, why in (
        ("mandatory", "a message that the broker returns is not noticed"),
        ("outbox", "a relay would drop the row of a message that the broker does not have"),
    ):
        if values.get(name) is True:
            report(
                name,
                f"True needs confirms: without them {why}",
                f"leave {spelling['confirm']} True, or write False",
            )


def _make_url(
    given: Mapping[str, Any], values: dict[str, Any], spelling: Mapping[str, str], report: Any
) -> None:
    """Replace ``HOST``, ``PORT`` and the other parts by a URL."""
    parts = {name: values.pop(name) for name in PARTS if name in values}
    named = [name for name in PARTS if given.get(name) is not None]
    if "url" in given:
        if named:
            shown = ", ".join(spelling[name] for name in named)
            report(
                "url",
                f"given as well as {shown}, and only one of them can be used",
                f"remove {spelling['url']}, or {shown}",
            )
    elif len(parts) == len(named) and any(name in given for name in PARTS):
        # Parts that are wrong have been reported already.
        has_credentials = given.get("credentials") is not None
        values["url"] = urls_from(parts, spelling, has_credentials, report)


def has_confirms(confirm: bool, transport_options: Mapping[str, Any]) -> bool:
    """Return whether publishes on AMQP have confirms. The transport's own option overrides the setting."""
    return bool(transport_options.get("confirm_publish", confirm))


def _is_redis(url: str) -> bool:
    return implementation_of(transport_of(url)) == "redis"


def read_keys(
    given: Mapping[Any, Any], upper: bool, alias: str | None = None
) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Separate the known keys of *given*, in upper or lower case, from the unknown ones.

    :param upper: whether messages write a key in upper case if it was not given.
    :returns: the values by names in lower case, how to write the name of each setting, and what is wrong.
    """
    values: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    problems: list[Problem] = []
    for key, value in given.items():
        if not isinstance(key, str):
            problems.append(
                Problem(alias, None, f"expected the names of settings, got {describe(key)}")
            )
            continue
        name = key.lower()
        if name not in CHECKS or key not in (name, name.upper()):
            problems.append(_unknown(key, alias))
        elif name in values:
            problems.append(
                Problem(alias, key, f"given twice, as {spelling[name]!r} and {key!r}", "remove one")
            )
        else:
            values[name], spelling[name] = value, key
    for name in CHECKS:
        spelling.setdefault(name, name.upper() if upper else name)
    if not any(isinstance(key, str) and key.lower() in ("url", *PARTS) for key in given):
        problems.append(Problem(alias, spelling["url"], "missing", EXAMPLE))
    return values, spelling, problems


#: Names that kombu, Django and others use. Similarity of spelling would suggest another setting.
_MEANT = {
    "broker_url": "url",
    "hostname": "host",
    "hosts": "host",
    "userid": "user",
    "username": "user",
    "virtual_host": "vhost",
    "virtualhost": "vhost",
    "credential_provider": "credentials",
}


def _unknown(key: str, alias: str | None) -> Problem:
    lower = key.islower()
    names = [name if lower else name.upper() for name in CHECKS]
    meant = _MEANT.get(key.lower(), "")
    shown = describe(key)
    hint = nearest((meant or key) if lower else (meant or key).upper(), names)
    return Problem(alias, shown.strip("'\""), f"{shown} is not a setting", hint)
