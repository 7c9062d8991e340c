import os

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST
from kombu import Producer, Queue

from django_app import connections, publish, publish_on_commit, with_producer

ORDERS = Queue(settings.ORDERS_QUEUE)
INVOICES = Queue("invoices")


class OrderForm(forms.Form):
    order = forms.IntegerField(min_value=1, initial=1)


def as_message(number: int) -> dict[str, object]:
    return {"order": number, "app": "django", "worker": os.getpid()}


def publish_order(number: int) -> dict[str, object]:
    message = as_message(number)
    publish(message, routing_key=ORDERS.name, declare=[ORDERS])
    return message


@require_http_methods(["GET", "POST"])
def page(request: HttpRequest) -> HttpResponse:
    """A form to publish from, and what came of it."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        message = publish_order(form.cleaned_data["order"])
        messages.success(
            request, "Order {order} was published by worker {worker}.".format(**message)
        )
        return redirect("page")
    context = {"form": form, "worker": os.getpid(), "pool": connections["default"]}
    return render(request, "page.html", context)


@csrf_exempt  # for programs, which have no cookie that another site's page could use
@require_POST
def orders(request: HttpRequest) -> JsonResponse:
    """The same for programs: ``curl -d order=7 http://127.0.0.1:8000/orders/``."""
    form = OrderForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    return JsonResponse(publish_order(form.cleaned_data["order"]), status=201)


@csrf_exempt
@require_POST
@with_producer
def orders_up_to(request: HttpRequest, producer: Producer) -> JsonResponse:
    """Many orders through one producer."""
    form = OrderForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    last = form.cleaned_data["order"]
    for number in range(1, last + 1):
        producer.publish(as_message(number), routing_key=ORDERS.name, declare=[ORDERS])
    return JsonResponse({"published": last}, status=201)


@csrf_exempt
@require_POST
def invoices(request: HttpRequest) -> JsonResponse:
    """Accepted although the broker may be away: the message is a row until a relay has published it."""
    form = OrderForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    with transaction.atomic():
        # What else the invoice needs is written in the same transaction.
        message = as_message(form.cleaned_data["order"])
        message_id = publish_on_commit(
            message, INVOICES, using="invoices", key="invoices", declare=[INVOICES]
        )
    return JsonResponse({"message_id": message_id}, status=202)
