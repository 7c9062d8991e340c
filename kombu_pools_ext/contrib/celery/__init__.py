"""Celery's publishing over the pools of an alias.

::

    from kombu_pools_ext.contrib.celery import adopt

    app = Celery("shop", broker="amqp://guest:guest@localhost//")
    adopt(app)

It needs Celery 5.4 or newer: ``pip install kombu-pools-ext[celery]``.
"""

from __future__ import annotations

from .adopting import adopt, adoption_of, wrong_with
from .errors import CannotAdopt

__all__ = ["CannotAdopt", "adopt", "adoption_of", "wrong_with"]
