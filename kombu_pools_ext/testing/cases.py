"""Test cases of unittest that see what was published."""

from __future__ import annotations

from typing import Any

from .broker import Broker
from .brokers import Brokers, brokers
from .published import Published
from .swap import start, stop

__all__ = ["PublishedMixin"]


class PublishedMixin:
    """Mixed into a ``TestCase``, before its class: each test has brokers in memory, which are empty when it begins."""

    #: The brokers, by alias.
    brokers: Brokers = brokers

    def setUp(self) -> None:  # unittest's name
        start()
        case: Any = self
        case.addCleanup(stop)
        parent: Any = super()
        parent.setUp()

    @property
    def broker(self) -> Broker:
        """The broker of the alias ``default``."""
        return brokers["default"]

    @property
    def published(self) -> Published:
        """What the test has published."""
        return brokers.published

    def assertPublished(self, *, times: int | None = None, **expected: Any) -> Published:  # noqa: N802  # as unittest names it
        """:meth:`.Published.assert_published`."""
        return self.published.assert_published(times=times, **expected)

    def assertNothingPublished(self, **expected: Any) -> None:  # noqa: N802  # as unittest names it
        """:meth:`.Published.assert_nothing_published`."""
        self.published.assert_nothing_published(**expected)
