"""The blueprint for probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_ext import KombuPools
from flask_ext.errors import PoolsImproperlyConfigured
from flask_ext.health import health

NOWHERE = "amqp://guest:guest@localhost:1//"


@pytest.fixture
def app(amqp_url: str) -> Iterator[Flask]:
    made = Flask("shop")
    made.config["KOMBU_POOLS"] = {"default": amqp_url, "gone": NOWHERE}
    made.config["KOMBU_POOLS_HEALTH"] = {
        "DETAILS": lambda request: request.headers.get("X-Secret") == "s3cret"
    }
    KombuPools(made)
    made.register_blueprint(health, url_prefix="/health")
    yield made
    made.extensions["kombu_pools"].reset()


def get(app: Flask, address: str, **headers: str) -> Any:
    return app.test_client().get(f"/health/{address}", headers=headers)


def test_a_process_that_answers_is_alive(app: Flask) -> None:
    response = get(app, "live/")
    assert (response.status_code, response.json) == (200, {"condition": "ok"})
    assert response.headers["Cache-Control"] == "no-store"


def test_readiness_of_one_alias_and_of_all(app: Flask) -> None:
    response = get(app, "ready/default/")
    assert response.status_code == 200
    assert response.json == {"condition": "ok", "aliases": {"default": "ok"}}
    response = get(app, "ready/")
    assert response.status_code == 503
    assert response.json == {"condition": "down", "aliases": {"default": "ok", "gone": "down"}}
    assert "gone" in get(app, "ready/", **{"X-Secret": "s3cret"}).json["reasons"]
    assert get(app, "ready/orders/").status_code == 404


def test_two_applications_have_their_own_settings(app: Flask, amqp_url: str) -> None:
    other = Flask("other")
    other.config["KOMBU_POOLS_URL"] = NOWHERE
    other.config["KOMBU_POOLS_HEALTH"] = {"STATUS": {"down": 299}}
    KombuPools(other)
    other.register_blueprint(health, url_prefix="/health")
    assert get(other, "ready/").status_code == 299
    assert get(app, "ready/").status_code == 503


def test_wrong_settings_are_told_when_it_is_registered(amqp_url: str) -> None:
    app = Flask("shop")
    app.config["KOMBU_POOLS_URL"] = amqp_url
    app.config["KOMBU_POOLS_HEALTH"] = {"FRESH": 0}
    KombuPools(app)
    with pytest.raises(PoolsImproperlyConfigured, match="KOMBU_POOLS_HEALTH"):
        app.register_blueprint(health)
