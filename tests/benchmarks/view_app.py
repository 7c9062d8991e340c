"""The application of the view cases, for gunicorn: a view that publishes in the way that BENCH_WAY names."""

from __future__ import annotations

import atexit
import os
import time
from contextlib import ExitStack
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from .case import BODY, OURS, Setting
from .ways import OVER_LEASES, PATIENCE, WAYS, Publish, our_settings

__all__ = ["application"]

#: Ends what was opened, when the worker ends.
opened = ExitStack()
atexit.register(opened.close)


def start(way: str, setting: Setting) -> Publish:
    """Set Django up; give the function that publishes."""
    common: dict[str, Any] = {
        "SECRET_KEY": "of no use",
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "ROOT_URLCONF": __name__,
        "MIDDLEWARE": [],
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["console"], "level": "WARNING"},
        },
    }
    if way not in (OURS, OVER_LEASES):
        settings.configure(**common)
        django.setup()
        return opened.enter_context(WAYS[way](setting))
    alias = setting.settings(confirm=True, **our_settings(way), ACQUIRE_TIMEOUT=PATIENCE)
    settings.configure(**common, INSTALLED_APPS=["django_app"], KOMBU_POOLS={"default": alias})
    django.setup()
    from django_app import publish

    return lambda: publish(BODY, setting.queue)


publish_order = start(
    os.environ["BENCH_WAY"], Setting(os.environ["BENCH_URL"], queue=os.environ["BENCH_QUEUE"])
)


def order(request: HttpRequest) -> HttpResponse:
    """Publish an order."""
    publish_order()
    return HttpResponse("ok")


def processor(request: HttpRequest) -> HttpResponse:
    """The processor time that this worker has used, in seconds."""
    return HttpResponse(str(time.process_time()))


urlpatterns = [path("", order), path("processor", processor)]
application = get_wsgi_application()
