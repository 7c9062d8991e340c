"""Django's setting and Flask's key KOMBU_POOLS_CELERY."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
from celery import _state
from flask import Flask

from flask_ext import KombuPools
from flask_ext.errors import PoolsImproperlyConfigured
from kombu_pools_ext.contrib.celery import CannotAdopt, adoption_of
from kombu_pools_ext.errors import SettingsError
from kombu_pools_ext.settings import celery_alias
from kombu_pools_ext.settings.celery_alias import parse_celery_alias
from tests.with_celery.project import Project

# -- the setting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, said",
    [
        ("defualt", "expected the alias of a pool, got 'defualt'; did you mean 'default'"),
        (True, "expected the alias of a pool, got True"),
        ("", "expected the alias of a pool, got ''"),
        ({"USING": "default"}, "expected the alias of a pool"),
    ],
)
def test_a_value_that_is_no_alias_is_refused(value: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_celery_alias(value, {"default": 1})
    assert said in str(caught.value)
    assert "KOMBU_POOLS_CELERY" in str(caught.value)


def test_without_celery_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_celery_alias("default", None) == "default"
    assert parse_celery_alias(None, None) is None
    monkeypatch.setattr(celery_alias, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install \"kombu-pools-ext\[celery\]\""):
        parse_celery_alias("default", None)


# -- Django ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, amqp_url: str) -> Iterator[Project]:
    made = Project(tmp_path, amqp_url)
    yield made
    made.delete()


ASSERTS = """
import threading
from celery import current_app
from kombu_pools_ext.contrib.celery import adoption_of
from project.tasks import add

add.delay(1)
assert adoption_of(current_app) == "default"
thread = threading.Thread(target=add.delay, args=(2,))
thread.start()
thread.join()
from django_app import connections
assert connections["default"].stats().acquires
"""


def test_tasks_of_a_django_project_go_over_the_alias(project: Project) -> None:
    project.script(
        ASSERTS
        + """
from django.db import transaction

with transaction.atomic():
    add.delay_on_commit(3)
    add.delay(4)
    assert connections["default"].stats().lent == 0
"""
    )
    assert project.arguments() == [1, 2, 4, 3]


def test_an_application_that_is_made_after_the_start_is_adopted_when_it_is_finalized(
    project: Project,
) -> None:
    project.write("__init__", "")
    project.script(f"import project.celery\n{ASSERTS}")
    assert project.arguments() == [1, 2]


def test_without_the_setting_celery_is_not_imported(project: Project) -> None:
    project.write("settings", "KOMBU_POOLS_CELERY = None", "a")
    project.write("__init__", "")
    project.script("import sys\nassert 'celery' not in sys.modules")
    assert project.run("-m", "django", "check").returncode == 0


def test_right_settings_pass_the_checks(project: Project) -> None:
    done = project.run("-m", "django", "check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line, said",
    [
        ("KOMBU_POOLS_CELERY = 'audit'", "kombu_pools.E007"),
        ("KOMBU_POOLS_CELERI = 'default'", "did you mean KOMBU_POOLS_CELERY?"),
        ("CELERY_BROKER_URL = 'amqp://elsewhere//'", "kombu_pools.E008"),
    ],
)
def test_wrong_settings_are_found_by_the_checks(project: Project, line: str, said: str) -> None:
    project.write("settings", line, "a")
    done = project.run("-m", "django", "check")
    assert done.returncode != 0
    assert said in done.stderr


def test_a_server_logs_a_wrong_setting_and_a_task_to_another_broker_is_refused(
    project: Project,
) -> None:
    project.write("settings", "CELERY_BROKER_URL = 'amqp://elsewhere//'", "a")
    project.script(
        """
        from kombu_pools_ext.contrib.celery import CannotAdopt
        from project.tasks import add
        try:
            add.delay(1)
        except CannotAdopt as error:
            assert "@elsewhere" in str(error)
        else:
            raise AssertionError
        """
    )
    project.write("settings", "KOMBU_POOLS_CELERY = 5", "a")
    done = project.run("-c", "import django; django.setup()")
    assert done.returncode == 0
    assert "Celery publishes over its own pools" in done.stderr
    assert "expected the alias of a pool, got 5" in done.stderr


# -- Flask -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[celery.Celery]]:
    """Applications that end with the test, and hooks of Celery as before."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    monkeypatch.setattr(_state, "default_app", None)
    made: list[celery.Celery] = []
    yield made
    for one in made:
        one.close()


def celery_of(app: Flask, made: list[celery.Celery], url: str) -> celery.Celery:
    """Make the Celery application of *app*, as Flask's documentation does."""
    one = celery.Celery(app.name, broker=url, set_as_current=False)
    one.conf.task_ignore_result = True
    one.set_default()
    app.extensions["celery"] = one
    made.append(one)
    return one


def flask_app(url: str, **config: Any) -> Flask:
    app = Flask("shop")
    app.config.update({"KOMBU_POOLS_URL": url, "KOMBU_POOLS_CELERY": "default", **config})
    return app


def test_tasks_of_a_flask_application_go_over_its_pools(
    made: list[celery.Celery], amqp_url: str, queue_of_celery: str
) -> None:
    app = flask_app(amqp_url)
    tasks = celery_of(app, made, amqp_url)
    KombuPools(app)
    assert adoption_of(tasks) == "default"
    tasks.send_task("add", (1,), queue=queue_of_celery)
    pool = app.extensions["kombu_pools"].connections["default"]
    assert pool.stats().acquires == 1
    assert pool.stats().lent == 0


def test_the_order_of_the_extensions_does_not_matter(
    made: list[celery.Celery], amqp_url: str
) -> None:
    apps = [flask_app(amqp_url) for _ in range(2)]
    for app in apps:
        KombuPools(app)
        tasks = celery_of(app, made, amqp_url)
        tasks.finalize()
        assert adoption_of(tasks) == "default"
        assert tasks.amqp_cls.find_pools() is app.extensions["kombu_pools"]


def test_a_default_application_is_adopted_without_the_extension(
    made: list[celery.Celery], amqp_url: str
) -> None:
    app = flask_app(amqp_url)
    KombuPools(app)
    tasks = celery_of(app, made, amqp_url)
    del app.extensions["celery"]
    other = celery.Celery(set_as_current=False)
    made.append(other)
    other.finalize()
    assert adoption_of(other) is None
    tasks.finalize()
    assert adoption_of(tasks) == "default"


def test_wrong_settings_of_flask_are_refused_at_once(
    made: list[celery.Celery], amqp_url: str
) -> None:
    with pytest.raises(PoolsImproperlyConfigured, match="KOMBU_POOLS_CELERY"):
        KombuPools(flask_app(amqp_url, KOMBU_POOLS_CELERY="audit"))
    with pytest.raises(PoolsImproperlyConfigured, match="did you mean KOMBU_POOLS_CELERY"):
        KombuPools(flask_app(amqp_url, KOMBU_POOLS_CELERI="default"))
    app, other = flask_app(amqp_url), flask_app(amqp_url)
    tasks = celery_of(app, made, amqp_url)
    KombuPools(app)
    other.extensions["celery"] = tasks
    with pytest.raises(CannotAdopt, match="already"):
        KombuPools(other)


@pytest.fixture
def queue_of_celery(amqp_url: str) -> Iterator[str]:
    name = f"flask-{uuid.uuid4().hex}"
    yield name
    with kombu.Connection(amqp_url) as connection:
        kombu.Queue(name)(connection.default_channel).delete()
        kombu.Exchange(name)(connection.default_channel).delete()
