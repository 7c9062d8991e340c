"""Views of all kinds, each with an alias that is not configured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

from django_app import with_producer


def wrapping(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapper


def plain(request: HttpRequest, producer: Any) -> HttpResponse:
    raise AssertionError("never called")


@with_producer("nope-function")
def function(request: HttpRequest, producer: Any) -> HttpResponse:
    raise AssertionError("never called")


@with_producer("nope-async")
async def asynchronous(request: HttpRequest, producer: Any) -> HttpResponse:
    raise AssertionError("never called")


@wrapping
@with_producer("nope-wrapped")
@wrapping
def wrapped(request: HttpRequest, producer: Any) -> HttpResponse:
    raise AssertionError("never called")


class Methods(View):
    @method_decorator(with_producer("nope-method"))
    def get(self, request: HttpRequest, producer: Any) -> HttpResponse:
        raise AssertionError("never called")

    @with_producer("nope-direct")
    def post(self, request: HttpRequest, producer: Any) -> HttpResponse:
        raise AssertionError("never called")


class Async(View):
    @method_decorator([wrapping, with_producer("nope-async-method")])
    async def get(self, request: HttpRequest, producer: Any) -> HttpResponse:
        raise AssertionError("never called")


@method_decorator(with_producer("nope-named"), name="get")
class Named(View):
    def get(self, request: HttpRequest, producer: Any) -> HttpResponse:
        raise AssertionError("never called")


@method_decorator(with_producer("nope-dispatch"), name="dispatch")
class Dispatched(View):
    pass


class Inherits(Named):
    pass


class Whole(View):
    pass


class Called:
    def __call__(self, request: HttpRequest, producer: Any) -> HttpResponse:
        raise AssertionError("never called")


nested = [path("named/", Named.as_view())]

urlpatterns = [
    path("function/", function),
    path("async/", asynchronous),
    path("wrapped/", wrapped),
    path("partial/", partial(function, number=1)),
    path("of-partial/", with_producer("nope-partial")(partial(plain, number=1))),
    path("methods/", Methods.as_view()),
    path("async-methods/", Async.as_view()),
    path("nested/", include(nested)),
    path("dispatched/", Dispatched.as_view()),
    path("inherits/", Inherits.as_view()),
    path("whole/", with_producer("nope-whole")(Whole.as_view())),
    path("called/", with_producer("nope-called")(Called())),
]
