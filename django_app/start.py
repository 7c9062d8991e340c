"""Report wrong settings when a server starts, before the first use of the pools."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import FrameType

from django.core.exceptions import ImproperlyConfigured

from kombu_pools_ext.documentation import Page
from kombu_pools_ext.errors import SettingsError
from kombu_pools_ext.settings.sources import is_function, problems_unasked

from . import conf

__all__ = ["report_problems"]

logger = logging.getLogger("kombu_pools_ext.django")


def report_problems() -> None:
    """Log what is wrong with the settings, at level ERROR. Never raises, and opens nothing.

    The start is not stopped, because the process may never use a pool. For Django's own commands nothing is logged,
    because the system checks report the same.
    """
    if _is_management_command():
        return
    try:
        for message in _problems():
            logger.error("%s", message)
    except Exception:
        # A setting may be an object of any class, whose methods may raise any error.
        logger.exception("%s cannot be read; each use of the pools will fail", conf.NAME)


def _is_management_command() -> bool:
    """Return whether `manage.py` or `django-admin` sets Django up, whatever the script is called."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "django.core.management":
            return True
        frame = frame.f_back
    return False


def _problems() -> Iterator[str]:
    try:
        configured = conf.configured()
        if is_function(configured):
            # The function is not called, because it may wait for a secrets store.
            if found := [*conf.misspelt_names(conf.NAME), *problems_unasked(configured)]:
                raise SettingsError(found, conf.NAME)
            return
        settings = conf.read_settings()
    except SettingsError as error:
        yield f"each use of the pools will fail, because the settings are wrong (see {Page.SETTINGS}):\n{error}"
        return
    for alias, one in settings.items():
        missing = one.missing_driver()
        if missing:
            yield f"each use of the pool {alias!r} will fail: {missing}"
    try:
        conf.celery_alias(settings)
    except SettingsError as error:
        yield f"Celery publishes over its own pools, because the settings are wrong:\n{error}"
    try:
        conf.control_settings(settings)
    except ImproperlyConfigured as error:
        conf.say_unreachable(str(error), logging.ERROR)
