"""Where uWSGI loads an application and forks its workers, in C, no thread may run; in the workers they may."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace

import pytest

from kombu_pools_ext.engine import Pool, PoolOptions
from kombu_pools_ext.engine.maintenance import OVERDUE, Maintenance
from tests.engine.fakes import PATIENCE, Driver, FakeClock, Item, wait_until

HERE, OTHER = os.getpid(), os.getppid()


class Server:
    """What uWSGI's module says of this process."""

    def __init__(self) -> None:
        self.worker, self.master = 0, HERE


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """This process is uWSGI's, at first the master."""
    server = Server()
    module = SimpleNamespace(worker_id=lambda: server.worker, masterpid=lambda: server.master)
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that are started."""
    names: list[str] = []
    start = threading.Thread.start

    def note(self: threading.Thread) -> None:
        names.append(self.name)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", note)
    return names


def pool_with(keeper: Maintenance, *, clock: FakeClock | None = None) -> tuple[Pool[Item], Driver]:
    driver = Driver()
    options = PoolOptions(min_idle=1, max_lifetime=10.0, idle_timeout=None)
    if clock is None:
        return Pool(driver, limit=2, options=options, keeper=keeper), driver
    return Pool(driver, limit=2, options=options, keeper=keeper, clock=clock), driver


@pytest.mark.parametrize("master", [HERE, 0], ids=["master", "no-master"])
def test_no_thread_is_started_where_workers_are_forked_from(
    server: Server, keeper: Maintenance, started: list[str], master: int
) -> None:
    server.master = master
    clock = FakeClock()
    pool, driver = pool_with(keeper, clock=clock)
    driver.opening.append(OSError("refused"))
    with pytest.raises(Exception, match="refused"):
        pool.acquire()
    clock.advance(OVERDUE)
    for _ in range(3):
        lease = pool.acquire(timeout=PATIENCE)
        # Too old when it comes back: elsewhere a thread says the goodbye.
        clock.advance(11.0)
        pool.release(lease)
    assert len(driver.opened) >= 3
    assert {item.ended[0] for item in driver.opened if item.ended} == {"closed"}
    pool.close()
    assert not started


@pytest.mark.threads
@pytest.mark.parametrize(
    "worker, master",
    [(1, 0), (2, OTHER), (0, OTHER)],
    ids=["first-worker-without-master", "worker", "mule-or-spooler"],
)
def test_what_was_forked_has_threads(
    server: Server, keeper: Maintenance, started: list[str], worker: int, master: int
) -> None:
    server.worker, server.master = worker, master
    pool, _ = pool_with(keeper)
    pool.release(pool.acquire(timeout=PATIENCE))
    # The thread that opens starts the other, and hands over before.
    wait_until(lambda: sorted(set(started)) == ["kombu-pools-maintenance", "kombu-pools-open"])
    pool.close()


@pytest.mark.threads
def test_maintenance_begins_late_where_a_loader_becomes_a_worker(
    server: Server, keeper: Maintenance, started: list[str]
) -> None:
    # There is no master, so the connection stays, and nothing more is opened for it to begin with.
    server.master = 0
    clock = FakeClock()
    pool, driver = pool_with(keeper, clock=clock)
    pool.release(pool.acquire(timeout=PATIENCE))
    server.worker = 1
    pool.release(pool.acquire(timeout=PATIENCE))
    assert not started
    clock.advance(OVERDUE + 1.0)
    pool.release(pool.acquire(timeout=PATIENCE))
    assert started == ["kombu-pools-maintenance"]
    assert len(driver.opened) == 1
    pool.close()
