"""What an application's tests see of what they have written to the outbox."""

from __future__ import annotations

import unittest
from collections.abc import Callable

import pytest
from django.db import connections, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, modify_settings
from kombu import Queue

from django_app import publish, publish_on_commit
from django_app.outbox.models import OutboxMessage
from django_app.testing import PublishedMixin
from tests.databases import Database

from .conftest import Use, make_tables

QUEUE = Queue("q")


class Undone(Exception):
    """What a test rolls a transaction back with."""


@pytest.fixture(autouse=True)
def _nowhere(configure: Callable[..., None]) -> None:
    configure({"default": {"URL": "amqp://broker.invalid//", "OUTBOX": True}})


def passes(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun > 0
    assert result.wasSuccessful(), result.failures + result.errors


def test_rows_of_a_test_case_are_published_when_it_looks(tables: Database) -> None:
    class Case(PublishedMixin, TestCase):
        def test_seen(self) -> None:
            with transaction.atomic():
                publish_on_commit(1, QUEUE, declare=[QUEUE], key="k")
                publish_on_commit(2, QUEUE, key="k")
            with pytest.raises(Undone), transaction.atomic():
                publish_on_commit(3, QUEUE)
                raise Undone
            publish(4, QUEUE, declare=[QUEUE])
            self.assertPublished(body=1, queue="q", on_commit=True, times=1)
            self.assertPublished(body=4, on_commit=False)
            assert sorted(one.body for one in self.published) == [1, 2, 4]

    passes(Case)
    assert OutboxMessage.objects.count() == 0


def test_rows_of_a_block_that_is_still_open_are_not_published(tables_in_a_file: Database) -> None:
    class Case(PublishedMixin, TestCase):
        def test_open(self) -> None:
            with transaction.atomic():
                publish_on_commit(1, QUEUE, declare=[QUEUE])
                self.assertNothingPublished()
            self.assertPublished(body=1)

    passes(Case)


def test_rows_of_real_transactions_are_published_too(tables_in_a_file: Database) -> None:
    class Case(PublishedMixin, TransactionTestCase):
        available_apps = ("django_app", "django_app.outbox")

        def test_seen(self) -> None:
            with transaction.atomic():
                publish_on_commit(1, QUEUE, declare=[QUEUE])
            self.assertPublished(body=1, on_commit=True)

        def _fixture_teardown(self) -> None:
            """Nothing: Django's own would make permissions anew, for which this database has no tables."""

    passes(Case)


def test_rows_of_each_database_of_a_test_are_published(
    tables_in_a_file: Database, use: Use, tmp_path_factory: pytest.TempPathFactory
) -> None:
    use("other", Database("sqlite", str(tmp_path_factory.mktemp("other") / "database")))
    make_tables("other")

    class Case(PublishedMixin, TestCase):
        databases = ("default", "other")

        def test_seen(self) -> None:
            with transaction.atomic(using="other"):
                publish_on_commit(1, QUEUE, declare=[QUEUE], db="other")
            self.assertPublished(body=1)

    passes(Case)
    assert OutboxMessage.objects.using("other").count() == 0


def test_a_test_without_databases_asks_none(sqlite: Database, use: Use) -> None:
    use("default", sqlite)

    class Case(PublishedMixin, SimpleTestCase):
        def test_seen(self) -> None:
            publish(1, QUEUE, declare=[QUEUE])
            self.assertPublished(body=1)

    passes(Case)
    assert connections["default"].connection is None


@modify_settings(INSTALLED_APPS={"remove": "django_app.outbox"})
def test_without_the_application_no_table_is_asked(
    sqlite: Database, use: Use, configure: Callable[..., None]
) -> None:
    use("default", sqlite)
    configure({"default": {"URL": "amqp://broker.invalid//"}})

    class Case(PublishedMixin, TestCase):
        def test_seen(self) -> None:
            publish_on_commit(1, QUEUE, declare=[QUEUE])
            self.assertPublished(body=1, on_commit=True)

    passes(Case)
