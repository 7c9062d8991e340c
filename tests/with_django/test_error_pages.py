"""Django's error pages and mails show no password of ``KOMBU_POOLS``, in either of the recommended forms."""

from __future__ import annotations

import logging
import sys
from typing import Any

import django
import pytest
from django.core import mail
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter, get_default_exception_reporter_filter

from django_app import publish
from kombu_pools_ext.errors import BrokerUnreachable

SECRET = "s3cr3t-Pa55"
OURS = "django_app.debug.SafeExceptionReporterFilter"

# Nobody listens there.
PARTS: dict[str, Any] = {"HOST": "127.0.0.1", "PORT": 1, "USER": "app", "PASSWORD": SECRET}
URL = f"amqp://app:{SECRET}@127.0.0.1:1//"
#: Ways to write a password into the settings, and the filter that each of them needs.
FORMS: dict[str, tuple[Any, str | None]] = {
    "parts": ({"default": PARTS}, None),
    "parts, lower case": ({"default": {key.lower(): one for key, one in PARTS.items()}}, None),
    "parts, in a list": ({"default": {**PARTS, "HOST": ["127.0.0.1", "::1"]}}, None),
    "URL": ({"default": {"URL": URL}}, OURS),
    "URL alone": ({"default": URL}, OURS),
    "URLs": ({"default": {"URL": [URL, f"amqp://b:{SECRET}@[::1]:1//"]}}, OURS),
    "URLs in a text": ({"default": {"URL": f"{URL};amqp://b:{SECRET}@[::1]:1//"}}, OURS),
}


def fail(request: HttpRequest) -> HttpResponse:
    publish({"it": 1}, "q", acquire_timeout=0.2)
    return HttpResponse("not reached")


urlpatterns = [path("fail/", fail)]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Any:
    pools, reporter = FORMS[request.param]
    for alias in pools.values():
        if isinstance(alias, dict):
            alias.setdefault("OUTAGE_PATIENCE", 0)
    changed = {"KOMBU_POOLS": pools, "ROOT_URLCONF": __name__, "ALLOWED_HOSTS": ["*"]}
    if reporter is not None:
        changed["DEFAULT_EXCEPTION_REPORTER_FILTER"] = reporter
    get_default_exception_reporter_filter.cache_clear()
    with override_settings(**changed):
        yield
    get_default_exception_reporter_filter.cache_clear()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("debug", [True, False])
def test_the_error_page_shows_no_password(debug: bool) -> None:
    with override_settings(DEBUG=debug):
        client = Client(raise_request_exception=False)
        answer = client.get("/fail/")
    assert answer.status_code == 500
    page = answer.content.decode()
    # The page has the settings, where it is the one for debugging.
    assert ("KOMBU_POOLS" in page) == debug
    assert SECRET not in page


LOCMEM = "django.core.mail.backends.locmem.EmailBackend"
#: What keeps mails in mail.outbox; Django 6.1 renamed it.
IN_MEMORY: dict[str, Any] = (
    {"MAILERS": {"default": {"BACKEND": LOCMEM}}}
    if django.VERSION >= (6, 1)
    else {"EMAIL_BACKEND": LOCMEM}
)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("html", [True, False])
def test_the_error_mail_shows_no_password(html: bool) -> None:
    request = RequestFactory().get("/fail/")
    with pytest.raises(BrokerUnreachable) as caught:
        fail(request)
    record = logging.LogRecord("django.request", logging.ERROR, "", 0, "it failed", None, None)
    record.exc_info = (type(caught.value), caught.value, caught.value.__traceback__)
    record.request = request  # type: ignore[attr-defined]
    with override_settings(
        DEBUG=False,
        ADMINS=["admin@example.com"] if django.VERSION >= (6, 0) else [("A", "admin@example.com")],
        **IN_MEMORY,
    ):
        mail.outbox = []
        AdminEmailHandler(include_html=html).emit(record)
        (sent,) = mail.outbox
    said = f"{sent.subject} {sent.body}" + "".join(
        str(content) for content, _ in getattr(sent, "alternatives", ())
    )
    assert "KOMBU_POOLS" in said
    assert SECRET not in said


@override_settings(KOMBU_POOLS={"default": URL})
def test_djangos_own_filter_shows_the_password_in_a_url() -> None:
    get_default_exception_reporter_filter.cache_clear()
    try:
        raise LookupError
    except LookupError:
        page = ExceptionReporter(None, *sys.exc_info()).get_traceback_text()
    assert URL in page


@override_settings(
    DEFAULT_EXCEPTION_REPORTER_FILTER=OURS,
    THIS={"a": [("redis://:pw@h/0",)], "PASSWORD": "x"},
    THAT="see https://example.com/ for more",
)
def test_passwords_in_other_settings_are_masked_and_nothing_else() -> None:
    get_default_exception_reporter_filter.cache_clear()
    shown = ExceptionReporter(None, None, None, None).filter.get_safe_settings()
    assert shown["THIS"] == {"a": [("redis://:**@h/0",)], "PASSWORD": "*" * 20}
    assert shown["THAT"] == "see https://example.com/ for more"
    get_default_exception_reporter_filter.cache_clear()
