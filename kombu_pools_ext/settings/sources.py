"""Read the settings of the pools from a dict, a function, a dotted path to a function, or a JSON or TOML file.

A dict stays the same until the process ends; a reload reads the others again. Errors do not quote a file's content,
because it may be a password.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..masking import describe
from .credentials import NO_MODULE, is_module, module_and_name
from .problems import Problem, SettingsError, nearest

__all__ = ["SUFFIXES", "can_change", "is_file", "is_function", "problems_unasked", "read"]

#: The endings of file names that are recognised.
SUFFIXES = (".json", ".toml")
#: The most bytes of a settings file. A larger one is most likely another file.
LARGEST = 1024 * 1024
#: The most steps from a value to the settings: a function may return a path, for example.
DEEPEST = 3


def is_file(value: object) -> bool:
    """Return whether *value* names a file: a :class:`~pathlib.Path`, or a text with one of :data:`SUFFIXES`."""
    return isinstance(value, Path) or (
        isinstance(value, str) and "://" not in value and value.lower().endswith(SUFFIXES)
    )


def is_function(value: object) -> bool:
    """Return whether *value* is a function that returns the settings, or a dotted path to one."""
    if isinstance(value, str):
        return not is_file(value) and module_and_name(value) is not None
    return callable(value)


def can_change(value: object) -> bool:
    """Return whether reading *value* again may give other settings."""
    return is_file(value) or is_function(value)


def problems_unasked(value: object) -> list[Problem]:
    """Return what is wrong with *value*, as far as can be seen without calling or importing anything."""
    if isinstance(value, str) and is_function(value):
        module, _ = module_and_name(value) or ("", "")
        if not is_module(module):
            message, hint = NO_MODULE
            return [Problem(None, None, f"{describe(value)}: {message}", hint)]
    return []


def read(value: object) -> object:
    """Return the settings that *value* is or leads to: what its function returns, or what its file contains.

    :raises SettingsError: if the file cannot be read, or nothing is found at the dotted path.
    :raises Exception: whatever the function raises.
    """
    for _ in range(DEEPEST):
        if is_file(value):
            value = _read_file(Path(value))  # type: ignore[arg-type]  # a path, or a text
        elif is_function(value):
            function = _found(value) if isinstance(value, str) else value
            value = function()  # type: ignore[operator]  # it can be called
        else:
            break
    return value


def _refused(message: str, hint: str = "") -> SettingsError:
    return SettingsError([Problem(None, None, message, hint)])


def _found(path: str) -> Callable[[], Any]:
    """Import the function at the dotted path *path*."""
    module, name = module_and_name(path) or ("", "")
    shown = describe(path)
    why = ""
    try:
        import_module(module)
    except Exception as error:
        # An ImportError names modules; the text of another error may contain a secret.
        told = str(error) if isinstance(error, ImportError) else ""
        why = f"{type(error).__name__}: {told}".rstrip(": ")
    if why:
        raise _refused(f"{shown}: the module {module!r} cannot be imported: {why}")
    try:
        found = attrgetter(name)(sys.modules[module])
    except AttributeError:
        found = None
    if found is None:
        known = [one for one, what in vars(sys.modules[module]).items() if callable(what)]
        raise _refused(f"{shown}: {module!r} has no {name!r}", nearest(name, known))
    if not callable(found):
        kind = type(found).__name__
        raise _refused(f"{shown} is a value of type {kind}, not a function", "give the dict itself")
    function: Callable[[], Any] = found
    return function


def _read_file(path: Path) -> object:
    shown = describe(str(path))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise _refused(
            f"{shown} is not a file of settings", f"its name must end with {' or '.join(SUFFIXES)}"
        )
    data, why = b"", ""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
    if why:
        raise _refused(f"the file {shown} cannot be read: {why}")
    if len(data) > LARGEST:
        raise _refused(f"the file {shown} has more than {LARGEST} bytes")
    if not data.strip():
        raise _refused(f"the file {shown} is empty", _WHOLE)
    value, why = _parsed(data, suffix)
    if why:
        raise _refused(f"the file {shown} is not valid {suffix[1:].upper()}: {why}", _WHOLE)
    return value


#: A reader that sees half of a file would read other settings, or none.
_WHOLE = "is it being written? write a new file, and rename it over this one"


def _parsed(data: bytes, suffix: str) -> tuple[object, str]:
    """Parse *data*; if that fails, return the reason, without quoting any of it."""
    try:
        text = data.decode("utf-8-sig")
        if suffix == ".toml":
            return tomllib.loads(text), ""
        return json.loads(text, object_pairs_hook=_without_doubles), ""
    except UnicodeDecodeError as error:
        return None, f"byte {error.start} is not valid UTF-8"
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at line {error.lineno}, column {error.colno}"
    except tomllib.TOMLDecodeError as error:
        # The error's text quotes a character or a key of the file.
        where = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
        return None, f"it cannot be parsed{f' at {where.group(1)}' if where else ''}"
    except _Twice:
        return None, "an object in it has the same name twice"
    except RecursionError:
        return None, "it is nested too deeply"


class _Twice(Exception):
    """A JSON object has the same name twice. JSON does not define which value to use."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Twice
    return made
