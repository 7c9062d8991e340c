"""Views of which one uses an alias that is not configured."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_app import with_producer


@with_producer("defautl")
def misspelt(request: HttpRequest, producer: Any) -> HttpResponse:
    raise AssertionError("never called")


urlpatterns = [path("misspelt/", misspelt)]
