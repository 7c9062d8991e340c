"""What is wrong with the settings, and how it is told."""

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
    "text_hint",
]

P = ParamSpec("P")
R = TypeVar("R")

#: Takes a message and a hint.
Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings. No part of it shows a secret."""

    #: The pool's name; ``None`` if the settings as a whole are wrong, or have no aliases.
    alias: str | None
    #: The setting, as it was spelt; ``None`` if the alias itself is wrong.
    key: str | None
    #: What was given, and what was expected.
    message: str
    #: The remedy; the nearest known key for a typo. May be empty.
    hint: str = ""


class SettingsError(ValueError):
    """The settings are wrong; nothing was opened. The text has a line for each problem.

    :param problems: in any order.
    :param name: what the settings are called where they were written.
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
    """Have a :class:`SettingsError` of *function* keep none of the frames that hold what was given.

    Error reporters collect the variables of each frame, and here these may hold a password under any name. The text
    of the error has all that is needed.
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
    """Report that *value* was given where *expected* describes the right values."""
    report(f"expected {expected}, got {describe(value)}", hint or text_hint(value, expected))


def text_hint(value: object, expected: str) -> str:
    """Return a hint if *value* is a text that stands for a value of another type; else an empty text.

    :param expected: the words that describe the right values.
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
        return f"did you mean {meant}? {_CONVERT}"
    if "dict" in expected and word.startswith("{"):
        return f"{_CONVERT}: json.loads() makes a dict of it"
    return _CONVERT if "number" in expected else ""


def closest(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """The one of *known* most like *word*; empty if none is.

    :param alike: how much at least, from 0 to 1, as :mod:`difflib` has it.
    """
    # Loaded with the first mistake: an import has none.
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, n=1, cutoff=alike)), "")


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A hint that names the one of *known* most like *word*; empty if none is."""
    near = closest(word, known) if isinstance(word, str) else ""
    return f"did you mean {near!r}?" if near else ""


def nearest(word: object, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """The same, or else all of *known*, each as *show* has it."""
    return did_you_mean(word, known) or f"known: {', '.join(map(show, known)) or 'none'}"


def collect(problems: list[Problem], alias: str | None, key: str | None) -> Report:
    """A function that appends to *problems* what it is told."""

    def report(message: str, hint: str) -> None:
        problems.append(Problem(alias, key, message, hint))

    return report
