"""What is decided about a pool, without a pool: no lock, no thread, no driver."""

from __future__ import annotations

from typing import Any

import pytest

from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.engine.expiry import Expiry
from kombu_pools_ext.engine.state import PoolState
from kombu_pools_ext.engine.waiters import Waiter
from tests.engine.fakes import FakeClock, Item


class NoPool:
    """All that the state asks of a pool."""

    name = "none"

    def __init__(self) -> None:
        self.released: list[Any] = []

    def release(self, lease: Any, broken: str | None = None) -> None:
        self.released.append(lease)

    def dropped(self, entry: Any) -> None:
        self.released.append(entry)

    def lease_error(self, entry: Any) -> Exception:
        return RuntimeError("ended")


def state_of(limit: int | None = 2, **options: Any) -> PoolState[Item]:
    return PoolState(
        limit=limit,
        options=PoolOptions(**options),
        clock=FakeClock(),
        jitter=lambda: 0.0,
        lender=NoPool(),
    )


def open_one(state: PoolState[Item], number: int = 0) -> Any:
    """An opening, from its plan to its end."""
    opening = state.openings.claim(state.clock())
    assert opening is not None
    return state.opened(opening, Item(number), None)


def test_a_waiter_is_let_in_and_an_opening_is_planned_for_it_in_one_decision() -> None:
    state = state_of()
    waiter: Waiter[Item] = Waiter()
    decision = state.enter(waiter)
    assert (decision.openings, decision.closings, decision.refusal) == (1, [], None)
    opened = open_one(state)
    assert (opened.openings, opened.closings) == (0, [])
    assert waiter.lease is not None
    assert waiter.lease.item.number == 0
    assert not state.waiters


def test_a_return_that_nobody_waits_for_leaves_nothing_to_carry_out() -> None:
    state = state_of()
    waiter: Waiter[Item] = Waiter()
    state.enter(waiter)
    open_one(state)
    lease = waiter.lease
    assert lease is not None
    assert state.return_lease(lease, None) is None
    assert lease.ended
    assert len(state.idle) == 1
    # A second time it is nobody's.
    assert state.return_lease(lease, "broken") is None
    assert len(state.idle) == 1


def test_a_broken_return_is_to_be_closed_and_its_place_is_anothers_once_that_is_done() -> None:
    state = state_of(1)
    first: Waiter[Item] = Waiter()
    state.enter(first)
    open_one(state)
    second: Waiter[Item] = Waiter()
    assert state.enter(second).openings == 0
    assert first.lease is not None
    decision = state.return_lease(first.lease, "broken")
    assert decision is not None
    [(entry, reason)] = decision.closings
    assert (reason, decision.openings, state.size) == ("broken", 0, 1)
    assert state.closed_one(entry, reason).openings == 1


def test_what_was_unfit_makes_room_for_its_borrower_and_not_for_those_behind() -> None:
    state = state_of(1)
    first: Waiter[Item] = Waiter()
    state.enter(first)
    open_one(state)
    behind: Waiter[Item] = Waiter()
    state.enter(behind)
    again = first.again()
    decision = state.enter(again, first.lease, "dead")
    [(entry, reason)] = decision.closings
    assert list(state.waiters) == [again, behind]
    assert state.closed_one(entry, reason).openings == 1
    open_one(state, 1)
    assert again.lease is not None
    assert behind.lease is None


def test_a_limit_below_what_is_lent_is_refused_and_changes_nothing() -> None:
    state = state_of(2)
    held: list[Waiter[Item]] = [Waiter(), Waiter()]
    for number, waiter in enumerate(held):
        state.enter(waiter)
        open_one(state, number)
    decision = state.resize(1, force=False)
    assert (decision.refusal, decision.lent, state.limit) == ("in use", 2, 2)
    assert state.resize(1, force=True).refusal is None
    assert held[0].lease is not None
    over = state.return_lease(held[0].lease, None)
    assert over is not None
    assert [reason for _, reason in over.closings] == ["limit"]


def test_a_caller_is_refused_by_name_of_the_reason() -> None:
    state = state_of(1)
    held: Waiter[Item] = Waiter()
    state.enter(held)
    open_one(state)
    assert state.enter(Waiter(blocking=False)).refusal == "exhausted"
    state.close(lambda: RuntimeError("closed"))
    assert state.enter(Waiter()).refusal == "closed"
    assert held.lease is not None


def test_what_is_due_is_one_decision() -> None:
    state = state_of(2, idle_timeout=10.0)
    waiter: Waiter[Item] = Waiter()
    state.enter(waiter)
    open_one(state)
    assert waiter.lease is not None
    state.return_lease(waiter.lease, None)
    clock = state.clock
    assert isinstance(clock, FakeClock)
    clock.advance(11.0)
    due = Expiry(state).due()
    assert [reason for _, reason in due.closings] == ["idle"]
    assert not state.idle


def test_for_an_interrupted_opening_another_one_is_planned_in_the_same_decision() -> None:
    state = state_of(1)
    waiter: Waiter[Item] = Waiter()
    state.enter(waiter)
    opening = state.openings.claim(state.clock())
    assert opening is not None
    # Until now it had the only place.
    assert state.pump() == 0
    assert state.opening_interrupted(opening).openings == 1
    open_one(state)
    assert waiter.lease is not None


def test_who_waits_is_not_overtaken_though_its_server_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = state_of(1)
    held: Waiter[Item] = Waiter()
    state.enter(held)
    open_one(state)
    waiting: Waiter[Item] = Waiter()
    state.enter(waiting)
    assert held.lease is not None

    def killed() -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as until_then:
        until_then.setattr(state, "pump", killed)
        with pytest.raises(KeyboardInterrupt):
            state.return_lease(held.lease, None)
    assert state.idle
    assert state.lend(None, state.clock()) is None
    newcomer: Waiter[Item] = Waiter()
    state.enter(newcomer)
    assert waiting.lease is not None
    assert newcomer.lease is None


def test_what_is_being_closed_makes_no_other_one_be_over_the_limit() -> None:
    state = state_of(2)
    held: list[Waiter[Item]] = [Waiter(), Waiter()]
    for number, waiter in enumerate(held):
        state.enter(waiter)
        open_one(state, number)
    assert state.resize(1, force=True).refusal is None
    broken, good = (waiter.lease for waiter in held)
    assert broken is not None
    assert good is not None
    decision = state.return_lease(broken, "broken")
    assert decision is not None
    [(entry, reason)] = decision.closings
    assert state.return_lease(good, None) is None
    state.closed_one(entry, reason)
    assert (state.size, len(state.idle)) == (1, 1)


def test_a_pool_is_away_once_nothing_could_be_opened_for_so_long() -> None:
    state = state_of()
    clock: Any = state.clock
    assert not state.is_away_for(0)
    began = clock()
    clock.advance(1)
    state.breaker.failed(clock(), began, ConnectionRefusedError(), may_pass=True)
    assert state.is_away_for(1)
    assert not state.is_away_for(1.5)
    clock.advance(1)
    assert state.is_away_for(1.5)
    state.breaker.failed(clock(), began, PermissionError(), may_pass=False)
    assert state.is_away_for(60)
    state.breaker.succeeded(clock())
    assert not state.is_away_for(0)
