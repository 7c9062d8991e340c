"""Django's setting and Flask's key KOMBU_POOLS_CELERY."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
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
from tests.broker.common import PATIENCE

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

SETTINGS = """
SECRET_KEY = "for this test alone"
INSTALLED_APPS = ["django_app"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
KOMBU_POOLS = {"default": {"URL": URL, "PUBLISH_OVER": "shared"}}
KOMBU_POOLS_CELERY = "default"
CELERY_BROKER_URL = URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = QUEUE
"""
CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
"""
TASKS = """
from celery import shared_task

@shared_task
def add(a, b=0):
    pass
"""


class Project:
    """A Django project with Celery, as Celery's documentation has it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.queue = f"django-{uuid.uuid4().hex}"
        self.write("settings", f"URL = {url!r}\nQUEUE = {self.queue!r}\n{SETTINGS}")
        self.write("celery", CELERY)
        self.write("tasks", TASKS)
        self.write("__init__", "from .celery import app as celery_app")

    def write(self, module: str, text: str, mode: str = "w") -> None:
        file = self.folder / "project" / f"{module}.py"
        file.parent.mkdir(exist_ok=True)
        with file.open(mode) as writing:
            writing.write(textwrap.dedent(text) + "\n")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def script(self, text: str) -> None:
        """Run a program in it, which must end well."""
        done = self.run("-c", f"import django\ndjango.setup()\n{textwrap.dedent(text)}")
        assert done.returncode == 0, done.stdout + done.stderr

    def arguments(self) -> list[Any]:
        """What the tasks in its queue were sent with."""
        found = []
        with kombu.Connection(self.url) as connection:
            bound = kombu.Queue(self.queue)(connection.default_channel)
            while (message := bound.get(no_ack=True)) is not None:
                assert "message_id" in message.properties
                found.append(message.payload[0][0])
        return found

    def delete(self) -> None:
        with kombu.Connection(self.url) as connection:
            kombu.Queue(self.queue)(connection.default_channel).delete()


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
