"""The application, for ``INSTALLED_APPS = ["django_app"]``."""

from __future__ import annotations

from django.apps import AppConfig

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
