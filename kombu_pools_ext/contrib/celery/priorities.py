"""The priority of a message, from how urgent it is: brokers count differently."""

from __future__ import annotations

from typing import Any

from ...settings import PoolSettings
from ...settings.urls import implementation_of

__all__ = ["priority_for"]

#: kombu's, where the transport options have none; the first is the most urgent.
_REDIS_STEPS = (0, 3, 6, 9)


def priority_for(urgency: float, settings: PoolSettings, queue: Any) -> int | None:
    """Return the priority of a message that goes to *queue*.

    On RabbitMQ it is between 0 and the queue's ``x-max-priority``; on Redis it is one of ``priority_steps``, where the
    lowest number is the most urgent.

    :param urgency: from 0 to 1, which is the most urgent.
    :param settings: of the alias.
    :param queue: a :class:`kombu.Queue`, or ``None`` if it is not known.
    :returns: ``None`` if messages in *queue* have no priorities.
    """
    if settings.is_amqp:
        arguments = getattr(queue, "queue_arguments", None) or {}
        highest = arguments.get("x-max-priority") or getattr(queue, "max_priority", None)
        return None if not highest else round(urgency * highest)
    if implementation_of(settings.transport) == "redis":
        steps = sorted(settings.transport_options.get("priority_steps") or _REDIS_STEPS)
        return int(steps[round((1 - urgency) * (len(steps) - 1))])
    return None
