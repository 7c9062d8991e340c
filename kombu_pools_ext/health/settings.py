"""The settings of the probes: ``KOMBU_POOLS_HEALTH`` in both frameworks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ..errors import Problem
from ..settings import SettingsError
from ..settings.problems import did_you_mean
from .condition import Condition

__all__ = ["KEYS", "NAME", "HealthSettings", "parse_health"]

#: The name of the setting.
NAME = "KOMBU_POOLS_HEALTH"
#: Its keys.
KEYS = ("FRESH", "TIMEOUT", "STATUS", "DETAILS")

#: Kubernetes takes 200 to 399 for success. A degraded process still publishes; taking it away makes the others slower.
_STATUS = {
    Condition.OK: 200,
    Condition.DEGRADED: 200,
    Condition.SUSPENDED: 503,
    Condition.BLOCKED: 503,
    Condition.DOWN: 503,
}


@dataclass(frozen=True)
class HealthSettings:
    """How probes answer."""

    #: Seconds for which an answer of the broker is believed.
    fresh: float = 5.0
    #: Seconds that a probe waits for the broker, if there is no earlier answer.
    timeout: float = 2.0
    #: The HTTP status of each condition.
    status: Mapping[Condition, int] = field(default_factory=lambda: dict(_STATUS))
    #: Says of a request whether its answer may contain reasons, which may name brokers; ``None`` is never.
    details: Callable[[Any], bool] | None = None


def parse_health(given: Any, import_path: Callable[[str], Any] | None = None) -> HealthSettings:
    """Return the settings that *given* says, a dict or ``None``.

    :param import_path: imports what a dotted path names.
    :raises SettingsError: with everything that is wrong.
    """
    if given is None:
        return HealthSettings()
    problems: list[Problem] = []

    def wrong(key: str | None, message: str, hint: str = "") -> None:
        problems.append(Problem(None, key, message, hint))

    if not isinstance(given, Mapping):
        wrong(None, f"expected a dict, got {given!r}", f"its keys are {', '.join(KEYS)}")
        raise SettingsError(problems, NAME)
    for key in given:
        if key not in KEYS:
            wrong(str(key), "unknown key", did_you_mean(key, KEYS))
    seconds = {
        key: _seconds(key, given[key], wrong) for key in ("FRESH", "TIMEOUT") if key in given
    }
    status = _statuses(given.get("STATUS"), wrong)
    details: Any = given.get("DETAILS")
    if isinstance(details, str) and import_path is not None:
        try:
            details = import_path(details)
        except ImportError as error:
            wrong("DETAILS", f"cannot be imported: {error}")
    if details is not None and not callable(details):
        wrong("DETAILS", f"expected a function that takes the request, got {details!r}")
    if problems:
        raise SettingsError(problems, NAME)
    return HealthSettings(
        seconds.get("FRESH", 5.0),
        seconds.get("TIMEOUT", 2.0),
        {**_STATUS, **status},
        cast("Callable[[Any], bool] | None", details),
    )


def _seconds(key: str, value: Any, wrong: Callable[..., None]) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        wrong(key, f"expected a number of seconds above 0, got {value!r}")
        return 1.0
    return float(value)


def _statuses(given: Any, wrong: Callable[..., None]) -> dict[Condition, int]:
    if given is None:
        return {}
    names = [str(one) for one in Condition]
    if not isinstance(given, Mapping):
        wrong("STATUS", f"expected a dict of conditions and numbers, got {given!r}")
        return {}
    found = {}
    for name, status in given.items():
        if name not in names:
            wrong("STATUS", f"unknown condition {name!r}", did_you_mean(name, names))
        elif type(status) is not int or not 200 <= status <= 599:
            wrong("STATUS", f"expected an HTTP status from 200 to 599 for {name!r}, got {status!r}")
        else:
            found[Condition(name)] = status
    return found
