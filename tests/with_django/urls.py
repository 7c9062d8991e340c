"""Views as an application has them. Each publishes to the queue that the request names."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from kombu import Producer, Queue

from django_app import apublish, publish, publish_on_commit, with_producer


def publishes(request: HttpRequest, queue: str) -> HttpResponse:
    publish({"from": "publish"}, queue, declare=[Queue(queue, auto_delete=True)])
    return HttpResponse("published")


async def awaits(request: HttpRequest, queue: str) -> HttpResponse:
    await apublish({"from": "apublish"}, queue, declare=[Queue(queue, auto_delete=True)])
    return HttpResponse("published")


def commits(request: HttpRequest, queue: str) -> HttpResponse:
    with transaction.atomic():
        publish_on_commit({"from": "commit"}, queue, declare=[Queue(queue, auto_delete=True)])
    return HttpResponse("committed")


@with_producer()
def decorated(request: HttpRequest, queue: str, producer: Producer) -> HttpResponse:
    producer.publish(
        {"from": "decorated"}, routing_key=queue, declare=[Queue(queue, auto_delete=True)]
    )
    return HttpResponse("published")


@with_producer
async def decorated_async(request: HttpRequest, queue: str, producer: Producer) -> HttpResponse:
    await sync_to_async(producer.publish)(
        {"from": "async"}, routing_key=queue, declare=[Queue(queue, auto_delete=True)]
    )
    return HttpResponse("published")


class Methods(View):
    @method_decorator(with_producer("default"))
    def get(self, request: HttpRequest, queue: str, producer: Producer) -> HttpResponse:
        producer.publish(
            {"from": "get"}, routing_key=queue, declare=[Queue(queue, auto_delete=True)]
        )
        return HttpResponse("published")

    @with_producer("default")
    def post(self, request: HttpRequest, queue: str, producer: Producer) -> HttpResponse:
        producer.publish(
            {"from": "post"}, routing_key=queue, declare=[Queue(queue, auto_delete=True)]
        )
        return HttpResponse("published")


nested = [path("<str:queue>/", decorated)]

urlpatterns = [
    path("publishes/<str:queue>/", publishes),
    path("awaits/<str:queue>/", awaits),
    path("commits/<str:queue>/", commits),
    path("decorated/", include(nested)),
    path("async/<str:queue>/", decorated_async),
    path("methods/<str:queue>/", Methods.as_view()),
]
