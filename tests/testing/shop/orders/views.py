"""An order is placed: two messages and a task, on commit."""

from billing.tasks import charge
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from kombu import Exchange, Queue

from django_app import apublish, publish_on_commit

ORDERS = Queue("orders")
AUDIT = Queue("audit", Exchange("audit", "fanout"))


@transaction.atomic
def place(request: HttpRequest, number: int) -> HttpResponse:
    """Place an order; one with the number 0 is refused, after all."""
    publish_on_commit({"order": number}, ORDERS, declare=[ORDERS])
    publish_on_commit({"order": number}, exchange=AUDIT.exchange, declare=[AUDIT], using="audit")
    charge.delay_on_commit(number)
    if number == 0:
        transaction.set_rollback(True)
        return HttpResponse("no such order", status=400)
    return HttpResponse("ordered")


async def status(request: HttpRequest, number: int) -> HttpResponse:
    """Ask for the state of an order, in a coroutine."""
    await apublish({"status of": number}, ORDERS, declare=[ORDERS])
    return HttpResponse("asked")
