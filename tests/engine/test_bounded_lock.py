"""The lock of a pool: nobody waits for it without end, though whoever has it may wait for its waiter."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kombu_pools_ext.engine import Lease, bounded_lock
from kombu_pools_ext.engine.bounded_lock import LOOKS, BoundedLock
from kombu_pools_ext.engine.errors import PoolReentered
from kombu_pools_ext.engine.maintenance import Maintenance
from tests.engine.fakes import PATIENCE, assert_sound, in_thread, rig


class Refused(Exception):
    """The lock was not to be had."""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a lock that is made now gives up soon."""
    monkeypatch.setattr(bounded_lock, "PATIENCE", 0.1)
    monkeypatch.setattr(bounded_lock, "ONCE_MORE", 0.01)


class Held:
    """*lock*, held by another thread for the length of the block."""

    def __init__(self, lock: BoundedLock) -> None:
        self._lock = lock
        self._taken, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)

    def _hold(self) -> None:
        with self._lock:
            self._taken.set()
            self._done.wait(PATIENCE)

    def __enter__(self) -> Held:
        self._thread.start()
        assert self._taken.wait(PATIENCE)
        return self

    def let_go(self) -> None:
        self._done.set()
        self._thread.join(PATIENCE)

    def __exit__(self, *error: object) -> None:
        self.let_go()


def test_its_owner_may_take_it_again_and_knows_that_it_has_it() -> None:
    lock = BoundedLock(Refused)
    assert not lock.owned()
    with lock:
        with lock:
            assert lock.owned()
        assert lock.owned()
        with in_thread(lock.owned) as elsewhere:
            pass
        assert elsewhere.value is False
    assert not lock.owned()


def test_an_error_within_gives_it_back() -> None:
    lock = BoundedLock(Refused)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.owned()
    with in_thread(lock.__enter__) as taken:
        pass
    assert taken.value is True


@pytest.mark.usefixtures("soon")
def test_whoever_has_waited_for_long_enough_is_refused_and_may_ask_again() -> None:
    lock = BoundedLock(Refused)
    with Held(lock):
        for _ in range(2):
            with pytest.raises(Refused), lock:
                pytest.fail("nobody can be here")
    with lock:
        assert lock.owned()


class Sought:
    """A lock that is free at a certain attempt; until then it says who has it."""

    def __init__(self, free_at: int, owner: Callable[[int], int]) -> None:
        self._free_at = free_at
        self._owner = owner
        self.attempts = 0

    def __repr__(self) -> str:
        return f"<locked, owner={self._owner(self.attempts)}>"

    def acquire(self, blocking: bool, seconds: float) -> bool:
        assert blocking
        assert seconds > 0
        self.attempts += 1
        return self.attempts >= self._free_at

    def __exit__(self, *exc: object) -> None: ...

    def _is_owned(self) -> bool:
        return False


