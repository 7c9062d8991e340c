"""A Django project whose KOMBU_POOLS are wrong, as WSGI, ASGI and Celery servers take it."""

from __future__ import annotations

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "misconfigured_settings"

if folder := os.environ.get("TASKS"):
    import celery

    app = celery.Celery("misconfigured", broker="filesystem://")
    app.conf.broker_transport_options = {
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}/control",
    }
else:
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
    asgi = get_asgi_application()
