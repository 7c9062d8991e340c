"""Which applications of Celery send their tasks by way of the outbox."""

from __future__ import annotations

from typing import Any

from kombu_pools_ext.contrib.celery.adopted_amqp import AdoptedAMQP

from ..conf import pools

__all__ = ["has_outbox"]


def has_outbox(app: Any) -> bool:
    """Return whether tasks of *app* that wait for a commit become rows: it is adopted, and its alias has ``OUTBOX``."""
    amqp_cls = app.amqp_cls
    return (
        isinstance(amqp_cls, AdoptedAMQP)
        and amqp_cls.find_pools() is pools
        and pools.settings_of(amqp_cls.using).outbox
    )
