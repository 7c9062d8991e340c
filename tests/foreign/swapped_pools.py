"""A plugin of pytest: our pools stand where kombu's stood, before the first test is imported.

It knows which tests have to fail, and why: those that `expected.toml` lists. The run fails if a listed test passes,
fails with another error than the listed one or is not there, and if a test fails that is not listed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# By this name, since the plugin is loaded from its folder: no other project's tests are to find a package of ours.
from foreign_suites import EXPECTED, Expected, Suite


def swap() -> Any:
    """Put our pools in the place of kombu's, in this process.

    :returns: our module.
    """
    import kombu
    import kombu.connection
    import kombu.pools

    # Ours derive from kombu's, so they are imported before.
    import kombu_pools_ext.pools as ours

    assert "celery.app" not in sys.modules, "Celery has imported kombu's pools already"
    sys.modules["kombu.pools"] = kombu.pools = ours
    # kombu imports them when they are asked for, by the name that the module has.
    kombu.connections, kombu.producers = ours.connections, ours.producers
    # What Connection.Pool() makes.
    kombu.connection.ConnectionPool = ours.ConnectionPool
    return ours


def lend_connections(modules: set[Any]) -> None:
    """Have the tests in *modules* get a lease of ours for each connection that they make."""
    import kombu

    from kombu_pools_ext import pools

    real = kombu.Connection

    class Kind(type(real)):  # type: ignore[misc]
        """A lease is one of kombu's connections."""

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

    class Connection(real, metaclass=Kind):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return pools.ConnectionPool(real(*args, **kwargs), limit=10).acquire()

    for module in modules:
        if getattr(module, "Connection", None) is real:
            module.Connection = Connection


def adopt_each_app() -> None:
    """Have each application of Celery that is made from now on publish over an alias, which is in memory."""
    from celery.app.base import Celery

    from kombu_pools_ext import configure
    from kombu_pools_ext.contrib.celery import CannotAdopt, adopt
    from kombu_pools_ext.contrib.celery.adoption import Adoption

    configure(default={"url": "memory://adopted"})
    begin = Celery.__init__

    def begin_adopted(app: Any, *args: Any, **kwargs: Any) -> None:
        begin(app, *args, **kwargs)
        # Tests have classes that cannot be, on purpose.
        with suppress(CannotAdopt):
            adopt(app)

    Celery.__init__ = begin_adopted
    # The tests name many brokers, and reach none.
    Adoption.difference = property(lambda adoption: None)  # type: ignore[assignment,method-assign]


# -- the plugin --------------------------------------------------------------------------------------------------------

#: The name of our threads that open a connection.
OPENING = "kombu-pools-open"
#: Seconds for one of them to end, on a busy machine.
PATIENCE = 30.0

_ours = swap()
_entry = pytest.StashKey[Expected]()
_held = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("swapped pools")
    group.addoption("--expected", default=str(EXPECTED), help="the file with the suites")
    group.addoption("--suite", help="the name of the suite in it")
    group.addoption("--suite-version", help="the version of the project")


def pytest_report_header() -> str:
    return f"pools: {_ours.__file__}"


def pytest_sessionstart(session: pytest.Session) -> None:
    # As long as a connection is open our thread runs. Celery's tests count the threads before the first one, and after
    # each.
    import kombu

    pool = _ours.ConnectionPool(kombu.Connection("memory://"), limit=1)
    session.config.stash[_held] = (pool, pool.acquire())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if held := session.config.stash.get(_held, None):
        pool, lease = held
        lease.release()
        pool.force_close_all()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    suite = Suite.read(Path(config.getoption("--expected")))[config.getoption("--suite")]
    version = config.getoption("--suite-version")
    listed = {
        test: entry for entry in suite.expected if entry.is_for(version) for test in entry.tests
    }
    there = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        there.add(name)
        if name in listed:
            item.stash[_entry] = listed[name]
    if gone := listed.keys() - there:
        raise pytest.UsageError(
            f"listed as expected failures, and not there: {', '.join(sorted(gone))}"
        )
    if suite.adopted:
        adopt_each_app()
    if suite.leased:
        lend_connections({item.module for item in items if isinstance(item, pytest.Function)})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    # A thread that has opened a connection ends after it has handed it over, and Celery's tests count the threads.
    for thread in threading.enumerate():
        if thread.name == OPENING:
            thread.join(PATIENCE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    entry = item.stash.get(_entry, None)
    if entry is None or report.when != "call":
        return report
    if call.excinfo is not None and report.failed:
        if entry.says in call.excinfo.exconly():
            report.outcome = "skipped"
            report.wasxfail = f"{entry.kind}: {entry.reason}"
        else:
            report.sections.append(
                ("expected failure", f"listed to fail with another error: {entry.says}")
            )
        return report
    report.longrepr = f"listed as an expected failure, and {report.outcome}: {entry.reason}"
    report.outcome = "failed"
    return report
