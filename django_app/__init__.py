"""Broker connection pools for Django, configured in the setting ``KOMBU_POOLS``.

::

    from django_app import publish
    from kombu import Queue

    def order(request):
        publish({"order": 1}, routing_key="orders", declare=[Queue("orders")])

Importing this reads no settings, needs no loaded applications, and opens nothing.
"""

from __future__ import annotations

from .conf import connections, producers
from .decorators import with_producer
from .publishing import apublish, publish, publish_on_commit, submit

__all__ = [
    "apublish",
    "connections",
    "producers",
    "publish",
    "publish_on_commit",
    "submit",
    "with_producer",
]
