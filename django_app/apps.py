"""The application, for ``INSTALLED_APPS = ["django_app"]``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.conf import settings

__all__ = ["KombuPoolsConfig"]


class KombuPoolsConfig(AppConfig):
    """Registers the checks and signals, and lets commands reach the process."""

    name = "django_app"
    label = "kombu_pools"
    verbose_name = "Broker connection pools"

    def ready(self) -> None:
        """Register checks and signals, log wrong settings, listen for commands from the first use of a pool on, and
        have Celery publish over the pools if ``KOMBU_POOLS_CELERY`` is set.

        If a pool was used already, at an import or in the ``ready()`` of an earlier application, it listens from now
        on. Nothing else is opened, and the settings are read again when a pool is first used.
        """
        from kombu_pools_ext import events

        from . import checks, conf, signals, start  # noqa: F401  # importing them registers them
        from .celery_on_commit import offer_to

        events.demand.connect(conf.listen)
        start.report_problems()
        conf.adopt_celery(offer_to)
        if _has_celery_backend(getattr(settings, "TASKS", None)):
            # Registers the task that a worker runs Django's with. Without Django 6 or Celery, the first use says so.
            with suppress(ModuleNotFoundError):
                import_module("django_app.tasks")


def _has_celery_backend(tasks: Any) -> bool:
    """Return whether a backend in ``TASKS`` is ours."""
    if not isinstance(tasks, Mapping):
        return False
    return any(
        isinstance(one, Mapping) and str(one.get("BACKEND")).startswith("django_app.tasks.")
        for one in tasks.values()
    )
