"""Aliases get brokers in memory in the place of their own, whichever framework configures them, and get those back."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from django.test import override_settings
from kombu import Queue

import django_app
from django_app.conf import pools
from flask_ext import KombuPools
from kombu_pools_ext import Pools, configure, producers
from kombu_pools_ext.testing import brokers, swapped_brokers
from kombu_pools_ext.testing.names import host_of, url_of
from tests.with_django import conftest as _set_up  # noqa: F401  # sets Django up

NOWHERE = "amqps://user:secret@broker.invalid//"


def test_the_name_of_an_alias_is_a_host() -> None:
    for name in ("default", "Default", "a b", "é", "-", "x.y_z-1"):
        host = host_of(name)
        assert host == host_of(host)
        assert host == host.lower()
        assert url_of(name) == f"test://{host}"
    assert host_of("Default") != host_of("default")


@pytest.mark.parametrize("alias", ["default", "Übung 1"])
def test_plain_python(alias: str) -> None:
    aliases = configure({alias: {"URL": NOWHERE, "SSL": True, "LIMIT": 3, "CONFIRM_TIMEOUT": 2}})
    with swapped_brokers() as found:
        aliases.publish("x", routing_key="q", declare=[Queue("q")], using=alias)
        assert found.published.one().alias == alias
        assert found[alias].vhost().queues["q"].size
        assert aliases.settings[alias].limit == 3
        with producers[alias].acquire() as producer:
            producer.publish("y", routing_key="q")
        assert len(found.published) == 2
    assert aliases.settings[alias].url == (NOWHERE,)
    assert producers[alias].connections.connection.hostname == "broker.invalid"
    assert len(brokers.published) == 0


def test_what_is_configured_within() -> None:
    with swapped_brokers() as found:
        aliases = Pools(default=NOWHERE)
        aliases.publish("x", routing_key="q", declare=[Queue("q")])
        assert found.published.one().body == "x"
    assert aliases.settings["default"].url == (NOWHERE,)


def test_redis_is_swapped_too() -> None:
    aliases = configure(
        default={"URL": "redis://redis.invalid", "TRANSPORT_OPTIONS": {"visibility_timeout": 5}}
    )
    with swapped_brokers() as found:
        aliases.publish("x", routing_key="q", declare=[Queue("q")])
        assert found.published.one().queues == ("q",)


def test_credentials_are_not_asked_for() -> None:
    def ask() -> Any:
        raise AssertionError("asked")

    aliases = configure(default={"URL": "amqp://broker.invalid//", "CREDENTIALS": ask})
    with swapped_brokers() as found:
        aliases.publish("x", routing_key="q", declare=[Queue("q")])
        assert len(found.published) == 1


def test_each_swap_begins_with_nothing() -> None:
    aliases = configure(default=NOWHERE)
    for _ in range(2):
        with swapped_brokers() as found:
            assert list(found.published) == []
            aliases.publish("x", routing_key="q", declare=[Queue("q")])
            with swapped_brokers():
                assert list(found.published) == []
                aliases.publish("y", routing_key="q", declare=[Queue("q")])
                assert found.published.one().body == "y"
            assert list(found.published) == []


def test_django() -> None:
    with override_settings(KOMBU_POOLS={"default": {"URL": NOWHERE}}):
        with swapped_brokers() as found:
            django_app.publish("x", routing_key="q", declare=[Queue("q")])
            assert found.published.one().body == "x"
        assert pools.settings["default"].url == (NOWHERE,)


@pytest.mark.parametrize("made_within", [True, False])
def test_flask(made_within: bool) -> None:
    def make() -> tuple[flask.Flask, KombuPools]:
        app = flask.Flask("shop")
        app.config["KOMBU_POOLS_URL"] = NOWHERE
        return app, KombuPools(app)

    app, extension = make()
    with swapped_brokers() as found:
        if made_within:
            app, extension = make()
        with app.app_context():
            extension.publish("x", routing_key="q", declare=[Queue("q")])
        assert found.published.one().body == "x"
    assert app.extensions["kombu_pools"].settings["default"].url == (NOWHERE,)


def test_it_ends_with_an_exception_too() -> None:
    aliases = configure(default=NOWHERE)
    with pytest.raises(ZeroDivisionError), swapped_brokers():
        raise ZeroDivisionError
    assert aliases.settings["default"].url == (NOWHERE,)
