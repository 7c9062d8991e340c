"""What becomes of messages when the connection cannot be shared, is not there in time, or is silent."""

from __future__ import annotations

from typing import Any

import pytest
from amqp import spec
from amqp.exceptions import NotAllowed, NotFound

from kombu_pools_ext.engine.reentrant_queue import ReentrantQueue
from kombu_pools_ext.errors import PoolTimeout, PublishUnknown
from kombu_pools_ext.publisher import CannotBeShared
from kombu_pools_ext.publisher.channel_numbers import MOST_NUMBERS, ChannelNumbers
from kombu_pools_ext.publisher.outgoing import Outgoing
from kombu_pools_ext.publisher.publisher import Publisher
from kombu_pools_ext.publisher.roles import LEAD, WRITE, Roles
from kombu_pools_ext.settings import RetryPolicy
from tests.engine.test_outcomes_of_the_publisher import Broker, Connection, Numbered, Pool, _within

NOT_FOUND = NotFound("no exchange", spec.Basic.Publish, "404", 404)

#: Seconds between two looks at the clock.
TICK = 0.001


class Stage:
    """A publisher without sockets and threads, and what it has told."""

    def __init__(self, share: Any, refuses: bool = False) -> None:
        self.broker = Broker(lambda strategy: 1, lambda: None)
        self.submitted: list[Outgoing] = []
        self.told: list[Outgoing] = []
        pool: Any = Pool(self.broker, RetryPolicy(interval_step=0.0))
        if refuses:
            pool.acquire = self._refuse
        self.publisher = Publisher(
            pool,
            10,
            share=lambda view: share(self.broker),
            clock=self._tick,
            spawn=lambda work, name: True,
        )

    def _tick(self) -> float:
        self.broker.now += TICK
        return self.broker.now

    def _refuse(self, block: bool = False, timeout: float | None = None) -> Any:
        self.broker.now += timeout or 0.0
        _within["refuse"]()

    def submit(self, number: int, *, mandatory: bool = False) -> None:
        message = Numbered(
            *(f"message {number}", "", "key", mandatory),
            number=number,
            began=self.broker.now,
            until=self.broker.now + 5.0,
            seconds=10.0,
            tries=3,
        )
        self.submitted.append(message)
        self.publisher.submit(message, self.told.append)

    def play(self) -> list[BaseException | None]:
        """Go on until all is told, and return the errors."""
        me: ReentrantQueue[Any] = ReentrantQueue()
        for _ in range(100):
            pause = self.publisher.read_for_all(me)
            self.publisher.tell()
            if pause is None:
                return [one.error for one in self.told]
        raise AssertionError("some message never gets its outcome")


def test_what_cannot_be_shared_is_given_back_unsent() -> None:
    stage = Stage(lambda broker: None)
    for number in range(3):
        stage.submit(number)
    assert [type(one) for one in stage.play()] == [CannotBeShared] * 3
    assert stage.publisher.unfit


def test_an_outage_leaves_nothing_in_the_queue() -> None:
    stage = Stage(Connection, refuses=True)
    for number in range(5):
        stage.submit(number)
    errors = stage.play()
    assert [type(one) for one in errors] == [PoolTimeout] * 5
    # One for each: whoever raises it adds to its traceback.
    assert len(set(map(id, errors))) == 5
    assert not stage.publisher._queue


@pytest.mark.parametrize("answer", ["nack one", "return one", "close the channel"])
def test_a_no_after_a_try_without_an_answer_is_none(answer: str) -> None:
    """The connection breaks after the broker has taken the message; what it says of the copy is not about that."""

    class Breaking(Connection):
        def read(self, until: float, *, owes: bool) -> None:
            (line,) = self.lines.values()
            if self.broker.cut:
                # A nack is tried again until the time is up.
                self.broker.now += 3.0
                if answer == "close the channel":
                    line.channel_closed(NOT_FOUND)
                else:
                    self._answer(line, answer)
            else:
                self.broker.accepted += [one.message_id for one in line.unanswered]
                self.broker.cut += 1
                self.lost = ConnectionResetError("cut")

    stage = Stage(Breaking)
    stage.submit(1, mandatory=True)
    (error,) = stage.play()
    assert isinstance(error, PublishUnknown)
    assert "a try that was sent had no answer, and the last one failed" in str(error)
    assert stage.broker.accepted == ["message 1"]


