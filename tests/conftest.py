"""Fixtures and rules that every test shares.

`amqp_url` and `redis_url` are URLs of running brokers: what AMQP_URL and REDIS_URL name (localhost when unset), else a
private server where its programs are installed. Without either the test is skipped, and with REQUIRE_BROKERS=1 it
fails. The session's closing lines say what was skipped, and for want of what. `private_rabbitmq` and `private_redis`
are servers for tests that kill them. With RABBITMQ=4.0 or REDIS=8.0 every server is of that release, which
`make brokers` has fetched, and the tests start the shared one, too. `postgresql`, `mariadb`, `sqlite` and `database`,
which is one of each in turn, are empty databases, on servers of the session's own, which tests may kill.

Every test runs in a temporary folder, so that its child processes find the installed packages and not the sources.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import site
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import hypothesis
import hypothesis.configuration
import kombu
import pytest
from kombu.utils.url import parse_url

from kombu_pools_ext import events
from tests.brokers import PrivateRabbitMQ, PrivateRedis, Unavailable, asked_for
from tests.databases import Database, PrivateMariaDB, PrivatePostgreSQL
from tests.wanted import without

ROOT = Path(__file__).parent.parent
PACKAGES = ("kombu_pools_ext", "django_app", "flask_ext")
#: Seconds that a test's threads have to end after it.
THREADS_END = 30.0

#: The fixtures that ask for a broker, by the marker that their tests get.
NEEDS = {
    "broker": {"amqp_url", "private_rabbitmq", "node"},
    "redis": {"redis_url", "private_redis"},
    "postgresql": {"private_postgresql"},
    "mariadb": {"private_mariadb"},
}
#: Names in reasons to skip and in the closing line.
SERVERS = ("RabbitMQ", "Redis", "PostgreSQL", "MariaDB", "uWSGI", "openssl")

Server = TypeVar("Server", PrivateRabbitMQ, PrivateRedis, PrivatePostgreSQL, PrivateMariaDB)

hypothesis.configuration.set_hypothesis_home_dir(ROOT / ".hypothesis")
# No deadline for an example, nor for making one: machines are shared. The same examples each time where nobody watches.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


# -- the session -------------------------------------------------------------------------------------------------------


def pytest_sessionstart(session: pytest.Session) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As for a job that a script put into the background; the programs that we start and interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("EXPECT_INSTALLED") == "1":
        installed = [Path(folder).resolve() for folder in site.getsitepackages()]
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            origin = spec and spec.origin and Path(spec.origin).resolve()
            if not origin or not any(origin.is_relative_to(folder) for folder in installed):
                pytest.exit(
                    f"{package} comes from {origin}, and not from the installed wheel", returncode=4
                )


@pytest.fixture(scope="session", autouse=True)
def _sockets_of_our_own() -> Iterator[None]:
    """Processes that tests start find each other, and none of another run; their sockets are gone with it."""
    # Not in pytest's folder: a socket's path may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kp-", dir="/tmp", ignore_cleanup_errors=True) as path:
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = path
        yield
        os.environ.pop("XDG_RUNTIME_DIR")
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    forking = pytest.mark.filterwarnings(
        "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
    )
    for item in items:
        for marker, fixtures in NEEDS.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        if item.get_closest_marker("forks"):
            item.add_marker(forking)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what the session keeps out of the collector's reach: many tests collect, and each time it would all be read.

    In a whole suite each ``gc.collect()`` took 0.2 seconds of processor time before.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for broker, version in sorted(_spoken_to):
        terminalreporter.write_line(f"on {broker} {version}")
    skipped: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        for server in SERVERS:
            if f"no {server}: " in reason:
                skipped.setdefault(server, []).append(reason.partition(": no ")[2] or reason)
                break
        else:
            others[reason.removeprefix("Skipped: ")] += 1
    if skipped:
        told = "; ".join(f"{len(reasons)} that need {reasons[0]}" for reasons in skipped.values())
        terminalreporter.write_line(f"tests skipped for want of a server: {told}", yellow=True)
    if others:
        told = "; ".join(f"{number}: {reason}" for reason, number in others.items())
        terminalreporter.write_line(f"tests skipped for something else: {told}", yellow=True)


# -- brokers -----------------------------------------------------------------------------------------------------------


#: The brokers of this session, and their versions.
_spoken_to: set[tuple[str, str]] = set()


def _answers(url: str) -> str | None:
    """Why a broker cannot be used, told without the URL's secrets; None when it can."""
    parts = parse_url(url)
    where = f"{parts['hostname'] or 'localhost'}:{parts['port'] or {'redis': 6379}.get(parts['transport'], 5672)}"
    try:
        with kombu.Connection(url, connect_timeout=3) as connection:
            connection.connect()
            channel = connection.channel()
            if parts["transport"].startswith("redis"):
                _spoken_to.add(("Redis", channel.client.info("server")["redis_version"]))
            else:
                told = connection.connection.server_properties
                _spoken_to.add((told["product"], told["version"]))
    except ImportError as exc:
        return f"{exc.name} is not installed"
    except Exception as exc:
        return f"{type(exc).__name__} at {where}"
    return None


