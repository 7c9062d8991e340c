"""Beat's scheduler has a connection of its own to publish on; in an adopted application it publishes as the others."""

from __future__ import annotations

from typing import Any

from celery import signals

from .adopted_amqp import AdoptedAMQP
from .adoption import Adoption

__all__ = ["listen"]


def listen() -> None:
    """Give each scheduler that begins in this process its producer. Calling it again does nothing."""
    signals.beat_init.connect(_begin, weak=False, dispatch_uid="kombu-pools")


def _begin(*, sender: Any, **kwargs: Any) -> None:
    amqp_cls = sender.app.amqp_cls
    if isinstance(amqp_cls, AdoptedAMQP):
        sender.scheduler.Producer = _Producer(amqp_cls.join(sender.app))


class _Producer:
    """Makes the producer of a scheduler, which has waited for the broker before, as long as its settings say."""

    def __init__(self, adoption: Adoption) -> None:
        self._adoption = adoption

    def __call__(self, connection: Any, *args: Any, **kwargs: Any) -> Any:
        connection.release()
        return self._adoption.producers_face.acquire(block=True)
