"""The application, for ``INSTALLED_APPS = ["django_app", "django_app.outbox"]``."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["OutboxConfig"]


class OutboxConfig(AppConfig):
    """Has the tables of the outbox and of the inbox, and shows the outbox in Django's admin."""

    name = "django_app.outbox"
    label = "kombu_pools_outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the check."""
        from . import checks  # noqa: F401  # importing it registers it
