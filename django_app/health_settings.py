"""The setting ``KOMBU_POOLS_HEALTH``, and the probe that it describes."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from kombu_pools_ext.errors import SettingsError
from kombu_pools_ext.health import HealthSettings, Probe, parse_health

from . import conf

__all__ = ["probe", "read_health"]


@cache
def read_health() -> HealthSettings:
    """Return the settings of the probes.

    :raises SettingsError: with everything that is wrong.
    """
    misspelt = conf.misspelt_names(conf.HEALTH)
    if misspelt:
        raise SettingsError(misspelt, conf.HEALTH)
    return parse_health(getattr(django_settings, conf.HEALTH, None), import_string)


@cache
def probe() -> Probe:
    """Return the probe of this process.

    :raises ImproperlyConfigured: with everything that is wrong in the setting.
    """
    try:
        settings = read_health()
    except SettingsError as error:
        raise conf.PoolsImproperlyConfigured(error.problems, error.name) from None
    return Probe(conf.pools, settings.fresh, settings.timeout)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in (conf.HEALTH, conf.NAME):
        read_health.cache_clear()
        probe.cache_clear()


setting_changed.connect(_forget)
