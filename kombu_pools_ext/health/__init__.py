"""Whether the brokers of a process can be published to: for probes, which ask often and want an answer at once.

``docs/howto/probe-it.md`` says how the frameworks offer it.
"""

from __future__ import annotations

from .condition import Condition
from .probe import Probe
from .readiness import AliasReadiness, Readiness
from .settings import NAME, HealthSettings, parse_health

__all__ = [
    "NAME",
    "AliasReadiness",
    "Condition",
    "HealthSettings",
    "Probe",
    "Readiness",
    "parse_health",
]
