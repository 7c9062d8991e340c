"""The outbox: messages as rows of the application's transactions, which a relay brings to the broker.

::

    INSTALLED_APPS = [..., "django_app", "django_app.outbox"]

``manage.py migrate`` makes the tables. ``publish_on_commit(…, outbox=True)`` writes a row, and ``manage.py kombu_pools
relay`` publishes it.
"""

from __future__ import annotations

from .inbox import claim
from .writing import bulk

__all__ = ["bulk", "claim"]
