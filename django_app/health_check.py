"""A check for django-health-check 4: ``"django_app.health_check.KombuPools"`` among the checks of its view."""

from __future__ import annotations

import dataclasses

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from kombu_pools_ext.health import Condition

from .health_settings import probe, read_health

__all__ = ["KombuPools"]


@dataclasses.dataclass
class KombuPools(HealthCheck):
    """Whether the brokers can be published to.

    :param using: an alias; ``None`` means all.
    """

    using: str | None = None

    def run(self) -> None:
        """Look; django-health-check runs this in a thread.

        :raises ServiceWarning: for a condition whose status in ``KOMBU_POOLS_HEALTH`` is a success, but for OK.
        :raises ServiceUnavailable: for another one.
        """
        found = probe().look(None if self.using is None else [self.using])
        if found.condition is Condition.OK:
            return
        told = ", ".join(
            f"{one.alias}: {one.condition}"
            for one in found.aliases
            if one.condition is not Condition.OK
        )
        is_success = read_health().status[found.condition] < 400
        raise (ServiceWarning if is_success else ServiceUnavailable)(told)
