"""What an operator does: suspend and resume, the gate, wait_ready, drain with a time-out, and what exit leaves open."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kombu_pools_ext.engine import Gate, Share, shutdown
from kombu_pools_ext.engine.auto_reset_event import AutoResetEvent
from kombu_pools_ext.engine.errors import (
    ConnectTimeout,
    PoolBlocked,
    PoolClosed,
    PoolSuspended,
    PoolTimeout,
)
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import PATIENCE, Keeper, assert_sound, in_thread, rig, wait_until

WHY = "the broker is short of memory"


# -- suspend and resume ------------------------------------------------------------------------------------------


def test_a_suspended_pool_lends_nothing_until_it_is_resumed() -> None:
    tested = rig(2)
    tested.fill(1)
    tested.pool.suspend("wait")
    waiter = tested.ask()
    tested.spawner.run()
    assert not waiter.ended
    assert repr(tested.pool) == "<Pool 'tested': 1 of 2 (1 idle, 0 lent), 1 waiting, suspended>"
    assert tested.pool.stats().suspended
    tested.pool.resume()
    assert waiter.lease is not None
    assert not tested.pool.stats().suspended


def test_who_does_not_wait_is_refused_while_it_is_suspended() -> None:
    tested = rig(2)
    tested.fill(1)
    tested.pool.suspend("wait")
    with pytest.raises(PoolSuspended, match="resume"):
        tested.pool.acquire()
    with pytest.raises(PoolSuspended, match="not resumed"):
        tested.pool.acquire(timeout=0.0)


def test_suspending_to_fail_fails_those_who_wait_and_those_who_come() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    waiters = [tested.ask(), tested.ask()]
    tested.pool.suspend("fail")
    assert all(isinstance(waiter.error, PoolSuspended) for waiter in waiters)
    assert waiters[0].error is not waiters[1].error
    with pytest.raises(PoolSuspended):
        tested.pool.acquire(timeout=PATIENCE)
    lease.end()
    assert tested.pool.stats().idle == 1
    tested.pool.resume()
    tested.pool.acquire()


def test_a_suspended_pool_opens_nothing() -> None:
    tested = rig(3, min_idle=1)
    waiter = tested.ask()
    tested.pool.suspend("wait")
    tested.spawner.run()
    tested.pool.run_maintenance()
    tested.spawner.run()
    assert not tested.driver.opened
    tested.pool.resume()
    tested.spawner.run()
    assert waiter.lease is not None


def test_whoever_waits_for_an_opening_alone_fails_when_it_is_suspended() -> None:
    tested = rig(2)
    hasty, patient = tested.ask(blocking=False), tested.ask()
    tested.pool.suspend("wait")
    assert isinstance(hasty.error, PoolSuspended)
    assert not patient.ended


def test_an_outage_is_no_reason_not_to_wait_for_the_end_of_a_suspension() -> None:
    """The broker went away, the operator noticed, suspended the pool, and resumes it when the broker is back."""
    tested = rig(2, jitter=lambda: 1.0, outage_patience=10.0)
    tested.driver.opening.append(PermissionError("shutting down"))
    tested.ask(blocking=False)
    tested.spawner.run()
    tested.pool.suspend("wait")
    waiter = tested.ask()
    tested.clock.advance(3600.0)
    tested.pool.look_again()
    assert not waiter.ended
    assert tested.queue_up(Waiter()) is None
    tested.driver.opening.append(OSError("not quite"))
    tested.pool.resume()
    assert tested.pool.stats().outage is None
    # Slowly, as after any outage, and with all the patience.
    assert len(tested.pool.state.openings) == 1
    tested.spawner.run()
    tested.pool.look_again()
    assert not waiter.ended
    tested.clock.advance(2.0)
    tested.pool.look_again()
    tested.spawner.run()
    assert waiter.lease is not None


def test_to_resume_what_is_not_suspended_changes_nothing() -> None:
    tested = rig(2, jitter=lambda: 1.0)
    tested.driver.opening.append(OSError("refused"))
    tested.ask()
    tested.spawner.run()
    tested.pool.resume()
    assert tested.pool.stats().outage is not None


def test_a_closed_pool_stays_closed_when_it_is_resumed() -> None:
    tested = rig(1)
    tested.pool.suspend("wait")
    tested.pool.close()
    tested.pool.resume()
    with pytest.raises(PoolClosed):
        tested.pool.acquire()


def test_a_forked_child_is_suspended_as_its_parent() -> None:
    tested = rig(1)
    tested.pool.suspend("fail")
    tested.pool.after_fork_in_child()
    with pytest.raises(PoolSuspended):
        tested.pool.acquire(timeout=PATIENCE)
    tested.pool.resume()
    tested.spawner.able = False
    tested.pool.acquire()


def test_no_more_may_wait_for_the_end_of_a_suspension_than_for_anything_else() -> None:
    tested = rig(2, max_waiting=1)
    tested.pool.suspend("wait")
    assert tested.queue_up(Waiter()) is None
    assert tested.queue_up(Waiter()) == "full"


def test_maintenance_hears_of_the_end_of_a_suspension_and_of_the_pool() -> None:
    keeper = Keeper()
    tested = rig(1, keeper=keeper)
    for act in (tested.pool.resume, tested.pool.close):
        before = keeper.nudges
        act()
        assert keeper.nudges == before + 1


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'fail' or 'wait', not 'pause'"):
        rig(1).pool.suspend("pause")  # type: ignore[arg-type]


# -- the gate ----------------------------------------------------------------------------------------------------


def test_a_shut_gate_holds_up_its_shares_and_nobody_else() -> None:
    tested = rig(3)
    items = tested.fill(2)
    gate = Gate()
    publishing = Share(None, gate)
    tested.pool.shut_gate(gate, items[0], WHY)
    waiter = tested.ask(publishing)
    assert tested.pool.acquire().item is items[1]
    assert not waiter.ended
    assert not tested.spawner.queued
    assert tested.pool.stats().blocked == WHY
    assert WHY in repr(tested.pool)
    tested.pool.open_gate(gate, items[0])
    assert waiter.lease is not None
    assert tested.pool.stats().blocked is None


def test_a_shut_gate_is_told_at_the_deadline_and_at_once_to_who_does_not_wait() -> None:
    tested = rig(2)
    (item,) = tested.fill(1)
    gate = Gate()
    publishing = Share(None, gate)
    tested.pool.shut_gate(gate, item, WHY)
    with pytest.raises(PoolBlocked, match=WHY):
        tested.pool.acquire(timeout=0.0, share=publishing)
    with pytest.raises(PoolBlocked, match="nothing was sent"):
        tested.pool.acquire(share=publishing)
    stats = tested.pool.stats()
    assert (stats.timeouts, stats.refused, stats.waiting) == (0, 2, 0)


def test_a_gate_that_two_have_shut_opens_with_the_second() -> None:
    tested = rig(2)
    one, two = tested.fill(2)
    gate = Gate()
    tested.pool.shut_gate(gate, one, WHY)
    tested.pool.shut_gate(gate, two, WHY)
    tested.pool.open_gate(gate, two)
    assert gate.reason == WHY
    tested.pool.open_gate(gate, one)
    assert gate.reason is None


def test_an_item_that_is_closed_keeps_no_gate_shut() -> None:
    tested = rig(1)
    (lease,) = tested.take()
    gate = Gate()
    tested.pool.shut_gate(gate, lease.item, WHY)
    waiter = tested.ask(Share(None, gate))
    lease.end("broken")
    tested.spawner.run()
    assert waiter.lease is not None


def test_an_item_that_is_gone_without_a_word_keeps_no_gate_shut() -> None:
    class Stranger:
        pass

    tested = rig(1)
    gate = Gate()
    stranger = Stranger()
    tested.pool.shut_gate(gate, stranger, WHY)  # type: ignore[arg-type]
    del stranger
    gc.collect()
    tested.pool.run_maintenance()
    assert gate.reason is None


def test_idle_items_are_looked_at_more_often_while_a_gate_is_shut() -> None:
    tested = rig(2)
    tested.driver.keep_every = 1000.0
    (item,) = tested.fill(1)
    gate = Gate()
    assert not tested.driver.kept
    tested.pool.shut_gate(gate, item, WHY)
    nap = tested.pool.run_maintenance()
    assert nap is not None
    assert nap < 1.0
    assert tested.driver.kept == [(item, False)]


def test_what_is_closed_keeps_no_gate_shut() -> None:
    """Its word of a block was read when it was closed already, and somebody still holds it."""
    tested = rig(2)
    (closed,) = tested.fill(1)
    tested.pool.drain()
    gate = Gate()
    tested.pool.shut_gate(gate, closed, WHY)
    waiter = tested.ask(Share(None, gate))
    tested.spawner.run()
    # What is being opened is not known yet, and may have had word.
    other = tested.ask()
    tested.pool.run_maintenance()
    assert gate.reason == WHY
    tested.spawner.run()
    assert other.lease is not None
    other.lease.end()
    # Nobody but maintenance is there to notice.
    tested.pool.run_maintenance()
    assert gate.reason is None
    assert waiter.lease is not None


def test_what_is_open_keeps_it_shut() -> None:
    tested = rig(2)
    (item,) = tested.fill(1)
    gate = Gate()
    tested.pool.shut_gate(gate, item, WHY)
    tested.pool.run_maintenance()
    assert gate.reason == WHY


def test_a_gate_may_be_opened_in_the_middle_of_the_pools_own_decision() -> None:
    """By a signal handler that reads: it must not decide at the same time."""
    tested = rig(2)
    (item,) = tested.fill(1)
    gate = Gate()
    tested.pool.shut_gate(gate, item, WHY)
    waiter = tested.ask(Share(None, gate))
    with tested.pool.lock:
        tested.pool.open_gate(gate, item)
        assert not waiter.ended
    tested.pool.look_again()
    assert waiter.lease is not None


def test_a_forked_child_has_open_gates() -> None:
    tested = rig(1)
    (item,) = tested.fill(1)
    gate = Gate()
    tested.pool.shut_gate(gate, item, WHY)
    tested.pool.after_fork_in_child()
    tested.spawner.able = False
    tested.pool.acquire(share=Share(None, gate))


# -- wait_ready --------------------------------------------------------------------------------------------------


def test_a_pool_is_ready_with_its_min_idle() -> None:
    tested = rig(5, min_idle=3)
    tested.spawner.able = False
    tested.pool.wait_ready(PATIENCE)
    assert (tested.pool.stats().idle, tested.pool.stats().lent) == (3, 0)
    tested.pool.wait_ready(0.0)
    assert len(tested.driver.opened) == 3


def test_maintenance_opens_nothing_besides_what_is_waited_for() -> None:
    tested = rig(9, min_idle=3)
    tested.spawner.able = False

    def come_by() -> None:
        tested.spawner.able = True
        tested.pool.run_maintenance()
        tested.spawner.able = False

    # Maintenance comes by while two are held and the last one is being opened.
    tested.driver.opening.extend([None, None, come_by])
    tested.pool.wait_ready(PATIENCE)
    tested.spawner.run()
    assert len(tested.driver.opened) == 3
    # Only as long as somebody waits.
    tested.pool.drain()
    come_by()
    tested.spawner.run()
    assert tested.pool.stats().idle == 2


def test_a_pool_without_min_idle_is_ready_with_one() -> None:
    tested = rig(5)
    tested.spawner.able = False
    tested.pool.wait_ready(PATIENCE)
    assert tested.pool.stats().idle == 1


@pytest.mark.threads
def test_what_is_lent_is_there() -> None:
    tested = rig(2, min_idle=2)
    tested.take(2)
    tested.pool.wait_ready(0.0)


def test_not_ready_in_time_tells_the_cause_and_leaves_nothing_behind() -> None:
    tested = rig(5, min_idle=2, outage_patience=0.0, jitter=lambda: 1.0)

    def refuse() -> None:
        tested.clock.advance(1.0)
        raise OSError("refused")

    tested.driver.opening.extend([None, refuse])
    tested.spawner.able = False
    with pytest.raises(ConnectTimeout, match="refused") as caught:
        tested.pool.wait_ready(1.0)
    assert isinstance(caught.value, PoolTimeout)
    assert tested.pool.lent == 0
    assert_sound(tested.pool)


def test_no_more_than_the_limit_are_waited_for() -> None:
    tested = rig(1, min_idle=3)
    tested.spawner.able = False
    tested.pool.wait_ready(PATIENCE)
    assert tested.pool.stats().idle == 1


# -- drain with a time-out -----------------------------------------------------------------------------------------


@pytest.mark.threads
def test_a_drain_waits_for_what_is_lent() -> None:
    tested = rig(3)
    tested.pool.clock = tested.pool.state.clock = time.monotonic
    idle, lent = tested.take(2)
    idle.end()
    with in_thread(lambda: tested.pool.drain(PATIENCE)) as outcome:
        wait_until(lambda: bool(tested.pool.state.watchers))
        assert outcome.value is None
        lent.end()
    assert outcome.value == (2, 0)
    assert tested.pool.size == 0


def test_a_drain_that_nobody_heeds_ends_at_its_deadline() -> None:
    tested = rig(3)
    idle, lent = tested.take(2)
    idle.end()
    assert tested.pool.drain(0.0) == (1, 1)
    assert not tested.pool.state.watchers
    lent.end()
    assert tested.pool.size == 0


def test_a_drain_looks_now_and_then_and_no_later_than_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tested = rig(1)
    (lease,) = tested.take(1)
    naps: list[float] = []

    def nap(watcher: AutoResetEvent, seconds: float) -> None:
        naps.append(seconds)
        tested.clock.advance(seconds)

    monkeypatch.setattr(AutoResetEvent, "wait", nap)
    assert tested.pool.drain(2.5) == (0, 1)
    assert naps == [1.0, 1.0, 0.5]
    assert not lease.ended


def test_a_drain_takes_home_what_was_dropped() -> None:
    """Where no maintenance runs, nobody else would."""
    tested = rig(3)
    leases = tested.take(1)
    leases.clear()
    gc.collect()
    assert tested.pool.drain(0.0) == (1, 0)


@pytest.mark.threads
def test_a_drain_does_not_wait_for_what_was_opened_later() -> None:
    tested = rig(3)
    (old,) = tested.take()
    tested.pool.clock = tested.pool.state.clock = time.monotonic
    with in_thread(lambda: tested.pool.drain(PATIENCE)) as outcome:
        wait_until(lambda: bool(tested.pool.state.watchers))
        (new,) = tested.take()
        old.end()
    assert outcome.value == (1, 0)
    assert not new.ended


def test_a_drain_waits_for_its_own_generation_if_another_drain_begins_while_it_closes() -> None:
    tested = rig(3)
    tested.fill(1)

    def drain_again() -> None:
        tested.take()
        tested.pool.drain()

    tested.driver.closing.append(drain_again)
    assert tested.pool.drain(1.0) == (1, 0)


# -- the end of the process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, patched",
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
def test_greenlets_are_others(module: str, patched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gevent.monkey", "eventlet.patcher"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(shutdown.threading, "enumerate", lambda: [threading.current_thread()])
    assert not shutdown.others_run()
    for answer in (False, True):
        monkeypatch.setitem(
            sys.modules, module, SimpleNamespace(**{patched: lambda name, a=answer: a})
        )
        assert shutdown.others_run() is answer


AT_EXIT = """
import atexit, json, sys, threading
sys.path.insert(0, sys.argv[1])
def report():
    print(json.dumps({"closed": {item.number: broken for item, broken in driver.closed}, "lent": pool.lent}))
