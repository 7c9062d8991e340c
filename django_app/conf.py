"""The settings ``KOMBU_POOLS``, ``KOMBU_POOLS_CONTROL`` and ``KOMBU_POOLS_CELERY``.

They are read at their first use, and again when a test overrides them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from kombu_pools_ext import (
    AliasedPools,
    ConnectionPool,
    Pools,
    PoolSettings,
    ProducerPool,
    parse_settings,
)
from kombu_pools_ext.control import Control, ControlSettings, Project, attach, detach
from kombu_pools_ext.control.attaching import begin
from kombu_pools_ext.control.options import KEYS, parse_control
from kombu_pools_ext.control.options import NAME as CONTROL
from kombu_pools_ext.errors import Problem, SettingsError
from kombu_pools_ext.health.settings import KEYS as HEALTH_KEYS
from kombu_pools_ext.health.settings import NAME as HEALTH
from kombu_pools_ext.prepared import PreparedMessage
from kombu_pools_ext.settings.celery_alias import NAME as CELERY
from kombu_pools_ext.settings.celery_alias import parse_celery_alias
from kombu_pools_ext.settings.misspelt import MisspeltNames
from kombu_pools_ext.whole_imports import import_whole

__all__ = [
    "CELERY",
    "CONTROL",
    "HEALTH",
    "NAME",
    "DjangoPools",
    "PoolsImproperlyConfigured",
    "adopt_celery",
    "celery_alias",
    "connections",
    "control",
    "control_settings",
    "is_missing",
    "listen",
    "misspelt_names",
    "pools",
    "producers",
    "project_pools",
    "read_settings",
    "say_unreachable",
]

logger = logging.getLogger("kombu_pools_ext.control")

#: The name of the setting.
NAME = "KOMBU_POOLS"

#: Imported by the first task for an outbox.
_WRITING = f"{__package__}.outbox.writing"

#: The default of the setting under DEBUG.
WITHOUT: Mapping[str, Any] = {"default": {"URL": "memory://"}}

_MISSING = Problem(
    None,
    None,
    "the setting is missing, and DEBUG is off",
    f'write {NAME} = {{"default": {{"URL": "amqp://user:password@host:5672//"}}}} into the settings',
)


class PoolsImproperlyConfigured(ImproperlyConfigured, SettingsError):
    """``KOMBU_POOLS`` is wrong. The text has a line for each problem, and ``problems`` has them all."""


def configured() -> Any:
    """Return the value of the setting, unchecked; ``None`` if it is missing."""
    return getattr(django_settings, NAME, None)


_MISSPELT = MisspeltNames(NAME, {CONTROL: KEYS, CELERY: (), HEALTH: HEALTH_KEYS})


def misspelt_names(near: str) -> list[Problem]:
    """Return a problem for each misspelt name in Django's settings that was meant for *near*, one of our settings."""
    return [
        problem for setting, problem in _MISSPELT.among(dir(django_settings)) if setting == near
    ]


def is_missing() -> bool:
    """Return whether the setting is missing, not only misspelt, and DEBUG is off."""
    return configured() is None and not django_settings.DEBUG and not misspelt_names(NAME)


def _source() -> Any:
    value = configured()
    return WITHOUT if value is None and django_settings.DEBUG else value


def read_settings() -> dict[str, PoolSettings]:
    """Return the settings of the pools by alias, as they are now.

    :raises SettingsError: with every problem.
    """
    if is_missing():
        raise SettingsError([_MISSING], NAME)
    beside = misspelt_names(NAME)
    if beside and configured() is None:
        # The misspelt setting is the missing one, so only this is reported.
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

    def row_writer(self, using: str) -> Callable[[PreparedMessage], object] | None:
        """Return what writes a task's message into the outbox of the current transaction; ``None`` to publish it."""
        if not self.settings_of(using).outbox:
            return None
        import_whole(_WRITING)
        from .outbox.writing import writer_for_tasks

        return writer_for_tasks()

    def __repr__(self) -> str:
        try:
            return super().__repr__()
        except ImproperlyConfigured:
            return f"<{type(self).__name__}: Django's settings are not configured>"


