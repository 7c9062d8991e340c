"""A Django project, set up once, and fixtures for its tests."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import django
import kombu
import pytest
from django.conf import settings

from tests.databases import pymysql_for_django

if not settings.configured:
    pymysql_for_django.install()
    # Not left in the environment, where the child processes of other tests would find it.
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.with_django.settings"
    django.setup()
    del os.environ["DJANGO_SETTINGS_MODULE"]

from django.db import connections as databases
from django.test import override_settings

from django_app import decorators

_numbers = itertools.count(1)

Configure = Callable[..., override_settings]


@pytest.fixture(autouse=True)
def _databases_closed() -> Iterator[None]:
    yield
    databases.close_all()


@pytest.fixture(autouse=True)
def _used_aliases_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decorators, "used_aliases", decorators.used_aliases, raising=True)
    for alias in [one for one in decorators.used_aliases if one != "default"]:
        monkeypatch.delitem(decorators.used_aliases, alias)


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test uses."""
    return f"with-django-{uuid.uuid4().hex}"


@pytest.fixture
def memory_url() -> str:
    """A broker in memory whose pools only this test uses."""
    return f"memory://django{next(_numbers)}"


@pytest.fixture
def configure(memory_url: str) -> Iterator[Callable[..., None]]:
    """Sets the alias ``default``, on a broker in memory unless the keywords say otherwise, until the test ends."""
    overrides: list[override_settings] = []

    def configure(pools: Any = None, **keywords: Any) -> None:
        override = override_settings(
            KOMBU_POOLS=pools or {"default": {"URL": memory_url, **keywords}}
        )
        override.enable()
        overrides.append(override)

    yield configure
    for override in reversed(overrides):
        override.disable()


def receive(url: str, queue: str) -> Any:
    """The body of the next message in *queue*."""
    with kombu.Connection(url) as connection:
        simple = connection.SimpleQueue(kombu.Queue(queue, auto_delete=True))
        try:
            message = simple.get(timeout=30)
            message.ack()
            return message.decode()
        finally:
            simple.close()


def until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until *what* is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
