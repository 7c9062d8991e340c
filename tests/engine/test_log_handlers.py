"""A logging handler that asks a pool for something never waits for a thread that waits for the handler."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_pools_ext.engine import Pool, log_handlers
from kombu_pools_ext.engine.errors import PoolReentered
from tests.broker.common import PATIENCE, eventually, within

logger = logging.getLogger("tests.publishing")


class Driver:
    """Logs on the way."""

    def __init__(self) -> None:
        self.opened = 0
        self.before_record = threading.Event()

    def open(self) -> object:
        self.before_record.set()
        logger.debug("opening")
        self.opened += 1
        return object()

    def open_within(self, seconds: float) -> object:
        return self.open()

    def check(self, item: object, *, thorough: bool) -> bool:
        return True

    def is_hung_up(self, item: object) -> bool:
        return False

    def keep_alive_every(self, item: object) -> None:
        return None

    def keep_alive(self, item: object, *, lent: bool) -> bool:
        return True

    def may_pass(self, error: Exception) -> bool:
        return True

    def close(self, item: object, *, broken: bool, timeout: float | None = None) -> None:
        logger.debug("closing")

    def announce_close(self, item: object) -> None: ...

    def abandon(self, item: object) -> None: ...


class Publishes(logging.Handler):
    """A handler that needs a lease for each record, and says what became of it."""

    def __init__(self, pool: Pool[Any]) -> None:
        super().__init__()
        self.pool = pool
        self.sent: list[str] = []
        self.lost: list[tuple[str, Exception]] = []
        self.first: Callable[[], None] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        first, self.first = self.first, lambda: None
        first()
        try:
            with_lease = self.pool.acquire(timeout=PATIENCE)
        except Exception as error:
            self.lost.append((message, error))
        else:
            self.sent.append(message)
            with_lease.end()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def handled() -> Iterator[Callable[[Pool[Any]], Publishes]]:
    handlers = []

    def handle(pool: Pool[Any]) -> Publishes:
        handler = Publishes(pool)
        handlers.append(handler)
        logger.addHandler(handler)
        return handler

    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handle
    for handler in handlers:
        logger.removeHandler(handler)
        handler.pool.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.mark.parametrize("limit", [1, 5])
def test_what_its_opening_logs_is_handled_after_it(
    driver: Driver, handled: Callable[[Pool[Any]], Publishes], limit: int
) -> None:
    handler = handled(Pool(driver, limit=limit))
    within(PATIENCE / 2, lambda: logger.info("of the application"))
    assert handler.sent[0] == "of the application"
    eventually(lambda: handler.sent == ["of the application", "opening"])
    assert (driver.opened, handler.lost) == (1, [])


def test_where_no_thread_can_be_started_what_its_opening_logs_is_lost(
    driver: Driver, handled: Callable[[Pool[Any]], Publishes]
) -> None:
    handler = handled(Pool(driver, limit=5, spawn=lambda work, name: False))
    within(PATIENCE / 2, lambda: logger.info("of the application"))
    assert handler.sent == ["of the application"]
    ((message, error),) = handler.lost
    assert message == "opening"
    assert isinstance(error, PoolReentered)
    assert "on the way to the broker" in str(error)


def test_a_record_that_arises_within_the_handling_of_another_opens_nothing(
    driver: Driver, handled: Callable[[Pool[Any]], Publishes]
) -> None:
    handler = handled(Pool(driver, limit=5))
    handler.first = lambda: logger.info("within")
    within(PATIENCE / 2, lambda: logger.info("outer"))
    assert "outer" in handler.sent
    ((message, error),) = handler.lost
    assert (message, type(error)) == ("within", PoolReentered)
    assert driver.opened == 1
    # What is idle is for everybody.
    handler.first = lambda: logger.info("within")
    within(PATIENCE / 2, lambda: logger.info("outer"))
    assert (len(handler.lost), handler.sent.count("within")) == (1, 1)


@pytest.mark.threads
def test_an_opener_that_waits_for_the_handler_already_is_not_waited_for(
    driver: Driver, handled: Callable[[Pool[Any]], Publishes]
) -> None:
    handler = handled(Pool(driver, limit=1))
    leases: list[Any] = []
    other = threading.Thread(target=lambda: leases.append(handler.pool.acquire(wait=True)))

    def begin() -> None:
        # In the handler, which holds its lock: another thread has a connection opened, and the opener a record for it.
        other.start()
        assert driver.before_record.wait(PATIENCE)

    handler.first = begin
    within(PATIENCE / 2, lambda: logger.info("lost"))
    message, error = handler.lost[0]
    assert (message, type(error)) == ("lost", PoolReentered)
    other.join(PATIENCE)
    leases.pop().end()
    # From then on the handler is known.
    within(PATIENCE / 2, lambda: logger.info("sent"))
    assert "sent" in handler.sent


@pytest.mark.forks
def test_a_forked_child_begins_anew(
    driver: Driver, handled: Callable[[Pool[Any]], Publishes]
) -> None:
    handler = handled(Pool(driver, limit=1))
    logger.info("in the parent")
    assert log_handlers._state.turn.acquire(timeout=PATIENCE)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            handler.sent.clear()
            within(PATIENCE / 2, lambda: logger.info("in the child"))
            eventually(lambda: handler.sent == ["in the child", "opening"])
            code = 0
        finally:
            os._exit(code)
    log_handlers._state.turn.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
