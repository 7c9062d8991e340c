"""Tests of what a Django project publishes: a mixin for test cases, and a test runner. No application imports it."""

from __future__ import annotations

import unittest
from typing import Any

from django.db import connections as databases
from django.test.runner import (
    DiscoverRunner,
    ParallelTestSuite,
    RemoteTestResult,
    RemoteTestRunner,
)

from kombu_pools_ext import testing
from kombu_pools_ext.testing import Published, brokers
from kombu_pools_ext.testing.swap import start, stop

from .after_commit import AfterCommit
from .outbox.drained import publish_rows

__all__ = ["PublishedMixin", "TestRunner"]


class PublishedMixin(testing.PublishedMixin):
    """Mixed into a test case of Django's, before its class: each test has brokers in memory, which are empty at first.

    A ``TestCase`` runs within a transaction that is never committed. What is published on commit is published when the
    test looks at :attr:`published`, unless a block of ``atomic`` is still open then. With
    ``captureOnCommitCallbacks(execute=True)`` it is published at the end of that. Rows of the outbox are published when
    the test looks, too.
    """

    #: The databases that a test may use: Django's attribute.
    databases: Any

    def setUp(self) -> None:
        # Django has opened the transactions of the test before.
        self._depths = {
            alias: len(databases[alias].savepoint_ids)
            for alias in databases
            if databases[alias].in_atomic_block
        }
        super().setUp()

    @property
    def published(self) -> Published:
        """What the test has published.

        :raises Exception: what the publishing of a message that has waited for the commit raises.
        """
        for alias, depth in self._depths.items():
            if len(databases[alias].savepoint_ids) <= depth:
                _publish_waiting(databases[alias])
        for alias in databases if self.databases == "__all__" else self.databases:
            if len(databases[alias].savepoint_ids) <= self._depths.get(alias, 0):
                publish_rows(alias)
        return brokers.published


def _publish_waiting(database: Any) -> None:
    """Publish what waits for the commit of *database*, and has not been rolled back. Nothing is published twice."""
    for _, function, *_ in tuple(database.run_on_commit):
        waiting = getattr(function, "__self__", None)
        if isinstance(waiting, AfterCommit):
            waiting.publish_after_commit()


class _EmptyBrokers(unittest.TestResult):
    """Empties the brokers before each test."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's name
        brokers.clear()
        super().startTest(test)


class _TextResult(_EmptyBrokers, unittest.TextTestResult):
    """The result that is usual."""


class _RemoteResult(_EmptyBrokers, RemoteTestResult):
    """The result in a process of several that run tests."""


class _RemoteRunner(RemoteTestRunner):
    resultclass = _RemoteResult


def _init_worker(*args: Any, **kwargs: Any) -> None:
    # One that is not forked has its own brokers still.
    ParallelTestSuite.init_worker(*args, **kwargs)
    start()


class _ParallelSuite(ParallelTestSuite):
    init_worker = _init_worker
    runner_class = _RemoteRunner


class TestRunner(DiscoverRunner):
    """Django's test runner, which gives all aliases brokers in memory, as it gives a mail backend in memory.

    Set ``TEST_RUNNER = "django_app.testing.TestRunner"``. The brokers are empty when a test begins. With
    ``--parallel`` each process has its own.
    """

    parallel_test_suite = _ParallelSuite

    #: For pytest, which would take it for a test because of its name.
    __test__ = False

    def setup_test_environment(self, **kwargs: Any) -> None:
        """Set up the environment, brokers in memory among it."""
        super().setup_test_environment(**kwargs)
        start()

    def teardown_test_environment(self, **kwargs: Any) -> None:
        """Give the aliases their own brokers back."""
        stop()
        super().teardown_test_environment(**kwargs)

    def get_resultclass(self) -> Any:
        """Return the class of the result, which empties the brokers before each test."""
        given = super().get_resultclass()
        if given is None:
            return _TextResult
        return type(given.__name__, (_EmptyBrokers, given), {})
