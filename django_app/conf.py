"""The setting ``KOMBU_POOLS``, read when it is first needed, and anew when a test overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from kombu_pools_ext import AliasedPools, Pools, PoolSettings
from kombu_pools_ext.errors import Problem, SettingsError

__all__ = [
    "NAME",
    "DjangoPools",
    "PoolsImproperlyConfigured",
    "connections",
    "pools",
    "producers",
]

#: The name of the setting.
NAME = "KOMBU_POOLS"

#: What holds without it, in DEBUG.
WITHOUT: Mapping[str, Any] = {"default": {"URL": "memory://"}}

_MISSING = Problem(
    None,
    None,
    "the setting is missing, and DEBUG is off",
    f'write {NAME} = {{"default": {{"URL": "amqp://user:password@host:5672//"}}}} into the settings',
)


class PoolsImproperlyConfigured(ImproperlyConfigured, SettingsError):
    """``KOMBU_POOLS`` is wrong; the text has a line for each problem, and ``problems`` holds them all."""


def configured() -> Any:
    """What stands in the settings, unchecked; ``None`` if nothing does."""
    return getattr(django_settings, NAME, None)


def _source() -> Any:
    value = configured()
    if value is not None:
        return value
    if django_settings.DEBUG:
        return WITHOUT
    raise SettingsError([_MISSING], NAME)


class DjangoPools(Pools):
    """The aliases of ``KOMBU_POOLS``."""

    @property
    def settings(self) -> Mapping[str, PoolSettings]:
        """The settings, by alias.

        :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
        """
        try:
            return super().settings
        except SettingsError as error:
            raise PoolsImproperlyConfigured(error.problems, error.name) from None

    def __repr__(self) -> str:
        try:
            return super().__repr__()
        except ImproperlyConfigured:
            return f"<{type(self).__name__}: Django's settings are not configured>"


#: The aliases of ``KOMBU_POOLS``, and what can be done with their pools.
pools = DjangoPools(_source, name=NAME)
#: The connection pools, by alias.
connections: AliasedPools = pools.connections
#: The producer pools, by alias.
producers: AliasedPools = pools.producers


def _reload(*, setting: str, **kwargs: Any) -> None:
    # DEBUG decides what holds where the setting is missing.
    if setting == NAME or (setting == "DEBUG" and configured() is None):
        pools.reload()


setting_changed.connect(_reload, dispatch_uid="kombu_pools")
