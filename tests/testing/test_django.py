"""What a Django project publishes in its tests: on commit, in transactions or not, and under the test runner."""

from __future__ import annotations

import io
import unittest
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from django.db import connections as databases
from django.db import transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from kombu import Queue

from django_app import apublish, publish, publish_on_commit
from django_app.conf import pools
from django_app.testing import PublishedMixin, TestRunner
from kombu_pools_ext.errors import PublishError
from kombu_pools_ext.testing import brokers
from tests.with_django import conftest as _set_up  # noqa: F401  # sets Django up

NOWHERE = "amqp://broker.invalid//"
QUEUE = Queue("q")


@pytest.fixture(autouse=True)
def _nowhere() -> Iterator[None]:
    with override_settings(KOMBU_POOLS={"default": {"URL": NOWHERE}}):
        yield
    databases.close_all()


def results(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun > 0
    return result


def passes(case: type[unittest.TestCase]) -> None:
    result = results(case)
    assert result.wasSuccessful(), result.failures + result.errors


def on_commit(body: Any, **options: Any) -> None:
    publish_on_commit(body, routing_key="q", declare=[QUEUE], **options)


def test_what_is_published_on_commit_is_seen_within_a_test_case() -> None:
    class Case(PublishedMixin, TestCase):
        def test_seen(self) -> None:
            with transaction.atomic():
                on_commit(1)
                on_commit(2)
            publish(3, routing_key="q", declare=[QUEUE])
            self.assertPublished(body=1, on_commit=True, times=1)
            self.assertPublished(body=3, on_commit=False)
            # Once.
            assert len(self.published) == 3

        def test_rolled_back(self) -> None:
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                on_commit(1)
                raise ZeroDivisionError
            self.assertNothingPublished()

        def test_not_yet(self) -> None:
            with transaction.atomic():
                on_commit(1)
                self.assertNothingPublished()
            self.assertPublished(body=1)

        def test_captured(self) -> None:
            with self.captureOnCommitCallbacks(execute=True):
                on_commit(1)
            assert len(brokers.published) == 1
            assert self.published.one().on_commit

        def test_not_in_any_queue(self) -> None:
            publish_on_commit(1, routing_key="none")
            with pytest.raises(PublishError):
                self.assertNothingPublished()

        async def test_coroutine(self) -> None:
            await apublish(1, routing_key="q", declare=[QUEUE])
            self.assertPublished(body=1)

    passes(Case)
    assert pools.settings["default"].url == (NOWHERE,)


def test_a_transaction_that_is_committed() -> None:
    class Case(PublishedMixin, TransactionTestCase):
        available_apps = ()

        def test_it(self) -> None:
            with transaction.atomic():
                on_commit(1)
                self.assertNothingPublished()
            self.assertPublished(body=1, on_commit=True)

    passes(Case)


def test_the_runner_swaps_brokers_and_empties_them_before_each_test() -> None:
    class Case(SimpleTestCase):
        def test_one(self) -> None:
            assert list(brokers.published) == []
            publish(1, routing_key="q", declare=[QUEUE])
            brokers.published.assert_published(body=1)

        def test_two(self) -> None:
            self.test_one()

    for options in ({}, {"debug_sql": True}):
        runner = TestRunner(verbosity=0, **options)
        runner.setup_test_environment()
        try:
            suite = unittest.defaultTestLoader.loadTestsFromTestCase(Case)
            with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                result = runner.run_suite(suite)
        finally:
            runner.teardown_test_environment()
        assert result.testsRun == 2
        assert result.wasSuccessful(), result.failures + result.errors
        assert pools.settings["default"].url == (NOWHERE,)
