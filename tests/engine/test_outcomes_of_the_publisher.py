"""Each message has one outcome, and the order is kept: the publisher against a broker that Hypothesis plays.

There is neither a socket nor a thread nor a clock here. The broker decides at each read what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from amqp.exceptions import NotFound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kombu_pools_ext.engine.reentrant_queue import ReentrantQueue
from kombu_pools_ext.errors import PoolTimeout, PublishNacked, PublishReturned, PublishUnknown
from kombu_pools_ext.publisher.content import Content
from kombu_pools_ext.publisher.exchange_line import ExchangeLine
from kombu_pools_ext.publisher.outgoing import Outgoing
from kombu_pools_ext.publisher.publisher import Publisher
from kombu_pools_ext.settings import RetryPolicy

#: What the broker may do at a read. Each is a number of messages, where it says something of several.
ACTIONS = (
    "ack one",
    "ack many",
    "nack one",
    "return one",
    "end the connection",
    "nothing",
    "more is published",
)


class Numbered(Outgoing):
    """A message whose frames are its channel and its number."""

    def __init__(self, *arguments: Any, number: int, **keywords: Any) -> None:
        content = Content(b"0123456789", None, None, 0, 2, {}, {})
        super().__init__(*arguments, content=content, **keywords)
        self._number = number

    def frames(self, channel: int, frame_max: int) -> bytes:
        return f"{channel}:{self._number};".encode()


class Channel:
    def __init__(self, number: int) -> None:
        self.channel_id = number
        self.closed = False


@dataclass
class Broker:
    """What has come, what was accepted, and what is said next."""

    draw: Callable[[Any], Any]
    publish_more: Callable[[], None]
    now: float = 1000.0
    accepted: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    #: Those for which it closes the channel, whenever they come.
    poisonous: set[str] = field(default_factory=set)
    cut: int = 0
    channels: int = 0
    actions: int = 0
    connections: int = 0


class Connection:
    """A shared connection to the broker of the test."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.lost: BaseException | None = None
        self.frame_max = 131072
        self.since = broker.now
        self.lines: dict[str, ExchangeLine] = {}
        #: By line, what has come and has no answer yet.
        self.given_back = False
        self.is_unfinished = self.is_silent = False

    @property
    def is_lost(self) -> bool:
        return self.lost is not None

    def channel_of(self, line: ExchangeLine) -> bytes:
        assert not self.given_back
        if line.channel is None or line.stale:
            assert not line.pending
            self.broker.channels += 1
            line.begin(Channel(self.broker.channels))
        return b""

    def answer_closing(self, line: ExchangeLine) -> None:
        line.channel = None

    def write(self, data: bytes) -> bool:
        assert not self.given_back
        assert self.lost is None
        # Nothing comes on a channel whose closing was answered.
        for part in data.decode().split(";")[:-1]:
            number, _ = part.split(":")
            line = next(one for one in self.lines.values() if self._is_on(one, int(number)))
            assert line.closed_with is None
        return True

    @staticmethod
    def _is_on(line: ExchangeLine, number: int) -> bool:
        return line.channel is not None and line.channel.channel_id == number

    def read(self, until: float, *, owes: bool) -> None:
        broker = self.broker
        broker.actions += 1
        assert broker.actions < 2000, "some message never gets its outcome"
        waiting = [one for one in self.lines.values() if one.pending and one.closed_with is None]
        if broker.actions > 60:
            # It must end some time.
            for line in waiting:
                self._accept(line, len(line.pending))
            if not waiting:
                broker.now = min(until, broker.now + 1.0)
            return
        action = broker.draw(st.sampled_from(ACTIONS))
        if action == "more is published":
            broker.publish_more()
        elif action == "nothing" or not waiting:
            broker.now = min(until, broker.now + broker.draw(st.sampled_from((0.01, 0.2, 3.0))))
        else:
            line = broker.draw(st.sampled_from(waiting))
            self._answer(line, action)

    def _answer(self, line: ExchangeLine, action: str) -> None:
        broker = self.broker
        first = next(iter(line.pending))
        message: Any = line.pending[first]
        if action != "end the connection" and message.message_id in broker.poisonous:
            broker.refused.add(message.message_id)
            line.channel_closed(NotFound("no exchange", (60, 40), "404", 404))
        elif action == "ack one":
            self._accept(line, 1)
        elif action == "ack many":
            self._accept(line, broker.draw(st.integers(1, len(line.pending))))
        elif action == "nack one":
            broker.refused.add(message.message_id)
            line.nack(first, False)
        elif action == "return one":
            if message.mandatory:
                broker.refused.add(message.message_id)
                line.on_return(
                    312, "NO_ROUTE", line.exchange, message.routing_key, message.message_id
                )
                line.ack(first, False)
            else:
                self._accept(line, 1)
        else:
            for one in self.lines.values():
                taken = broker.draw(st.integers(0, self._good(one)))
                broker.accepted += [each.message_id for each in list(one.pending.values())[:taken]]
            broker.cut += 1
            self.lost = ConnectionResetError("cut")

    def _good(self, line: ExchangeLine) -> int:
        """How many messages of *line* come before the first that is poisonous."""
        count = 0
        for message in line.pending.values():
            if message.message_id in self.broker.poisonous:
                break
            count += 1
        return count

    def _accept(self, line: ExchangeLine, count: int) -> None:
        """Accept so many messages of *line*, or as many as come before one that is poisonous."""
        count = min(count, self._good(line))
        if not count:
            self._answer(line, "ack one")
            return
        numbers = list(line.pending)[:count]
        self.broker.accepted += [line.pending[number].message_id for number in numbers]
        line.ack(numbers[-1], count > 1)

    def flush(self, until: float) -> None:
        raise AssertionError("all was written")

    wait_for_room = flush

    def give_back(self) -> None:
        self.given_back = True
        for line in self.lines.values():
            line.settled = line.closed = None


