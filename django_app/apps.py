"""The application, for ``INSTALLED_APPS = ["django_app"]``."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["KombuPoolsConfig"]


class KombuPoolsConfig(AppConfig):
    """Connects the checks and the signals."""

    name = "django_app"
    label = "kombu_pools"
    verbose_name = "Broker connection pools"

    def ready(self) -> None:
        """Register checks and signals; opens nothing, and reads no setting."""
        from . import checks, signals  # noqa: F401  # importing them registers them
