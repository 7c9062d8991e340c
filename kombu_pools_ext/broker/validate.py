"""Arguments that callers get wrong, refused with their name before anything happens."""

from __future__ import annotations

import math
import numbers
from typing import Any

from ..settings.problems import suggestion

__all__ = [
    "FLAGS",
    "FOREVER",
    "PLAIN",
    "check_flag",
    "valid_limit",
    "valid_seconds",
    "valid_timeout",
]

#: The types of a time-out that a hot path takes as it is, if it is from 0 to below :data:`FOREVER`.
PLAIN = frozenset({int, float})
FOREVER = math.inf
#: What says yes or no; 1 and 0 are equal to some of them. What stands first is found first, on a hot path.
FLAGS: tuple[Any, ...] = (False, True, None)


def check_flag(name: str, value: Any, timeout: str = "timeout={}") -> None:
    """Refuse what does not say yes or no: a number, or one out of an environment variable, is meant as a time-out.

    :param name: the argument's.
    :param timeout: what to write in its place.
    :raises TypeError: if *value* is not ``True``, ``False``, 1, 0 or ``None``.
    """
    if value in FLAGS:
        return
    wrong = f"{name} must be True or False, not {value!r}"
    meant = _number(value)
    if meant is None:
        raise TypeError(wrong)
    raise TypeError(f"{wrong}; {suggestion(timeout.format(meant))}")


def _number(value: Any) -> str | None:
    """The number that *value* is, or that stands in it, as one writes it."""
    if isinstance(value, numbers.Number):
        return repr(value)
    text = value.strip() if isinstance(value, str) else ""
    try:
        float(text)
    except ValueError:
        return None
    return text


def valid_timeout(timeout: Any) -> float | None:
    """*timeout* in seconds, or ``None``.

    :raises TypeError: if it is no number, or a ``bool``.
    :raises ValueError: if it is negative or not a number of seconds (NaN); infinity means ``None``.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be 0 or more seconds, not {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


def valid_seconds(timeout: Any) -> float:
    """*timeout* in seconds, where there has to be an end.

    :raises TypeError, ValueError: as :func:`valid_timeout`, and for ``None`` and infinity.
    """
    seconds = valid_timeout(timeout)
    if seconds is None:
        raise ValueError(f"timeout must be a number of seconds, not {timeout!r}")
    return seconds


def valid_limit(limit: Any) -> int | None:
    """*limit* as the engine has it: ``None`` is unlimited, and 0 means the same, as in kombu.

    :raises TypeError: if it is no whole number, or a ``bool``.
    :raises ValueError: if it is negative.
    """
    if limit is None:
        return None
    if isinstance(limit, bool):
        # kombu's words: its users may look for them.
        raise TypeError(f"limit must be an int, not bool: {limit!r}")
    if not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number or None, not {limit!r}")
    if limit < 0:
        raise ValueError(f"limit must be 0 (unlimited) or more, not {limit!r}")
    return limit or None