# An error counts as the pool's own by where it was raised.
_within: dict[str, Any] = {"__name__": "kombu_pools_ext.played", "PoolTimeout": PoolTimeout}
exec("def refuse():\n    raise PoolTimeout('nothing became free')", _within)


class Pool:
    name = "test"
    blocked = None
    confirm_timeout = 10.0

    def __init__(self, broker: Broker, retry: RetryPolicy | None) -> None:
        self.broker = broker
        self.retry = retry

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        self.broker.connections += 1
        if self.broker.actions < 60 and self.broker.draw(st.integers(0, 9)) == 0:
            self.broker.now += timeout or 0.0
            _within["refuse"]()
        return self

    def release(self) -> None:
        pass

    def why_not_lent(self, seconds: float) -> Exception:
        return PoolTimeout(f"nothing became free within {seconds} s")


@dataclass
class Play:
    publisher: Publisher
    broker: Broker
    told: list[Outgoing]
    published: list[Outgoing]


def play(data: st.DataObject, retry: RetryPolicy | None) -> Play:
    """Publish some messages to two exchanges, and more meanwhile, until each has its outcome."""

    def publish() -> None:
        if len(published) >= 30:
            return
        number = len(published)
        exchange = data.draw(st.sampled_from(("", "orders")))
        message = Numbered(
            f"message {number}",
            exchange,
            "key",
            data.draw(st.booleans()),
            number=number,
            until=broker.now + 5.0,
            seconds=10.0,
            tries=0 if retry is None else retry.max_retries,
        )
        if data.draw(st.integers(0, 5)) == 0:
            broker.poisonous.add(message.message_id)
        published.append(message)
        publisher.submit(message, told.append)

    published: list[Outgoing] = []
    told: list[Outgoing] = []
    broker = Broker(data.draw, publish)
    pool = Pool(broker, retry)
    publisher = Publisher(
        pool,
        1000,
        share=lambda view: Connection(broker),  # type: ignore[arg-type, return-value]  # with its interface
        clock=lambda: broker.now,
        spawn=lambda work, name: True,
    )
    for _ in range(data.draw(st.integers(1, 10))):
        publish()
    me: ReentrantQueue[Any] = ReentrantQueue()
    for _ in range(1000):
        pause = publisher.read_for_all(me)
        publisher.tell()
        if pause is None:
            break
    else:
        pytest.fail("some message never gets its outcome")
    return Play(publisher, broker, told, published)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    st.data(),
    st.sampled_from((None, *(RetryPolicy(max_retries=n, interval_step=0.0) for n in (1, 3)))),
)
def test_each_message_has_one_outcome_and_it_is_true(
    data: st.DataObject, retry: RetryPolicy | None
) -> None:
    played = play(data, retry)
    assert sorted(map(id, played.told)) == sorted(map(id, played.published))
    accepted = set(played.broker.accepted)
    for message in played.published:
        error = message.error
        if error is None:
            assert message.message_id in accepted
        elif "was not sent in time" in str(error) or (
            isinstance(error, PoolTimeout) and not isinstance(error, PublishUnknown)
        ):
            assert message.message_id not in accepted
        elif not isinstance(error, PublishUnknown):
            assert isinstance(error, PublishNacked | PublishReturned | NotFound)
            assert message.message_id in played.broker.refused
            assert message.message_id not in accepted
        broken = played.broker.cut or played.broker.poisonous
        if retry is not None and not broken and isinstance(error, PublishUnknown):
            # Its time was up.
            assert isinstance(error, TimeoutError)
        assert message.message_id not in played.broker.poisonous or error is not None
    assert played.publisher.live == 0
    assert played.publisher._connection is None


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_was_not_refused_arrives_in_the_order_of_the_calls(data: st.DataObject) -> None:
    played = play(data, RetryPolicy(interval_step=0.0))
    for exchange in ("", "orders"):
        expected = [
            one.message_id
            for one in played.published
            if one.exchange == exchange
            and one.error is None
            and one.message_id not in played.broker.refused
        ]
        first = list(dict.fromkeys(one for one in played.broker.accepted if one in set(expected)))
        assert first == expected
