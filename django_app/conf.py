"""The settings ``KOMBU_POOLS`` and ``KOMBU_POOLS_CONTROL``, read when they are first needed, and anew when a test
overrides them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from kombu_pools_ext import AliasedPools, Pools, PoolSettings, parse_settings
from kombu_pools_ext.control import Control, ControlSettings, Project, attach, detach
from kombu_pools_ext.control.attaching import begin
from kombu_pools_ext.control.options import KEYS, parse_control
from kombu_pools_ext.control.options import NAME as CONTROL
from kombu_pools_ext.errors import Problem, SettingsError
from kombu_pools_ext.settings.strays import Strays

__all__ = [
    "CONTROL",
    "NAME",
    "DjangoPools",
    "PoolsImproperlyConfigured",
    "connections",
    "control",
    "control_settings",
    "is_missing",
    "listen",
    "pools",
    "producers",
    "read_settings",
    "say_unreachable",
    "strays",
]

logger = logging.getLogger("kombu_pools_ext.control")

#: The names of the settings.
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


_STRAYS = Strays(NAME, {CONTROL: KEYS})


def strays(near: str) -> list[Problem]:
    """Return a problem for each misspelt name in the settings that was meant for *near*, one of our settings."""
    return [problem for setting, problem in _STRAYS.among(dir(django_settings)) if setting == near]


def is_missing() -> bool:
    """Whether nothing in the settings says where a broker is, right or wrong, and DEBUG is off."""
    return configured() is None and not django_settings.DEBUG and not strays(NAME)


def _source() -> Any:
    value = configured()
    return WITHOUT if value is None and django_settings.DEBUG else value


def read_settings() -> dict[str, PoolSettings]:
    """The pools' settings by alias, as they stand now.

    :raises SettingsError: with every problem.
    """
    if is_missing():
        raise SettingsError([_MISSING], NAME)
    beside = strays(NAME)
    if beside and configured() is None:
        # The misspelt one is the one that is missing.
        raise SettingsError(beside, NAME)
    return parse_settings(_source(), name=NAME, beside=beside)


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

    def _given(self) -> Any:
        return configured()

    def _parse(self) -> dict[str, PoolSettings]:
        return read_settings()

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


def _secret() -> str | bytes | None:
    try:
        return django_settings.SECRET_KEY or None
    except ImproperlyConfigured:
        # Django's word for an empty one.
        return None


def _former_secrets() -> list[str | bytes]:
    return list(django_settings.SECRET_KEY_FALLBACKS or ())


def control_settings(aliases: Collection[str]) -> ControlSettings:
    """How the processes of this project are reached, as ``KOMBU_POOLS_CONTROL`` has it.

    :param aliases: which BROADCAST may name.
    :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
    """
    value = getattr(django_settings, CONTROL, None)
    try:
        return parse_control(
            value,
            aliases,
            name=CONTROL,
            secret=_secret(),
            beside=strays(CONTROL),
        )
    except SettingsError as error:
        raise PoolsImproperlyConfigured(error.problems, error.name) from None


_control: Control | None = None


def control() -> Control:
    """What reaches all processes of this project. Made at the first call, from which on commands reach this one too.

    :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
    """
    global _control
    made = _control
    if made is None:
        # Without a secret, two projects of one user are told apart by where they are.
        where = [getattr(django_settings, name, None) for name in ("BASE_DIR", "SETTINGS_MODULE")]
        settings = control_settings(pools.settings)
        project = Project(settings, _secret(), f"django {where}", former_secrets=_former_secrets())
        made = _control = attach(pools, project)
    return made


def listen(**what: Any) -> None:
    """Have commands reach this process from now on; called when a pool is first used, and waits for nothing."""
    if _control is not None:
        # The pools have been attached, and whoever did that hears of it himself.
        return
    try:
        made = control()
    except ImproperlyConfigured as error:
        say_unreachable(str(error), logging.WARNING)
    else:
        begin(made.project)


_said: set[str] = set()


def say_unreachable(why: str, level: int) -> None:
    """Log that commands cannot reach this process, at most once for each reason."""
    if why not in _said:
        _said.add(why)
        logger.log(level, "control: this process cannot be reached by commands: %s", why)


def _reload(*, setting: str, **kwargs: Any) -> None:
    global _control
    # DEBUG decides what holds where the setting is missing.
    stray = _STRAYS.is_one(setting)
    if setting == NAME or stray or (setting == "DEBUG" and configured() is None):
        pools.forget_settings()
    broadcasts = _control is not None and _control.project.settings.broadcast is not None
    if (
        setting in (CONTROL, "SECRET_KEY", "SECRET_KEY_FALLBACKS")
        or stray
        or (setting == NAME and broadcasts)
    ):
        _control = None
        detach(pools)


setting_changed.connect(_reload, dispatch_uid="kombu_pools")
