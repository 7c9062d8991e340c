"""Whether the outbox has tables."""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

__all__ = ["NAME", "check_installed"]

#: As ``INSTALLED_APPS`` has it.
NAME = "django_app.outbox"


def check_installed() -> None:
    """Look whether the application of the outbox is installed.

    :raises ImproperlyConfigured: if it is not.
    """
    if not apps.is_installed(NAME):
        raise ImproperlyConfigured(
            f'the outbox has no tables: add "{NAME}" to INSTALLED_APPS, and run manage.py migrate'
        )
