"""Checks for ``CREDENTIALS``, the function that returns user and password at each connect.

Nothing here calls or imports it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kombu.utils.url import parse_url

from .problems import Report
from .urls import implementation_of, is_installed, transport_of

__all__ = [
    "EXAMPLE",
    "NO_MODULE",
    "credential_problems",
    "credentials",
    "function_of",
    "is_module",
    "module_and_name",
]

#: What is expected, for error messages.
EXAMPLE = "a function without arguments, or its dotted path such as 'shop.vault.credentials'"

_PATH = re.compile(
    r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?:\.([^\W\d]\w*)|:([^\W\d]\w*(?:\.[^\W\d]\w*)*))"
)

#: Message and hint for a path whose module does not exist.
NO_MODULE = (
    "the module in the path does not exist",
    "is it misspelt, or not on sys.path? a method is 'module:Class.method'",
)

#: Transport options that would override the credentials.
_OVERRIDING = ("userid", "password", "login_response")


def module_and_name(path: str) -> tuple[str, str] | None:
    """Split the dotted path *path* into a module and a name in it; return ``None`` if it is not a dotted path."""
    found = _PATH.fullmatch(path)
    return None if found is None else (found.group(1), found.group(2) or found.group(3))


def is_module(name: str) -> bool:
    """Return whether a module of that name exists. Imports nothing."""
    return name in sys.modules or is_installed(name)


def credentials(value: Any, report: Report) -> str | Callable[[], Any] | None:
    """Check the value of ``CREDENTIALS``. Errors do not show it, because it may be a password by mistake."""
    if value is None:
        return None
    if isinstance(value, str):
        path = module_and_name(value)
        if path is None:
            report("the text is not a dotted path", f"expected {EXAMPLE}")
        elif not is_module(path[0]):
            report(*NO_MODULE)
        else:
            return value
    elif (function := function_of(value, report)) is not None:
        return function
    return None


def function_of(value: Any, report: Report) -> Callable[[], Any] | None:
    """Return *value* if it is a function that can be called without arguments; else report what is wrong."""
    if not callable(value) or isinstance(value, type):
        kind = "a class" if isinstance(value, type) else f"a value of type {type(value).__name__}"
        hint = (
            "set USER and PASSWORD for a fixed user and password"
            if isinstance(value, tuple | list | dict)
            else ""
        )
        if callable(getattr(value, "get_credentials", None)):
            hint = "for a provider of redis-py, give its bound method: provider.get_credentials"
        report(f"expected {EXAMPLE}, got {kind}", hint)
    elif any(map(_is_async, (value, getattr(value, "__call__", None)))):  # noqa: B004  # what it is
        report(
            "it is async, but it is called in a thread without an event loop",
            "give a plain function",
        )
    elif not _takes_nothing(value):
        report(
            "it takes arguments, but is called without any",
            "bind them with functools.partial()",
        )
    else:
        function: Callable[[], Any] = value
        return function
    return None


def _is_async(value: Any) -> bool:
    return inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:
        pass  # some functions written in C have no signature
    return True


def credential_problems(
    urls: Sequence[str], options: Mapping[str, Any], spelling: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield what contradicts ``CREDENTIALS``: the name of a setting, a message and a hint."""
    transport = transport_of(urls[0])
    implementation = implementation_of(transport)
    name = spelling["credentials"]
    if implementation == "memory":
        return  # this transport never calls it
    if implementation not in ("pyamqp", "redis") or "+" in urls[0].partition("://")[0]:
        yield (
            "credentials",
            f"it works only with AMQP and Redis over TCP, not with {transport}://",
            "",
        )
        return
    parts = [parse_url(url) for url in urls]
    if any(one["password"] for one in parts):
        yield (
            "credentials",
            "there is a password as well, and only one of them can be used",
            "remove one of the two",
        )
    if any("credential_provider" in one for one in parts):
        yield (
            "credentials",
            "the URL has a 'credential_provider' as well, and only one of them can be used",
            "remove one of the two",
        )
    if "credential_provider" in options:
        yield (
            "transport_options",
            f"'credential_provider' is set as well as {name}, and only one of them can be used",
            "remove one of the two",
        )
    for option in _OVERRIDING:
        if option in options:
            yield (
                "transport_options",
                f"{option!r} would override {name}",
                "remove one of the two",
            )
