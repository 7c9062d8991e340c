"""What others do between any two steps of an acquire or a release: nothing of it is missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.engine import Gate, Lease, Share
from kombu_pools_ext.engine.errors import PoolClosed, PoolError, PoolSuspended
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import Item, Rig, assert_sound, rig
from tests.engine.scenes import ENDLESS
from tests.engine.steps import Steps

pytestmark = pytest.mark.threads


class Play:
    """A pool in which somebody acquires, or releases, while another does something."""

    def __init__(self, idle: int, limit: int | None = None, **options: Any) -> None:
        self.rig: Rig = rig(idle if limit is None else limit, **options)
        self.items = self.rig.fill(idle)
        self.pool = self.rig.pool
        self.share: Share | None = None
        self.lease: Lease[Item] | None = None
        self.refused: PoolError | None = None

    def with_share(self, limit: int | None, gate: Gate | None = None) -> Share:
        self.share = Share(limit, gate)
        self.pool.release(self.pool.acquire(share=self.share))
        return self.share

    def hold(self) -> None:
        """Lend one, to be released in the play."""
        self.lease = self.pool.acquire(share=self.share)

    def acquire(self) -> None:
        try:
            self.lease = self.pool.acquire(timeout=0.0, share=self.share)
        except PoolError as error:
            self.refused = error

    def release(self) -> None:
        assert self.lease is not None
        self.pool.release(self.lease)
        assert self.lease.ended
        self.lease = None


def at_every_bytecode(
    play_of: Callable[[], Play],
    act: Callable[[Play], None],
    other: Callable[[Play], Any],
    check: Callable[[Play, Any], Any],
) -> list[Any]:
    """Play again and again: *act*, in which *other* happens one bytecode later each time. What *check* said of each."""
    found = []
    for at in range(1, ENDLESS):
        play = play_of()
        done: list[Any] = []

        def happen(play: Play = play, done: list[Any] = done) -> None:
            # Another thread would wait for the lock.
            if not play.pool.owned():
                done.append(other(play))

        steps = Steps(happen, at, everywhere=True)
        steps(lambda play=play: act(play))
        if not steps.happened:
            break
        if done:
            found.append(check(play, done[0]))
            assert_sound(play.pool)
    assert len(found) > 10
    return found


def once(changes: list[bool]) -> bool:
    """Whether it was so up to some step, and never again."""
    return changes == sorted(changes, reverse=True) and len(set(changes)) == 2


def test_who_begins_to_wait_before_an_acquire_has_ended_is_not_overtaken() -> None:
    def check(play: Play, waiter: Waiter[Item]) -> bool:
        assert (waiter.lease is None) != (play.lease is None), "one item, for one of them"
        assert (play.refused is None) == (play.lease is not None)
        return waiter.lease is not None

    def check_and_go_on(play: Play, waiter: Waiter[Item]) -> bool:
        overtook = check(play, waiter)
        lease = waiter.lease or play.lease
        assert lease is not None
        play.pool.release(lease)
        assert overtook or waiter.lease is not None
        return overtook

    # He has the item if he stood in line before the last look; later, it was taken before he came.
    assert once(at_every_bytecode(lambda: Play(1), Play.acquire, lambda p: p.rig.ask(), check))
    assert once(
        at_every_bytecode(lambda: Play(1), Play.acquire, lambda p: p.rig.ask(), check_and_go_on)
    )


def holding(idle: int = 1, limit: int | None = None, **options: Any) -> Callable[[], Play]:
    def make() -> Play:
        play = Play(idle, limit, **options)
        play.hold()
        return play

    return make


def test_who_begins_to_wait_during_a_release_is_served_by_it() -> None:
    def check(play: Play, waiter: Waiter[Item]) -> None:
        assert waiter.lease is not None
        assert waiter.lease.item is play.items[0]

    at_every_bytecode(holding(), Play.release, lambda play: play.rig.ask(), check)


def test_a_newcomer_during_a_release_that_somebody_waits_for_does_not_overtake_him() -> None:
    def come(play: Play) -> tuple[Waiter[Item], Lease[Item] | None]:
        waiter = play.rig.ask()
        try:
            return waiter, play.pool.acquire()
        except PoolError:
            return waiter, None

    def check(play: Play, came: tuple[Waiter[Item], Lease[Item] | None]) -> None:
        waiter, newcomer = came
        assert newcomer is None
        assert waiter.lease is not None

    at_every_bytecode(holding(), Play.release, come, check)


@pytest.mark.parametrize("act", [Play.acquire, Play.release])
def test_what_is_drained_meanwhile_is_closed_when_it_is_given_back(
    act: Callable[[Play], None],
) -> None:
    def check(play: Play, _: Any) -> None:
        if play.lease is not None:
            # Lent before the drain, or opened after it.
            play.release()
        assert play.items[0].ended == ["closed"]
        assert not any(
            e.generation < play.pool.state.generation for e in play.pool.state.held.alive()
        )

    play_of = holding() if act is Play.release else lambda: Play(1)
    at_every_bytecode(play_of, act, lambda play: play.pool.drain(), check)


@pytest.mark.parametrize("act", [Play.acquire, Play.release])
def test_a_pool_that_is_closed_meanwhile_keeps_nothing(act: Callable[[Play], None]) -> None:
    def check(play: Play, _: Any) -> bool:
        refused = isinstance(play.refused, PoolClosed)
        if play.lease is not None:
            play.release()
        assert play.pool.size == 0
        assert play.items[0].ended == ["closed"]
        return refused

    play_of = holding() if act is Play.release else lambda: Play(1)
    refused = at_every_bytecode(play_of, act, lambda play: play.pool.close(), check)
    assert once(refused) if act is Play.acquire else not any(refused)


def test_a_pool_that_is_suspended_meanwhile_lends_nothing() -> None:
    def check(play: Play, _: Any) -> bool:
        assert (play.refused is None) == (play.lease is not None)
        return isinstance(play.refused, PoolSuspended)

    assert once(at_every_bytecode(lambda: Play(1), Play.acquire, lambda p: p.pool.suspend(), check))


def test_a_gate_that_is_shut_meanwhile_holds_back_its_share() -> None:
    def with_gate() -> Play:
        play = Play(1)
        play.with_share(None, Gate())
        return play

    def shut(play: Play) -> None:
        assert play.share is not None
        assert play.share.gate is not None
        play.pool.shut_gate(play.share.gate, play.items[0], "the broker is short of memory")

    def check(play: Play, _: Any) -> bool:
        assert (play.refused is None) == (play.lease is not None)
        return play.refused is not None

    assert once(at_every_bytecode(with_gate, Play.acquire, shut, check))


@pytest.mark.parametrize("act", [Play.acquire, Play.release])
def test_what_is_lent_with_a_share_is_counted_when_its_limit_is_lowered_meanwhile(
    act: Callable[[Play], None],
) -> None:
    def with_share() -> Play:
        play = Play(3)
        play.with_share(3)
        if act is Play.release:
            play.hold()
        return play

    def lower(play: Play) -> None:
        assert play.share is not None
        play.pool.resize_share(play.share, 1)

    def check(play: Play, _: Any) -> None:
        share = play.share
        assert share is not None
        lent = play.pool.lent_of(share)
        assert lent == len(share.lent) == (play.lease is not None)
        waiters = [play.rig.ask(share), play.rig.ask(share)]
        assert sum(waiter.lease is not None for waiter in waiters) == 1 - lent

    at_every_bytecode(with_share, act, lower, check)


def test_what_is_over_a_limit_that_is_lowered_meanwhile_is_closed() -> None:
    def check(play: Play, _: Any) -> None:
        assert play.pool.size == 1
        assert len(play.rig.driver.open_now) == 1

    at_every_bytecode(holding(2), Play.release, lambda play: play.pool.resize(1, force=True), check)


def test_a_limit_is_not_lowered_below_what_an_acquire_has_just_taken() -> None:
    def lower(play: Play) -> bool:
        try:
            play.pool.resize(1)
        except RuntimeError:
            return False
        return True

    def two() -> Play:
        play = Play(2)
        play.hold()
        return play

    def acquire(play: Play) -> None:
        first, play.lease = play.lease, None
        play.acquire()
        play.other = first  # type: ignore[attr-defined]

    def check(play: Play, lowered: bool) -> None:
        assert play.pool.lent == 1 + (play.lease is not None)
        assert not lowered or play.pool.lent == 1

    at_every_bytecode(two, acquire, lower, check)


@pytest.mark.parametrize("act", [Play.acquire, Play.release])
def test_maintenance_meanwhile_loses_nothing(act: Callable[[Play], None]) -> None:
    def quiet() -> Play:
        play = Play(2, idle_timeout=10.0)
        if act is Play.release:
            play.hold()
        play.rig.driver.keep_every = 1.0
        return play

    def look(play: Play) -> None:
        play.pool.run_maintenance()
        play.rig.clock.advance(5.0)
        play.pool.run_maintenance()

    def check(play: Play, _: Any) -> None:
        assert play.pool.size == 2
        assert not any(item.ended for item in play.items)
        assert play.pool.lent == (play.lease is not None)

    at_every_bytecode(quiet, act, look, check)


@pytest.mark.parametrize("act", [Play.acquire, Play.release])
def test_what_maintenance_has_reserved_meanwhile_is_nobodys(act: Callable[[Play], None]) -> None:
    def quiet() -> Play:
        play = Play(2)
        if act is Play.release:
            play.hold()
        return play

    def reserve(play: Play) -> list[Any]:
        with play.pool.lock:
            idle = list(play.pool.state.idle)
            return [entry for entry in idle if play.pool.expiry.reserve(entry)]

    def check(play: Play, reserved: list[Any]) -> None:
        mine = play.lease.entry if play.lease is not None else None
        assert mine not in reserved
        assert not any(entry in play.pool.state.idle for entry in reserved)
        for entry in reserved:
            assert not play.pool.expiry.put_back(entry, True).closings
        assert len(play.pool.state.idle) == 2 - (mine is not None)

    at_every_bytecode(quiet, act, reserve, check)


def test_a_lease_that_two_release_at_once_is_released_once() -> None:
    def check(play: Play, _: Any) -> None:
        assert play.pool.stats().idle == 1
        assert play.pool.size == 1

    def release(play: Play) -> None:
        assert play.lease is not None
        play.pool.release(play.lease)

    at_every_bytecode(holding(), release, release, check)


def test_a_lease_that_another_releases_meanwhile_ends_no_later_loan() -> None:
    """Between two steps of a release the same lease is released by another, and its entry lent again."""

    def release(play: Play) -> None:
        assert play.lease is not None
        play.pool.release(play.lease)

    def overtake(play: Play) -> Lease[Item] | None:
        release(play)
        try:
            return play.pool.acquire()
        except PoolError:
            return None

    def check(play: Play, other: Lease[Item] | None) -> bool:
        if other is None:
            # The first was not done yet, and goes on.
            assert play.pool.stats().idle == 1
            return False
        assert not other.ended
        assert play.pool.lent == 1
        assert not play.pool.state.idle
        return True

    assert True in at_every_bytecode(holding(), release, overtake, check)


def test_what_is_recalled_during_a_release_is_closed_once() -> None:
    def recall(play: Play) -> None:
        for entry, _ in play.pool.revoke_leases().closings:
            play.pool.close_entry(entry, "closed")

    def check(play: Play, _: Any) -> None:
        (item,) = play.items
        assert item.ended in ([], ["closed"])
        assert play.pool.size == len(play.pool.state.idle) == (not item.ended)

    at_every_bytecode(holding(), Play.release, recall, check)


def test_every_acquire_is_counted_once() -> None:
    def check(play: Play, _: Any) -> int:
        acquires: int = play.pool.stats().acquires
        return acquires

    counted = at_every_bytecode(lambda: Play(1), Play.acquire, lambda p: p.pool.drain(), check)
    assert set(counted) == {1}


def test_what_a_thread_left_behind_that_was_killed_in_the_moment_of_a_close_is_swept_up() -> None:
    play = Play(1)
    (entry,) = play.pool.state.idle
    play.pool.state.idle.clear()
    play.pool.close()
    play.pool.state.idle.append(entry)
    play.pool.run_maintenance()
    assert play.items[0].ended == ["closed"]
    assert play.pool.size == 0
