"""What becomes of messages when the connection cannot be shared, is not there in time, or is silent."""

from __future__ import annotations

from typing import Any

import pytest
from amqp.exceptions import NotAllowed

from kombu_pools_ext.engine.mailbox import Mailbox
from kombu_pools_ext.errors import PoolTimeout
from kombu_pools_ext.publisher import CannotBeShared
from kombu_pools_ext.publisher.channel_numbers import MOST_NUMBERS, ChannelNumbers
from kombu_pools_ext.publisher.outgoing import Outgoing
from kombu_pools_ext.publisher.publisher import Publisher
from kombu_pools_ext.publisher.roles import LEAD, WRITE, Roles
from kombu_pools_ext.settings import RetryPolicy
from tests.engine.test_outcomes_of_the_publisher import Broker, Connection, Pool, _within


class Stage:
    """A publisher without sockets and threads, and what it has told."""

    def __init__(self, share: Any, refuses: bool = False) -> None:
        self.broker = Broker(lambda strategy: 1, lambda: None)
        self.told: list[Outgoing] = []
        pool: Any = Pool(self.broker, RetryPolicy(interval_step=0.0))
        if refuses:
            pool.acquire = self._refuse
        self.publisher = Publisher(
            pool,
            10,
            share=lambda view: share(self.broker),
            clock=lambda: self.broker.now,
            spawn=lambda work, name: True,
        )

    def _refuse(self, block: bool = False, timeout: float | None = None) -> Any:
        self.broker.now += timeout or 0.0
        _within["refuse"]()

    def submit(self, number: int) -> None:
        message = Outgoing(
            *(f"message {number}", "", "key", False),
            encode=lambda channel, frame_max: f"{channel}:{number};".encode(),
            size=10,
            began=self.broker.now,
            until=self.broker.now + 5.0,
            seconds=10.0,
            tries=3,
        )
        self.publisher.submit(message, self.told.append)

    def play(self) -> list[BaseException | None]:
        """Go on until all is told, and return the errors."""
        me: Mailbox[Any] = Mailbox()
        for _ in range(100):
            pause = self.publisher.read_for_all(me)
            self.publisher.tell()
            if pause is None:
                return [one.error for one in self.told]
        pytest.fail("some message never gets its outcome")


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
