"""Mask the passwords in URLs on error pages and in mails: Django masks settings only by name, such as ``PASSWORD``."""

from __future__ import annotations

from typing import Any

from django.views import debug

from kombu_pools_ext.masking import mask_url

__all__ = ["SafeExceptionReporterFilter"]


class SafeExceptionReporterFilter(debug.SafeExceptionReporterFilter):
    """Django's filter, which also masks the password of each URL in the settings, whatever the setting is called.

    For ``DEFAULT_EXCEPTION_REPORTER_FILTER = "django_app.debug.SafeExceptionReporterFilter"``.
    """

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """Return *value* with its passwords masked, as an error page may show it."""
        cleansed = super().cleanse_setting(key, value)
        # Django also calls this for each value of a dict or list.
        if isinstance(cleansed, str) and "@" in cleansed.partition("://")[2]:
            return mask_url(cleansed)
        return cleansed
