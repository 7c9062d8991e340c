"""The setting ``KOMBU_POOLS_CELERY``: the alias that the project's Celery application publishes over."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib.util import find_spec

from ..masking import describe
from .problems import Problem, SettingsError, nearest

__all__ = ["NAME", "parse_celery_alias"]

#: The name of the setting.
NAME = "KOMBU_POOLS_CELERY"


def parse_celery_alias(
    value: object, aliases: Collection[str] | None, *, beside: Iterable[Problem] = ()
) -> str | None:
    """Return the alias, or ``None`` if the application keeps Celery's own pools.

    :param value: what the setting is; ``None`` if it is missing.
    :param aliases: those that are configured; ``None`` if that is not known.
    :param beside: problems of other settings, to be raised together with these.
    :raises SettingsError: with every problem.
    """
    problems = list(beside)
    if value is not None:
        problem = _problem_of(value, aliases)
        if problem is not None:
            problems.append(problem)
        elif find_spec("celery") is None:
            problems.append(
                Problem(
                    None,
                    None,
                    "Celery is not installed",
                    'pip install "kombu-pools-ext[celery]", or remove the setting',
                )
            )
    if problems:
        raise SettingsError(problems, NAME)
    return value if isinstance(value, str) else None


def _problem_of(value: object, aliases: Collection[str] | None) -> Problem | None:
    if isinstance(value, str) and value and (aliases is None or value in aliases):
        return None
    known = () if aliases is None else aliases
    return Problem(
        None,
        None,
        f"expected the alias of a pool, got {describe(value)}",
        nearest(value, known, repr) if known else "write 'default'",
    )