from fakes import PATIENCE, Keeper, Driver
from kombu_pools_ext.engine import Pool, closing
import kombu_pools_ext.engine.shutdown as shutdown

if sys.argv[2] != "keeps":
    # A second may be over before a busy machine lets the other thread run.
    closing.TOGETHER = 5.0
driver = Driver()
pool = Pool(driver, limit=2)
lease = pool.acquire(timeout=PATIENCE)
began, leaving = threading.Event(), threading.Event()

def work():
    mine = pool.acquire(timeout=PATIENCE)
    began.set()
    if sys.argv[2] == "gives back":
        leaving.wait(PATIENCE)
        mine.end()
    threading.Event().wait()

if sys.argv[2] != "alone":
    threading.Thread(target=work, daemon=True).start()
    began.wait(PATIENCE)
atexit.unregister(shutdown.say_goodbye)
atexit.register(report)
atexit.register(shutdown.say_goodbye)
atexit.register(leaving.set)
"""


@pytest.mark.threads
@pytest.mark.parametrize(
    "others, closed, lent",
    [
        # Nobody can be in the middle of a frame: what was never given back says goodbye as well.
        ("alone", {"0": False}, 0),
        # A daemon thread gets its grace, and uses it.
        ("gives back", {"1": False}, 1),
        # Or does not: what it holds is left alone.
        ("keeps", {}, 2),
    ],
)
def test_what_is_lent_at_exit_has_a_grace(others: str, closed: dict[str, bool], lent: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(Path(__file__).parent), others],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"closed": closed, "lent": lent}


def test_whoever_watches_hears_of_a_closing() -> None:
    tested = rig(1)
    tested.fill(1)
    watcher = AutoResetEvent()
    tested.pool.state.watchers.keep(watcher)
    assert not watcher.wait(0)
    tested.pool.drain()
    assert watcher.wait(0)


def test_who_waited_in_vain_for_the_end_of_a_suspension_timed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tested = rig(1)
    tested.pool.suspend("wait")
    monkeypatch.setattr(Waiter, "wait", lambda waiter, seconds: tested.clock.advance(seconds))
    with pytest.raises(PoolSuspended, match=r"not resumed for 0\.5 s"):
        tested.pool.acquire(timeout=0.5)
    stats = tested.pool.stats()
    assert (stats.timeouts, stats.refused) == (1, 0)


def test_a_share_that_grows_has_openings_begun() -> None:
    tested = rig(1)
    share = Share(0)
    tested.ask(share)
    assert not tested.spawner.queued
    tested.pool.resize_share(share, 1)
    assert len(tested.spawner.queued) == 1
