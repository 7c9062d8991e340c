"""Django's own tasks by way of the outbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest

if django.VERSION < (6,):
    pytest.skip("django.tasks comes with Django 6.0", allow_module_level=True)

from django.core.management import call_command
from django.db import transaction
from django.test import override_settings

from django_app.outbox.models import OutboxMessage
from tests.databases import Database
from tests.with_django import jobs
from tests.with_django.test_celery_on_commit import Shop

from .conftest import Use, make_tables


class Undone(Exception):
    """What a test rolls a transaction back with."""


@pytest.fixture
def shop(
    configure: Callable[..., None], memory_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    configure({"default": {"URL": memory_url, "OUTBOX": True}})
    made = Shop(memory_url, queue)
    monkeypatch.setattr("django_app.task_options.default_app", lambda: made.app)
    yield made
    made.app.close()


@pytest.fixture
def backend() -> Iterator[Callable[..., None]]:
    overrides: list[override_settings] = []

    def set_backend(**options: Any) -> None:
        overrides.append(
            override_settings(
                TASKS={
                    "default": {
                        "BACKEND": "django_app.tasks.CeleryBackend",
                        "QUEUES": ["default", "mail"],
                        "OPTIONS": options,
                    }
                }
            )
        )
        overrides[-1].enable()

    yield set_backend
    for one in reversed(overrides):
        one.disable()


@pytest.mark.parametrize("on_commit", [False, True])
def test_a_task_of_a_transaction_becomes_a_row_of_it(
    tables: Database, shop: Shop, backend: Callable[..., None], on_commit: bool
) -> None:
    backend(on_commit=on_commit)
    with transaction.atomic():
        result = jobs.add.enqueue(1, 2)
        with pytest.raises(Undone), transaction.atomic():
            jobs.add.enqueue(3, 4)
            raise Undone
        assert shop.arrived() == []
    assert OutboxMessage.objects.count() == 1
    call_command("kombu_pools", "relay", "--once")
    (message,) = shop.arrived()
    assert message.headers["id"] == result.id
    assert message.payload[0] == [jobs.add.module_path, [1, 2], {}]


def test_a_task_goes_where_its_transaction_is(
    tables_in_a_file: Database,
    shop: Shop,
    backend: Callable[..., None],
    use: Use,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    use("other", Database("sqlite", str(tmp_path_factory.mktemp("other") / "database")))
    make_tables("other")
    backend(on_commit="other")
    with transaction.atomic(using="other"):
        jobs.add.enqueue(1, 2)
    assert OutboxMessage.objects.count() == 0
    assert OutboxMessage.objects.using("other").count() == 1


def test_outside_a_transaction_a_task_is_sent_unless_it_waits_for_commits(
    tables_in_a_file: Database, shop: Shop, backend: Callable[..., None]
) -> None:
    backend()
    jobs.add.enqueue(1, 2)
    assert len(shop.arrived()) == 1
    backend(on_commit=True)
    jobs.add.enqueue(1, 2)
    assert shop.arrived() == []
    assert OutboxMessage.objects.count() == 1
