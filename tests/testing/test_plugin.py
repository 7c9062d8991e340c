"""The plugin of pytest, and the mixin and the decorator for unittest."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
import unittest
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue

from kombu_pools_ext import Pools, configure
from kombu_pools_ext.errors import PublishNacked
from kombu_pools_ext.testing import Published, PublishedMixin, brokers, swapped_brokers

ROOT = Path(__file__).parents[2]
PLUGIN = "kombu_pools_ext.testing.plugin"
NOWHERE = "amqp://broker.invalid//"
#: What a project's tests begin with.
HEAD = f"""
import pytest
from kombu import Queue
from kombu_pools_ext import configure
from kombu_pools_ext.errors import PublishNacked
from kombu_pools_ext.testing import brokers

aliases = configure(default={NOWHERE!r}, audit="amqp://other.invalid//")

def publish(body="x", using="default", **options):
    aliases.publish(body, routing_key="q", declare=[Queue("q")], using=using, **options)
"""


def outcomes(tests: str, folder: Path, *options: str) -> dict[str, int]:
    """How many tests of a project passed, failed, and so on."""
    (folder / "test_project.py").write_text(HEAD + tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN]
    done = subprocess.run(
        [*command, "--rootdir", folder, "-c", folder / "pytest.ini", *options, folder],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        # Where the package is installed, pytest finds the plugin a second time.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    counts = re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1])
    assert counts, done.stdout + done.stderr
    return {word: int(number) for number, word in counts}


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    tests = """
def test_published(published):
    publish()
    publish(using="audit")
    published.assert_published(body="x", times=2)
    published.assert_published(using="audit", times=1)

def test_each_begins_empty(published):
    assert list(published) == []
    assert "q" not in brokers["default"].vhost().queues

def test_broker(broker, published):
    with broker.refuse_next():
        with pytest.raises(PublishNacked):
            publish(retry=False)
    assert published.one().outcome == "NACKED"

def test_a_failure(published):
    published.assert_published(body="x")

def test_nothing_is_swapped_unless_asked_for():
    assert aliases.settings["default"].url == ("amqp://broker.invalid//",)
"""
    assert outcomes(tests, tmp_path) == {"passed": 4, "failed": 1}


def test_every_test_if_that_is_configured(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nkombu_pools_swap = true\n")
    tests = """
import unittest

def test_plain():
    publish()
    assert len(brokers.published) == 1

class TestOfUnittest(unittest.TestCase):
    def test_it(self):
        publish()
        assert len(brokers.published) == 1
"""
    assert outcomes(tests, tmp_path) == {"passed": 2}


def test_it_is_found_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"pytest11": {"kombu_pools_ext": PLUGIN}}


# -- unittest ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere() -> Pools:
    return configure(default=NOWHERE)


def publish(pools: Pools) -> None:
    pools.publish("x", routing_key="q", declare=[Queue("q")])


def test_a_mixin_for_test_cases(nowhere: Pools) -> None:
    class Synchronous(PublishedMixin, unittest.TestCase):
        def test_one(self) -> None:
            self.assertNothingPublished()
            publish(nowhere)
            self.assertPublished(body="x", times=1)
            self.assertNothingPublished(body="y")
            assert self.published.one().body == "x"

        def test_another(self) -> None:
            self.assertNothingPublished()
            with self.broker.refuse_next(), pytest.raises(PublishNacked):
                nowhere.publish("x", routing_key="q", declare=[Queue("q")], retry=False)
            assert self.brokers is brokers

        def test_failing(self) -> None:
            self.assertPublished(body="y")

    class Asynchronous(PublishedMixin, unittest.IsolatedAsyncioTestCase):
        async def test_coroutine(self) -> None:
            await nowhere.apublish("x", routing_key="q", declare=[Queue("q")])
            self.assertPublished(body="x")

    nowhere.settings["default"]
    for case, failures in ((Synchronous, 1), (Asynchronous, 0)):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert len(result.failures) == failures, result.failures
        assert result.errors == []
        assert result.testsRun > 0
    assert nowhere.settings["default"].url == (NOWHERE,)


def test_a_decorator_for_functions_and_coroutines(nowhere: Pools) -> None:
    @swapped_brokers()
    def function(number: int) -> Published:
        """Publish."""
        publish(nowhere)
        assert number == 3
        return Published(brokers.published)

    @swapped_brokers()
    async def coroutine() -> Published:
        await nowhere.apublish("x", routing_key="q", declare=[Queue("q")])
        return Published(brokers.published)

    for _ in range(2):
        assert function(3).one().body == "x"
        assert asyncio.run(coroutine()).one().body == "x"
    assert function.__doc__ == "Publish."
    assert nowhere.settings["default"].url == (NOWHERE,)
    with pytest.raises(TypeError, match="PublishedMixin"):

        @swapped_brokers()
        class Case(unittest.TestCase):
            other: Any = None
