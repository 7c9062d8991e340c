"""How one thread waits until another has news for it, which a finalizer may bring too."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest

from kombu_pools_ext.engine.auto_reset_event import AutoResetEvent
from tests.engine.fakes import PATIENCE, in_thread
from tests.engine.steps import ENGINE, Steps

#: More steps than a set or a wait has.
ENDLESS = 100
#: Enough for two threads to meet between a look and a release, at a switch every microsecond.
OFTEN = 2000


def test_who_waits_is_woken() -> None:
    event = AutoResetEvent()
    with in_thread(lambda: event.wait(PATIENCE)) as waiting:
        event.set()
    assert waiting.value is True


def test_a_wait_ends_at_once_if_the_event_was_set_before_and_resets_it() -> None:
    event = AutoResetEvent()
    assert not event.wait(0.001)
    event.set()
    event.set()
    assert event.wait(0)
    assert not event.wait(0)


@pytest.mark.parametrize("interrupted", ["set", "wait"])
def test_a_set_may_interrupt_a_set_or_a_wait_at_any_step(interrupted: str) -> None:
    for at in range(1, ENDLESS):
        event = AutoResetEvent()
        calls: dict[str, Callable[[], object]] = {
            "set": event.set,
            "wait": lambda e=event: e.wait(0),
        }
        steps = Steps(event.set, at, everywhere=True, folder=ENGINE)
        heard = steps(calls[interrupted])
        if not steps.happened:
            break
        # It was set: either the wait has heard of it, or the next one does.
        assert event.wait(0) or heard
        assert not event.wait(0)
    assert at > 3


@pytest.mark.threads
def test_two_that_set_it_at_once_do_not_fail() -> None:
    event = AutoResetEvent()
    failed: list[BaseException] = []

    def set_often() -> None:
        try:
            for _ in range(OFTEN):
                event.set()
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=set_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            event.wait(0.001)
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert failed == []


def test_a_race_of_two_that_find_it_unset_is_no_error() -> None:
    class Taken:
        """A lock that is free by the time that it is released."""

        def locked(self) -> bool:
            return True

        def release(self) -> None:
            raise RuntimeError("release unlocked lock")

    event = AutoResetEvent()
    event._lock = Taken()  # type: ignore[assignment]  # what the loser of the race sees
    event.set()