@pytest.mark.parametrize(
    "owner, is_served",
    [(lambda attempt: attempt // 5, True), (lambda attempt: 7, False)],
    ids=["many, one after the other", "the same one"],
)
def test_who_waits_among_many_is_not_taken_for_one_who_would_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, owner: Callable[[int], int], is_served: bool
) -> None:
    sought = Sought(5 * LOOKS, owner)
    monkeypatch.setattr(threading, "RLock", lambda: sought)
    lock = BoundedLock(Refused)
    if is_served:
        assert lock.__enter__() is True
        assert sought.attempts == 5 * LOOKS
    else:
        with pytest.raises(Refused):
            lock.__enter__()
        assert sought.attempts == 1 + LOOKS


@pytest.mark.threads
@pytest.mark.usefixtures("soon")
def test_who_waits_on_has_it_after_others_have_given_up() -> None:
    lock = BoundedLock(Refused)
    asked = threading.Event()
    got: list[bool] = []

    def take() -> None:
        asked.set()
        with lock.patient:
            got.append(lock.owned())

    thread = threading.Thread(target=take, daemon=True)
    with Held(lock) as held:
        thread.start()
        assert asked.wait(PATIENCE)
        with pytest.raises(Refused), lock:
            pytest.fail("nobody can be here")
        assert not got
        held.let_go()
        thread.join(PATIENCE)
    assert got == [True]


def test_a_lock_that_an_exception_has_left_taken_is_given_back_by_its_thread() -> None:
    tested = rig(1)
    tested.fill(1)
    # As on Python 3.14, where an exception may come between the taking and the block.
    tested.pool.lock.__enter__()
    lease = tested.pool.acquire()
    assert not tested.pool.lock.owned()
    tested.pool.lock.__enter__()
    lease.end()
    assert not tested.pool.lock.owned()
    with in_thread(tested.pool.acquire) as acquired:
        pass
    assert acquired.error is None


@pytest.mark.usefixtures("soon")
def test_of_two_who_release_one_lease_while_the_lock_is_held_one_does() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    with Held(tested.pool.lock), in_thread(lease.end) as first:
        lease.end()
    assert first.error is None
    taken = tested.pool.acquire()
    assert tested.pool.lent == 1
    assert len(tested.pool.deferred) == 0
    taken.end()
    assert_sound(tested.pool)


@pytest.mark.usefixtures("soon")
def test_what_was_closed_while_the_lock_is_held_is_noted_later_and_the_release_raises_nothing() -> (
    None
):
    tested = rig(1)
    (lease,) = tested.take()
    goodbye = Held(tested.pool.lock)
    tested.driver.closing.append(goodbye.__enter__)
    try:
        lease.end("broken")
    finally:
        goodbye.let_go()
    assert tested.pool.stats().closed == {}
    tested.spawner.run()
    assert tested.pool.stats().closed == {"broken": 1}
    assert tested.pool.size == 0


@pytest.mark.usefixtures("soon")
def test_a_waiter_that_cannot_leave_is_served_no_more_and_keeps_its_own_error() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    waiter = tested.ask()
    with Held(tested.pool.lock):
        tested.pool.leave(waiter, tested.clock())
    assert isinstance(waiter.error, PoolReentered)
    tested.spawner.run()
    assert tested.pool.stats().waiting == 0
    lease.end()
    assert waiter.lease is None
    assert tested.pool.stats().idle == 1


class Publishes(logging.Handler):
    """Publishes through *tested* in the middle of a record, when the other thread is in the middle of a decision."""

    def __init__(self, tested: object, mine: Lease[object], inside: threading.Event) -> None:
        super().__init__()
        self.tested, self.mine, self.inside = tested, mine, inside
        self.entered = threading.Event()
        self.refusal: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg != "publish":
            return
        self.entered.set()
        assert self.inside.wait(PATIENCE)
        try:
            self.tested.pool.acquire(timeout=PATIENCE)  # type: ignore[attr-defined]
        except BaseException as error:
            self.refusal = error
        self.mine.end()


@pytest.mark.usefixtures("soon")
def test_a_finalizer_that_logs_within_a_decision_and_a_handler_that_publishes_do_not_wait_for_each_other() -> (
    None
):
    tested = rig(3)
    returned, handlers_own = tested.take(2)
    inside = threading.Event()
    logger = logging.getLogger("tests.engine.bounded_lock")
    handler = Publishes(tested, handlers_own, inside)
    logger.addHandler(handler)
    logger.propagate = False

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            inside.set()
            logger.warning("collected")

    def clock() -> float:
        # As the collector may begin at any step of the decision.
        if tested.pool.lock.owned() and not inside.is_set():
            Garbage()
            gc.collect()
        return tested.clock()

    try:
        with in_thread(lambda: logger.warning("publish")) as publisher:
            assert handler.entered.wait(PATIENCE)
            tested.pool.state.clock = clock
            returned.end()
    finally:
        logger.removeHandler(handler)
    assert publisher.error is None
    assert isinstance(handler.refusal, PoolReentered)
    assert "'tested'" in str(handler.refusal)
    assert "log handler" in str(handler.refusal)
    # What it gave back meanwhile comes home with whoever comes next.
    assert tested.pool.lent == 1
    tested.pool.acquire().end()
    assert tested.pool.lent == 0
    assert_sound(tested.pool)


@pytest.mark.usefixtures("soon")
def test_whoever_cannot_tell_the_maintenance_of_a_pool_goes_on() -> None:
    maintenance = Maintenance()
    tested = rig(1, keeper=maintenance)
    with Held(maintenance._lock):
        maintenance.watch(tested.pool)
    assert tested.pool not in list(maintenance._due)


AT_THE_END = """
import sys, threading, time

from kombu_pools_ext.engine import bounded_lock, shutdown
bounded_lock.PATIENCE = 0.1
from tests.engine.fakes import rig

stuck, other = rig(1), rig(1)
stuck.fill(1)
other.fill(1)
taken = threading.Event()

def stay():
    with stuck.pool.lock:
        taken.set()
        time.sleep(60)

threading.Thread(target=stay, daemon=True).start()
taken.wait()
shutdown.say_goodbye()
print(len(stuck.driver.closed), len(other.driver.closed), flush=True)
"""


@pytest.mark.threads
def test_a_pool_whose_lock_a_stopped_thread_keeps_holds_up_no_other_pools_goodbyes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.split() == ["0", "1"], done.stderr