def _private(server: type[Server], broker: str, trouble: str = "") -> Iterator[Server]:
    with ExitStack() as stack:
        try:
            started = stack.enter_context(server())
        except Unavailable as exc:
            without(broker, f"{trouble}{exc}")
        if isinstance(started, (PrivateRabbitMQ, PrivateRedis)):
            _answers(started.url)
        yield started


def _url(variable: str, default: str, broker: str, server: type[Server]) -> Iterator[str]:
    url = os.environ.get(variable) or default
    if variable not in os.environ and asked_for(broker):
        trouble: str | None = f"{broker} {asked_for(broker)} is asked for"
    else:
        trouble = _answers(url)
    if trouble is None:
        yield url
    else:
        yield from (started.url for started in _private(server, broker, f"{trouble}, "))


@pytest.fixture(scope="session")
def amqp_url() -> Iterator[str]:
    """The URL of a RabbitMQ that others may use as well: give queues names of your own."""
    yield from _url("AMQP_URL", "amqp://guest:guest@localhost:5672//", "RabbitMQ", PrivateRabbitMQ)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis that others may use as well: give keys names of your own."""
    yield from _url("REDIS_URL", "redis://localhost:6379/0", "Redis", PrivateRedis)


# Not the module's, like Redis: it takes seconds to start. What tests need there has names of their own.
@pytest.fixture(scope="session")
def _own_rabbitmq() -> Iterator[PrivateRabbitMQ]:
    yield from _private(PrivateRabbitMQ, "RabbitMQ")


@pytest.fixture(scope="module")
def _module_redis() -> Iterator[PrivateRedis]:
    yield from _private(PrivateRedis, "Redis")


@pytest.fixture
def private_rabbitmq(_own_rabbitmq: PrivateRabbitMQ) -> PrivateRabbitMQ:
    """A running node of the run's own, started again for each test that finds it dead."""
    _own_rabbitmq.start()
    return _own_rabbitmq


@pytest.fixture
def private_redis(_module_redis: PrivateRedis) -> PrivateRedis:
    """A running server of the module's own, started again for each test that finds it dead."""
    _module_redis.start()
    return _module_redis


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _own_postgresql() -> Iterator[PrivatePostgreSQL]:
    yield from _private(PrivatePostgreSQL, "PostgreSQL")


@pytest.fixture(scope="session")
def _own_mariadb() -> Iterator[PrivateMariaDB]:
    yield from _private(PrivateMariaDB, "MariaDB")


@pytest.fixture
def private_postgresql(_own_postgresql: PrivatePostgreSQL) -> PrivatePostgreSQL:
    """A running server of the session's own, started again for each test that finds it dead."""
    _own_postgresql.start()
    return _own_postgresql


@pytest.fixture
def private_mariadb(_own_mariadb: PrivateMariaDB) -> PrivateMariaDB:
    """A running server of the session's own, started again for each test that finds it dead."""
    _own_mariadb.start()
    return _own_mariadb


@pytest.fixture
def postgresql(private_postgresql: PrivatePostgreSQL) -> Iterator[Database]:
    """An empty database of PostgreSQL; the test may kill the server."""
    with private_postgresql.database() as database:
        yield database


@pytest.fixture
def mariadb(private_mariadb: PrivateMariaDB) -> Iterator[Database]:
    """An empty database of MariaDB; the test may kill the server."""
    with private_mariadb.database() as database:
        yield database


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    """An empty database of SQLite, in a file."""
    return Database("sqlite", str(tmp_path / "database.sqlite3"))


@pytest.fixture
def postgresql_url(postgresql: Database) -> str:
    """The URL of an empty database of PostgreSQL."""
    return postgresql.url


@pytest.fixture
def mariadb_url(mariadb: Database) -> str:
    """The URL of an empty database of MariaDB."""
    return mariadb.url


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        "sqlite",
    ]
)
def database(request: pytest.FixtureRequest) -> Database:
    """An empty database, of each vendor in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


# -- what a test leaves behind -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have used begins nothing where a test attaches control."""
    monkeypatch.setattr(events.demand, "_process", None)


@pytest.fixture(autouse=True)
def _left_clean() -> Iterator[None]:
    """The pools are reset after each test, and a thread that a test leaves running fails it."""
    before = set(threading.enumerate())
    yield
    pools = sys.modules.get("kombu_pools_ext.pools")
    if pools is not None:
        pools.reset()
    deadline = time.monotonic() + THREADS_END
    while leaked := [
        t for t in threading.enumerate() if t not in before and not t.daemon and t.is_alive()
    ]:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left running: {leaked}", pytrace=False)
        time.sleep(0.01)
