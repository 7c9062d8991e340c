"""The settings and the only view of a Django project whose KOMBU_POOLS are wrong."""

from __future__ import annotations

import os

from django.http import HttpRequest, JsonResponse
from django.urls import path

SECRET_KEY = "for tests"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django_app"]
ROOT_URLCONF = __name__
KOMBU_POOLS = {"default": {"URL": "amqp://localhost//", "LIMT": 3}}


def pid(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"pid": os.getpid()})


urlpatterns = [path("", pid)]
