"""The application, for ``INSTALLED_APPS = ["django_app"]``."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["KombuPoolsConfig"]


class KombuPoolsConfig(AppConfig):
    """Connects the checks, the signals and control."""

    name = "django_app"
    label = "kombu_pools"
    verbose_name = "Broker connection pools"

    def ready(self) -> None:
        """Register checks and signals, log wrong settings, and listen for commands once a pool is used.

        Where one was used already, at an import or in the ``ready()`` of an application that comes before, it listens
        from now on. Nothing else is opened, and the settings are read anew when a pool is first used.
        """
        from kombu_pools_ext import events

        from . import checks, conf, signals, start  # noqa: F401  # importing them registers them

        events.demand.connect(conf.listen)
        start.report_problems()
