"""Errors in the settings: :class:`Problem`, :class:`SettingsError`, and helpers that word a problem and its hint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..masking import describe

__all__ = [
    "Problem",
    "Report",
    "SettingsError",
    "closest",
    "collect",
    "did_you_mean",
    "forgets_arguments",
    "nearest",
    "refuse",
    "suggestion",
    "text_hint",
]

P = ParamSpec("P")
R = TypeVar("R")

#: A function that takes a message and a hint.
Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings. It never shows a secret."""

    #: The pool's name; ``None`` if the settings as a whole are wrong, or have no aliases.
    alias: str | None
    #: The setting, as it was written; ``None`` if the alias itself is wrong.
    key: str | None
    #: What was given, and what was expected.
    message: str
    #: What to do; for a typo, the nearest known key. May be empty.
    hint: str = ""


class SettingsError(ValueError):
    """The settings are wrong; nothing was opened. The text has a line for each problem.

    :param problems: all of them, in any order.
    :param name: the name of the setting or configuration key.
    """

    #: All that is wrong, sorted by alias and key.
    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem], name: str = "") -> None:
        self.problems = tuple(
            sorted(problems, key=lambda one: (one.alias or "", one.key or "", one.message))
        )
        self.name = name
        super().__init__("\n".join(map(self._line, self.problems)))

    def _line(self, problem: Problem) -> str:
        where = self.name
        if problem.alias is not None:
            where += f"[{describe(problem.alias)}]"
        if problem.key is not None:
            where += f"[{describe(problem.key)}]" if where else problem.key
        hint = f"; {problem.hint}" if problem.hint else ""
        return f"{where}: {problem.message}{hint}" if where else f"{problem.message}{hint}"

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.name)


def forgets_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Remove the frames of *function* from a :class:`SettingsError` that it raises.

    Error reporters collect the variables of each frame, and in these frames any variable may hold a password. The
    error's text says all that is needed.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SettingsError as error:
            told = error
        del args, kwargs
        told.__traceback__ = told.__context__ = told.__cause__ = None
        try:
            raise told
        finally:
            # Breaks the cycle of the error, its traceback and this frame.
            del told

    return call


#: The hint for a text that may stand for a value of another type.
_CONVERT = "text, of an environment variable for instance, must be converted first"
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = ("none", "null", "")


def refuse(report: Report, value: object, expected: str, hint: str = "") -> None:
    """Report that *value* is not what is *expected*."""
    report(f"expected {expected}, got {describe(value)}", hint or text_hint(value, expected))


def text_hint(value: object, expected: str) -> str:
    """Return a hint if *value* is the text of a value of another type, such as ``"5"``; else an empty text.

    :param expected: describes the valid values.
    """
    if not isinstance(value, str):
        return ""
    word = value.strip().lower()
    meant = ""
    if "True" in expected and word in _TRUE:
        meant = "True"
    elif "False" in expected and word in _FALSE:
        meant = "False"
    elif "None" in expected and word in _NONE:
        meant = "None"
    elif "number" in expected and re.fullmatch(r"\d{1,12}(\.\d{1,12})?", word, re.ASCII):
        meant = word
    if meant:
        return f"{suggestion(meant)} {_CONVERT}"
    if "dict" in expected and word.startswith("{"):
        return f"{_CONVERT}: json.loads() makes a dict of it"
    return _CONVERT if "number" in expected else ""


def closest(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return the one of *known* that is most similar to *word*; an empty text if none is.

    :param alike: the least similarity, from 0 to 1, as :mod:`difflib` measures it.
    """
    # Imported at the first mistake, because most processes make none.
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, n=1, cutoff=alike)), "")


def suggestion(meant: str) -> str:
    """Return the hint "did you mean *meant*?"; an empty text if *meant* is empty.

    :param meant: as it is written in code.
    """
    return f"did you mean {meant}?" if meant else ""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return a hint that names the one of *known* most similar to *word*; an empty text if none is."""
    near = closest(word, known) if isinstance(word, str) else ""
    return suggestion(repr(near)) if near else ""


def nearest(word: object, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return a hint that names the one of *known* most similar to *word*, or all of them, formatted by *show*."""
    return did_you_mean(word, known) or f"known: {', '.join(map(show, known)) or 'none'}"


def collect(problems: list[Problem], alias: str | None, key: str | None) -> Report:
    """Return a function that appends a :class:`Problem` with its message and hint to *problems*."""

    def report(message: str, hint: str) -> None:
        problems.append(Problem(alias, key, message, hint))

    return report
