"""What workers do."""

from celery import shared_task


@shared_task
def charge(order: int) -> None:
    """Charge an order."""


@shared_task
def remind(order: int) -> None:
    """Remind somebody of an order."""
    charge.delay(order)
