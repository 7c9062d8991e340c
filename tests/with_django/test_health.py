"""The views for probes, and the check for django-health-check."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import Client, override_settings
from django.urls import include, path
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from django_app import conf
from django_app.health_check import KombuPools
from django_app.health_settings import probe

urlpatterns = [path("health/", include("django_app.health"))]

NOWHERE = "amqp://guest:guest@localhost:1//"


def may_look(request: HttpRequest) -> bool:
    return request.headers.get("X-Secret") == "s3cret"


@pytest.fixture(autouse=True)
def _urls(amqp_url: str) -> Any:
    pools = {"default": amqp_url, "gone": NOWHERE}
    with override_settings(ROOT_URLCONF=__name__, KOMBU_POOLS=pools):
        yield


def get(address: str, **headers: str) -> Any:
    return Client().get(f"/health/{address}", headers=headers)


def test_a_process_that_answers_is_alive_whatever_the_broker_does() -> None:
    response = get("live/")
    assert (response.status_code, response.json()) == (200, {"condition": "ok"})
    assert "no-store" in response["Cache-Control"]
    assert conf.pools.connections["gone"].stats().acquires == 0


def test_an_alias_that_can_be_published_to_is_ready() -> None:
    response = get("ready/default/")
    assert response.status_code == 200
    assert response.json() == {"condition": "ok", "aliases": {"default": "ok"}}


def test_one_alias_that_is_down_makes_all_unready_and_names_no_broker() -> None:
    response = get("ready/")
    assert response.status_code == 503
    assert response.json() == {
        "condition": "down",
        "aliases": {"default": "ok", "gone": "down"},
    }


def test_reasons_are_for_those_who_may_see_them() -> None:
    with override_settings(KOMBU_POOLS_HEALTH={"DETAILS": f"{__name__}.may_look"}):
        assert "reasons" not in get("ready/").json()
        reasons = get("ready/", **{"X-Secret": "s3cret"}).json()["reasons"]
    assert "gone" in reasons
    assert "guest:guest" not in str(reasons)


def test_the_status_can_be_set() -> None:
    with override_settings(KOMBU_POOLS_HEALTH={"STATUS": {"down": 299}}):
        assert get("ready/").status_code == 299


def test_an_unknown_alias_is_not_found() -> None:
    assert get("ready/orders/").status_code == 404


def test_wrong_settings_are_found_by_a_check() -> None:
    with override_settings(KOMBU_POOLS_HEALTH={"FRESH": -1, "STATUSS": {}}):
        messages = [one for one in run_checks() if one.id == "kombu_pools.E013"]
        assert len(messages) == 2
        assert all(
            "probe-it.html" in str(one.hint) or "STATUS" in str(one.hint) for one in messages
        )
        with pytest.raises(ImproperlyConfigured, match="KOMBU_POOLS_HEALTH"):
            probe()
    with override_settings(KOMBU_POOLS_HELTH={}):
        (message,) = [one for one in run_checks() if one.id == "kombu_pools.E013"]
        assert "KOMBU_POOLS_HEALTH" in f"{message.msg} {message.hint}"


def test_django_health_check_has_the_condition_for_its_error() -> None:
    result = asyncio.run(KombuPools(using="default").get_result())
    assert result.error is None
    result = asyncio.run(KombuPools().get_result())
    assert isinstance(result.error, ServiceUnavailable)
    assert "gone: down" in str(result.error)
    with override_settings(KOMBU_POOLS_HEALTH={"STATUS": {"down": 200}}):
        result = asyncio.run(KombuPools().get_result())
    assert isinstance(result.error, ServiceWarning)