def test_who_is_alone_when_the_channel_closes_again_is_refused() -> None:
    class Closing(Connection):
        def read(self, until: float, *, owes: bool) -> None:
            (line,) = self.lines.values()
            line.channel_closed(NOT_FOUND)

    stage = Stage(Closing)
    stage.submit(1)
    stage.submit(2)
    assert stage.play() == [NOT_FOUND, NOT_FOUND]


@pytest.mark.parametrize("ticks", range(12))
def test_whose_time_is_up_is_told_before_the_next_wait_for_a_connection(ticks: int) -> None:
    stage = Stage(Connection)
    untold: list[int] = []

    def refuse(block: bool = False, timeout: float | None = None) -> Any:
        untold.append(sum(one.done for one in stage.submitted) - len(stage.told))
        stage.broker.now += timeout or 0.0
        _within["refuse"]()

    stage.publisher._pool.acquire = refuse  # type: ignore[method-assign]
    stage.submit(1)
    # Its time is up some steps after that of the first, when nobody waits for a connection.
    stage.submit(2)
    stage.submitted[1].until += ticks * TICK
    stage.submit(3)
    stage.submitted[2].until += 3.0
    assert [type(one) for one in stage.play()] == [PoolTimeout] * 3
    assert set(untold) == {0}


def test_a_broker_that_allows_no_further_channel_ends_the_sharing() -> None:
    class Refusing(Connection):
        def read(self, until: float, *, owes: bool) -> None:
            self.lost = NotAllowed("no more channels", (20, 10), "530", 530)

    stage = Stage(Refusing)
    stage.submit(1)
    assert [type(one) for one in stage.play()] == [CannotBeShared]
    assert stage.publisher.unfit


def test_a_silent_connection_is_asked_for_a_sign() -> None:
    class Silent(Connection):
        asked = 0

        def read(self, until: float, *, owes: bool) -> None:
            self.is_silent = not Silent.asked
            if Silent.asked:
                (line,) = self.lines.values()
                self._accept(line, 1)

        def ask_for_a_sign(self) -> None:
            Silent.asked += 1
            self.is_silent = False

    stage = Stage(Silent)
    stage.submit(1)
    assert stage.play() == [None]
    assert Silent.asked == 1


def test_what_the_socket_has_no_room_for_is_written_by_who_leads() -> None:
    class Full(Connection):
        flushed = 0

        def write(self, data: bytes) -> bool:
            self.is_unfinished = super().write(data)
            return False

        def flush(self, until: float) -> None:
            Full.flushed += 1
            self.is_unfinished = False

        def read(self, until: float, *, owes: bool) -> None:
            (line,) = self.lines.values()
            self._accept(line, 1)

    stage = Stage(Full)
    stage.submit(1)
    stage.submit(2)
    assert stage.play() == [None, None]
    assert Full.flushed == 1


def test_a_pool_that_fails_at_the_end_of_a_lease_costs_no_message_its_outcome() -> None:
    class Failing(Connection):
        def read(self, until: float, *, owes: bool) -> None:
            (line,) = self.lines.values()
            self._accept(line, 1)

        def give_back(self) -> None:
            raise RuntimeError("the pool has failed")

    stage = Stage(Failing)
    stage.submit(1)
    assert stage.play() == [None]
    assert stage.publisher._connection is None


def test_a_callback_that_fails_is_logged() -> None:
    stage = Stage(lambda broker: None)
    stage.told = _Refusing()
    stage.submit(1)
    me: ReentrantQueue[Any] = ReentrantQueue()
    while stage.publisher.read_for_all(me) is not None:
        stage.publisher.tell()
    stage.publisher.tell()
    assert stage.publisher.live == 0


class _Refusing(list[Outgoing]):
    def append(self, message: Outgoing) -> None:
        raise ValueError("the callback fails")


def test_a_role_is_one_participants() -> None:
    roles, first, second = Roles(), object(), object()
    assert roles.take(LEAD, first)
    assert not roles.take(LEAD, second)
    roles.give_back(LEAD, second)
    assert roles.has(LEAD, first)
    assert roles.is_free(WRITE)


def test_numbers_of_channels_are_forgotten_when_there_are_many() -> None:
    numbers = ChannelNumbers()
    for number in range(MOST_NUMBERS):
        numbers.note(str(number), number)
    numbers.note("one more", 7)
    assert (numbers.of("one more"), numbers.of("0")) == (7, 1)