#: The aliases of ``KOMBU_POOLS``.
pools = DjangoPools(_source, name=NAME)
#: The connection pools, by alias.
connections: AliasedPools[ConnectionPool] = pools.connections
#: The producer pools, by alias.
producers: AliasedPools[ProducerPool] = pools.producers


def celery_alias(aliases: Collection[str] | None = None) -> str | None:
    """Return the checked value of ``KOMBU_POOLS_CELERY``; ``None`` if Celery keeps its own pools.

    :param aliases: those of ``KOMBU_POOLS``; ``None`` if that is not known.
    :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
    """
    value = getattr(django_settings, CELERY, None)
    try:
        return parse_celery_alias(value, aliases, beside=misspelt_names(CELERY))
    except SettingsError as error:
        raise PoolsImproperlyConfigured(error.problems, error.name) from None


def project_pools() -> Pools:
    """Return :data:`pools`: a function, because an application of Celery is pickled with it."""
    return pools


def adopt_celery(then: Callable[[Any], None] | None = None) -> None:
    """Have the project's Celery application publish over the alias in ``KOMBU_POOLS_CELERY``, if there is one.

    Wrong settings are left to those who report them: Celery keeps its own pools then.

    :param then: called with the adopted application when it is finalized.
    """
    try:
        using = celery_alias()
    except ImproperlyConfigured:
        return
    if using is not None:
        from kombu_pools_ext.contrib.celery.project import adopt_project

        adopt_project(using, project_pools, then=then)


def _secret() -> str | bytes | None:
    try:
        return django_settings.SECRET_KEY or None
    except ImproperlyConfigured:
        # Django raises this if SECRET_KEY is empty.
        return None


def _former_secrets() -> list[str | bytes]:
    return list(django_settings.SECRET_KEY_FALLBACKS or ())


def control_settings(aliases: Collection[str]) -> ControlSettings:
    """Return the checked value of ``KOMBU_POOLS_CONTROL``.

    :param aliases: the aliases that BROADCAST may name.
    :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
    """
    value = getattr(django_settings, CONTROL, None)
    try:
        return parse_control(
            value,
            aliases,
            name=CONTROL,
            secret=_secret(),
            beside=misspelt_names(CONTROL),
        )
    except SettingsError as error:
        raise PoolsImproperlyConfigured(error.problems, error.name) from None


_control: Control | None = None


def control() -> Control:
    """Return the ``Control`` of this project. It is made at the first call; then commands reach this process too.

    :raises ImproperlyConfigured: :class:`PoolsImproperlyConfigured`, with every problem.
    """
    global _control
    made = _control
    if made is None:
        # Without a secret, the location distinguishes two projects of one user.
        where = [getattr(django_settings, name, None) for name in ("BASE_DIR", "SETTINGS_MODULE")]
        settings = control_settings(pools.settings)
        project = Project(settings, _secret(), f"django {where}", former_secrets=_former_secrets())
        made = _control = attach(pools, project)
    return made


def listen(**what: Any) -> None:
    """Let commands reach this process from now on. Called when a pool is first used; never waits."""
    if _control is not None:
        # control() has attached the pools already, and has its own listener for the first use.
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
    # DEBUG matters if the setting is missing, because then it decides on the default.
    misspelt = _MISSPELT.includes(setting)
    if setting == NAME or misspelt or (setting == "DEBUG" and configured() is None):
        pools.forget_settings()
    broadcasts = _control is not None and _control.project.settings.broadcast is not None
    if (
        setting in (CONTROL, "SECRET_KEY", "SECRET_KEY_FALLBACKS")
        or misspelt
        or (setting == NAME and broadcasts)
    ):
        _control = None
        detach(pools)


setting_changed.connect(_reload, dispatch_uid="kombu_pools")
