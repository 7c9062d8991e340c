"""Views for probes: ``path("health/", include("django_app.health"))``.

``live/`` says that the process answers, and touches nothing. ``ready/`` says whether the brokers of all aliases can be
published to, ``ready/<alias>/`` whether that of one can. ``KOMBU_POOLS_HEALTH`` says how.
"""

from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from kombu_pools_ext.errors import UnknownAlias

from .health_settings import probe, read_health

__all__ = ["app_name", "live", "ready", "urlpatterns"]


@require_safe
@never_cache
def live(request: HttpRequest) -> HttpResponse:
    """Answer that the process does. A broker that is away is no reason to start it again."""
    return JsonResponse({"condition": "ok"})


@require_safe
@never_cache
def ready(request: HttpRequest, using: str | None = None) -> HttpResponse:
    """Answer how the aliases are, or one of them, with the status that the setting has for the worst of them.

    The answer names aliases and conditions. It has reasons, which may name brokers, if ``DETAILS`` allows this request.

    :raises Http404: for an alias that is not configured.
    """
    try:
        found = probe().look(None if using is None else [using])
    except UnknownAlias:
        # Without the names of those that there are.
        raise Http404("no such alias") from None
    settings = read_health()
    with_reasons = settings.details is not None and bool(settings.details(request))
    return JsonResponse(
        found.as_dict(with_reasons=with_reasons), status=settings.status[found.condition]
    )


app_name = "kombu_pools_health"
urlpatterns = [
    path("live/", live, name="live"),
    path("ready/", ready, name="ready"),
    path("ready/<path:using>/", ready, name="ready-alias"),
]
