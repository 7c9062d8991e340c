from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

import django_app
import kombu_pools_ext
from django_app import conf, connections, producers
from kombu_pools_ext import events
from kombu_pools_ext.errors import SettingsError, UnknownAlias

SECRET = "s3cr3t-word"


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_django_app_can_be_imported_before_django_is_configured() -> None:
    code = """
from django.core.exceptions import ImproperlyConfigured
from django_app import connections, producers, publish, publish_on_commit, with_producer
import django_app.apps, django_app.decorators, django_app.signals
print(repr(connections))
@with_producer("later")
def view(request, producer): ...
for use in (lambda: producers["default"], lambda: publish({}, "q"), lambda: list(connections), lambda: view(None)):
    try:
        use()
    except ImproperlyConfigured as error:
        assert "settings are not configured" in str(error), error
    else:
        raise AssertionError("used without settings")
"""
    assert (
        python(code)
        == "<Connections by alias of <DjangoPools: Django's settings are not configured>>\n"
    )


def test_setting_up_reads_no_setting_and_opens_nothing() -> None:
    code = """
import socket, threading
def refuse(*args, **kwargs): raise AssertionError("it speaks")
socket.socket.connect = socket.getaddrinfo = refuse
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_app"], KOMBU_POOLS={"default": 1})
django.setup()
from django_app import conf
assert conf.pools._settings is None
assert threading.active_count() == 1
"""
    python(code)


def test_the_application() -> None:
    config = apps.get_app_config("kombu_pools")
    assert config.name == "django_app"
    assert config.verbose_name == "Broker connection pools"
    assert (Path(django_app.__file__).parent / "py.typed").exists()
    checks, listeners = set(registry.registered_checks), repr(events.pools_reset)
    config.ready()
    config.ready()
    assert (set(registry.registered_checks), repr(events.pools_reset)) == (checks, listeners)


def test_pools_are_those_of_the_shared_groups(configure: Callable[..., None]) -> None:
    configure(LIMIT=3)
    same = kombu_pools_ext.Pools(default=settings.KOMBU_POOLS["default"])
    assert connections["default"] is same.connections["default"]
    assert producers["default"] is same.producers["default"]
    assert connections["default"].limit == 3
    assert list(connections) == ["default"]
    assert "default" in producers
    assert repr(producers) == "<Producers by alias of <DjangoPools: default>>"


def test_a_url_needs_no_setting() -> None:
    with override_settings(KOMBU_POOLS={"default": -1}):
        with connections["memory://"].acquire() as connection:
            assert connection.connected


def test_an_unknown_alias_is_reported_with_the_known_ones(configure: Callable[..., None]) -> None:
    configure()
    with pytest.raises(
        UnknownAlias, match=r"'defautl'; did you mean 'default'\? \(configured: 'default'\)"
    ):
        producers["defautl"]


def test_without_the_setting_debug_has_one_alias_in_memory() -> None:
    with override_settings(DEBUG=True):
        with override_settings():
            del settings.KOMBU_POOLS
            conf.pools.forget_settings()
            assert list(connections) == ["default"]
            assert conf.pools.settings["default"].transport == "memory"
            with override_settings(DEBUG=False):
                with pytest.raises(
                    ImproperlyConfigured, match="is missing, and DEBUG is off; write KOMBU_POOLS"
                ):
                    producers["default"]
            assert producers["default"]
    conf.pools.forget_settings()
    assert conf.pools.settings["default"].uri == "memory://with-django"


def test_all_problems_are_reported_at_once_without_secrets() -> None:
    wrong = {
        "default": {"URL": f"amqp://guest:{SECRET}@localhost//", "LIMT": 3, "HEARTBEAT": "x"},
        "audit": {"URL": f"nope://u:{SECRET}@h"},
    }
    with override_settings(KOMBU_POOLS=wrong):
        with pytest.raises(ImproperlyConfigured) as told:
            connections["default"]
        assert isinstance(told.value, SettingsError)
        assert [(one.alias, one.key) for one in told.value.problems] == [
            ("audit", "URL"),
            ("default", "HEARTBEAT"),
            ("default", "LIMT"),
        ]
        assert "KOMBU_POOLS['audit']['URL']" in str(told.value)
        assert "did you mean 'LIMIT'?" in str(told.value)
        assert SECRET not in str(told.value)
        assert (
            repr(connections)
            == "<Connections by alias of <DjangoPools: 3 problems in KOMBU_POOLS>>"
        )
        # And again: a wrong setting stays wrong.
        with pytest.raises(ImproperlyConfigured):
            len(producers)


@pytest.mark.parametrize("value", [1, "amqp://localhost//", [], ["default"]])
def test_a_setting_of_another_type(value: Any) -> None:
    with override_settings(KOMBU_POOLS=value):
        with pytest.raises(ImproperlyConfigured, match="KOMBU_POOLS: expected a dict of aliases"):
            connections["default"]


def test_settings_are_overridden_in_both_directions(memory_url: str) -> None:
    outer = connections["default"]
    outer.acquire().release()
    assert outer.stats().size == 1
    with override_settings(KOMBU_POOLS={"default": {"URL": memory_url, "LIMIT": 1}}):
        inner = connections["default"]
        assert inner is not outer
        assert inner.limit == 1
        assert outer.stats().size == 0
        inner.acquire().release()
        assert inner.stats().size == 1
        with override_settings(KOMBU_POOLS={"other": memory_url}):
            assert list(producers) == ["other"]
            assert inner.stats().size == 0
        assert connections["default"].limit == 1
    assert connections["default"].limit == outer.limit
    assert conf.pools.settings["default"].uri == "memory://with-django"


def test_an_unrelated_setting_changes_nothing() -> None:
    pool = connections["default"]
    pool.acquire().release()
    with override_settings(DEBUG=True, SECRET_KEY="another"):
        assert connections["default"] is pool
        assert pool.stats().size == 1


def test_a_pool_that_was_held_before_an_override_stays_usable(memory_url: str) -> None:
    pool = producers["default"]
    with pool.acquire() as lent:
        with override_settings(KOMBU_POOLS={"default": memory_url}):
            lent.publish({}, routing_key="anywhere")
            with pool.acquire(timeout=30) as another:
                another.publish({}, routing_key="anywhere")


def test_a_missing_driver_does_not_affect_other_aliases(
    monkeypatch: pytest.MonkeyPatch, memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with override_settings(KOMBU_POOLS={"default": memory_url, "mongo": "mongodb://h/db"}):
        with connections["default"].acquire():
            pass
        with pytest.raises(ImportError):
            connections["mongo"]
        conf.pools.reset(["default"])
    # In this thread: those of other tests' pools may have something to tell.
    assert [one for one in caplog.records if one.thread == threading.get_ident()] == []
