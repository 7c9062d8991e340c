"""The model alone: how messages find their queues, what is refused and in which words, and what queues give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.testing.clock import ManualClock
from kombu_pools_ext.testing.model import topic
from kombu_pools_ext.testing.model.binding import EXCHANGE, QUEUE
from kombu_pools_ext.testing.model.entry import Entry
from kombu_pools_ext.testing.model.message import Message
from kombu_pools_ext.testing.model.refusals import Refusal
from kombu_pools_ext.testing.model.vhost import VirtualHost
from kombu_pools_ext.testing.wire.frames import make_message


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vhost(clock: ManualClock) -> VirtualHost:
    return VirtualHost("/", clock=clock.monotonic, wall_clock=clock.time, make=make_message)


def sent(
    vhost: VirtualHost, key: str, exchange: str = "", body: bytes = b"x", **properties: Any
) -> tuple[list[str], bool]:
    message = make_message(exchange, key, body, properties)
    vhost.check_target(message)
    return vhost.publish(message)


def bodies(vhost: VirtualHost, queue: str) -> list[bytes]:
    return [message.body for message in vhost.queues[queue]]


def refusal(do: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        do()
    return caught.value.code, caught.value.text


# -- routing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, key, is_match",
    [
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#.b", "b", True),
        ("#.b", "a.a.b", True),
        ("#.b.#", "a.b", True),
        ("*", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.c", False),
        ("a.*.#", "a", False),
        ("", "", True),
        ("", "a", False),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
        ("#.#", "", True),
        ("*.#.*", "a.b", True),
        ("*.#.*", "a", False),
    ],
)
def test_topics(pattern: str, key: str, is_match: bool) -> None:
    assert topic.matches(pattern, key) is is_match


def test_each_kind_of_exchange(vhost: VirtualHost) -> None:
    for kind in ("direct", "fanout", "topic", "headers"):
        vhost.exchange_declare(kind, kind)
        vhost.queue_declare(f"q.{kind}")
    vhost.bind(QUEUE, "q.direct", "direct", "k", {}, None)
    vhost.bind(QUEUE, "q.fanout", "fanout", "any", {}, None)
    vhost.bind(QUEUE, "q.topic", "topic", "k.#", {}, None)
    vhost.bind(QUEUE, "q.headers", "headers", "", {"x-match": "any", "a": 1, "b": None}, None)
    assert sent(vhost, "k", "direct") == (["q.direct"], True)
    assert sent(vhost, "other", "direct") == ([], True)
    assert sent(vhost, "other", "fanout") == (["q.fanout"], True)
    assert sent(vhost, "k", "topic") == (["q.topic"], True)
    assert sent(vhost, "q.topic") == (["q.topic"], True)
    for headers, found in (
        ({"a": 1}, ["q.headers"]),
        ({"a": 2}, []),
        ({"a": 2, "b": "anything"}, ["q.headers"]),
        ({"a": True}, []),
        (None, []),
    ):
        assert sent(vhost, "k", "headers", application_headers=headers) == (found, True), headers


def test_a_headers_exchange_wants_all_unless_told_otherwise(vhost: VirtualHost) -> None:
    vhost.exchange_declare("h", "headers")
    vhost.queue_declare("q")
    vhost.bind(QUEUE, "q", "h", "", {"a": 1, "b": "2", "x-other": 3}, None)
    assert sent(vhost, "", "h", application_headers={"a": 1}) == ([], True)
    assert sent(vhost, "", "h", application_headers={"a": 1, "b": "2", "c": 3}) == (["q"], True)


def test_a_message_goes_from_exchange_to_exchange_and_once_into_each_queue(
    vhost: VirtualHost,
) -> None:
    vhost.exchange_declare("a", "fanout")
    vhost.exchange_declare("b", "topic")
    vhost.queue_declare("q")
    vhost.bind(EXCHANGE, "b", "a", "", {}, None)
    vhost.bind(EXCHANGE, "a", "b", "#", {}, None)
    vhost.bind(QUEUE, "q", "b", "k", {}, None)
    vhost.bind(QUEUE, "q", "b", "#", {}, None)
    vhost.bind(QUEUE, "q", "a", "", {}, None)
    assert sent(vhost, "k", "a") == (["q"], True)
    assert len(vhost.queues["q"]) == 1


def test_what_no_binding_takes_goes_to_the_alternate_exchange(vhost: VirtualHost) -> None:
    vhost.exchange_declare("main", "direct", arguments={"alternate-exchange": "rest"})
    assert sent(vhost, "k", "main") == ([], True)
    vhost.exchange_declare("rest", "fanout")
    vhost.queue_declare("q")
    vhost.bind(QUEUE, "q", "rest", "", {}, None)
    assert sent(vhost, "k", "main") == (["q"], True)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_not_there(vhost: VirtualHost) -> None:
    assert refusal(lambda: sent(vhost, "k", "none")) == (
        404,
        "NOT_FOUND - no exchange 'none' in vhost '/'",
    )
    assert refusal(lambda: vhost.queue_declare("none", passive=True)) == (
        404,
        "NOT_FOUND - no queue 'none' in vhost '/'",
    )
    vhost.queue_declare("q")
    assert refusal(lambda: vhost.bind(QUEUE, "q", "none", "", {}, None))[0] == 404
    assert refusal(lambda: vhost.bind(QUEUE, "none", "amq.topic", "", {}, None))[0] == 404
    # To delete or unbind what is not there is no error.
    vhost.exchange_delete("none")
    assert vhost.queue_delete("none", owner=None) == 0
    vhost.unbind(QUEUE, "q", "none", "", {}, None)


def test_a_second_declaration_has_to_be_the_same(vhost: VirtualHost) -> None:
    vhost.queue_declare("q", durable=True, arguments={"x-message-ttl": 1000})
    vhost.queue_declare("q", durable=True, arguments={"x-message-ttl": 1000})
    what = "for queue 'q' in vhost '/'"
    assert refusal(lambda: vhost.queue_declare("q")) == (
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'durable' {what}: received 'false' but current is 'true'",
    )
    assert refusal(lambda: vhost.queue_declare("q", durable=True)) == (
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' {what}: received none but current is the value "
        "'1000' of type 'signedint'",
    )
    vhost.exchange_declare("x", "topic")
    assert refusal(lambda: vhost.exchange_declare("x", "direct")) == (
        406,
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'direct' but current "
        "is 'topic'",
    )


def test_a_queue_of_another_connection_is_locked(vhost: VirtualHost) -> None:
    mine, other = object(), object()
    vhost.queue_declare("q", owner=mine, exclusive=True)
    vhost.queue_declare("q", owner=mine, exclusive=True)
    assert vhost.queue_declare("q", owner=mine, passive=True).name == "q"
    for do in (
        lambda: vhost.queue_declare("q", owner=mine),
        lambda: vhost.queue_declare("q", owner=other, exclusive=True),
        lambda: vhost.queue_declare("q", owner=other, passive=True),
        lambda: vhost.queue_delete("q", owner=other),
        lambda: vhost.bind(QUEUE, "q", "amq.topic", "", {}, other),
    ):
        code, text = refusal(do)
        assert code == 405
        assert text.startswith(
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'"
        )


def test_what_is_the_brokers_own(vhost: VirtualHost) -> None:
    for do in (
        lambda: vhost.exchange_declare("", "direct"),
        lambda: vhost.exchange_delete(""),
        lambda: vhost.exchange_declare("amq.mine", "direct"),
        lambda: vhost.exchange_delete("amq.topic"),
        lambda: vhost.queue_declare("amq.mine"),
        lambda: vhost.bind(QUEUE, "q", "", "k", {}, None),
        lambda: sent(vhost, "k", "amq.rabbitmq.trace"),
    ):
        assert refusal(do)[0] == 403
    vhost.exchange_declare("amq.topic", "topic", durable=True)


def test_an_unknown_type_of_exchange_ends_the_connection(vhost: VirtualHost) -> None:
    with pytest.raises(
        Refusal, match="COMMAND_INVALID - unknown exchange type 'strange'"
    ) as caught:
        vhost.exchange_declare("x", "strange")
    assert caught.value.ends_connection


@pytest.mark.parametrize(
    "arguments, why",
    [
        ({"x-max-length": -1}, "{value_negative,-1}"),
        ({"x-max-length": "5"}, '"expected integer, got longstr"'),
        ({"x-expires": 0}, "{value_zero,0}"),
        ({"x-overflow": "drop"}, "invalid_overflow"),
        ({"x-dead-letter-routing-key": "k"}, "routing_key_but_no_dlx_defined"),
        ({"x-max-priority": 256}, "{max_value_exceeded,256}"),
    ],
)
def test_arguments_that_no_queue_can_have(
    vhost: VirtualHost, arguments: dict[str, Any], why: str
) -> None:
    (name,) = arguments
    assert refusal(lambda: vhost.queue_declare("q", arguments=arguments)) == (
        406,
        f"PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/': {why}",
    )


def test_what_is_not_modelled_is_no_silent_yes(vhost: VirtualHost) -> None:
    for name, do in {
        "'x-strange'": lambda: vhost.queue_declare("q", arguments={"x-strange": 1}),
        "'quorum'": lambda: vhost.queue_declare("q", arguments={"x-queue-type": "quorum"}),
        "'x-delayed-message'": lambda: vhost.exchange_declare("x", "x-delayed-message"),
        "'x-delayed-type'": lambda: vhost.exchange_declare(
            "x", "topic", arguments={"x-delayed-type": "topic"}
        ),
        "'all-with-x'": lambda: vhost.bind(
            QUEUE, "mine", "amq.headers", "", {"x-match": "all-with-x"}, None
        ),
    }.items():
        if "mine" not in vhost.queues:
            vhost.queue_declare("mine")
        with pytest.raises(NotImplementedError, match=name):
            do()
    assert "q" not in vhost.queues
    assert "x" not in vhost.exchanges


def test_a_long_text_is_cut_as_amqp_wants_it(vhost: VirtualHost) -> None:
    _, text = refusal(lambda: sent(vhost, "k", "n" * 255))
    assert len(text) == 255
    assert text.endswith("n...")


# -- queues ------------------------------------------------------------------------------------------------------------


def test_a_full_queue_drops_its_oldest_message_or_refuses_the_newest(vhost: VirtualHost) -> None:
    vhost.queue_declare("old", arguments={"x-max-length": 2})
    vhost.queue_declare("new", arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    for queue, taken in (("old", [True, True, True]), ("new", [True, True, False])):
        assert [sent(vhost, queue, body=body)[1] for body in (b"1", b"2", b"3")] == taken
    assert bodies(vhost, "old") == [b"2", b"3"]
    assert bodies(vhost, "new") == [b"1", b"2"]


def test_a_queue_may_be_full_by_its_bytes(vhost: VirtualHost) -> None:
    vhost.queue_declare("q", arguments={"x-max-length-bytes": 10})
    for body in (b"1" * 6, b"2" * 4, b"3" * 6):
        sent(vhost, "q", body=body)
    assert bodies(vhost, "q") == [b"2" * 4, b"3" * 6]


def test_one_full_queue_of_two_means_that_the_message_was_refused(vhost: VirtualHost) -> None:
    vhost.queue_declare("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    vhost.queue_declare("free")
    for queue in ("full", "free"):
        vhost.bind(QUEUE, queue, "amq.fanout", "", {}, None)
    assert sent(vhost, "", "amq.fanout") == (["free", "full"], False)
    assert len(vhost.queues["free"]) == 1


def test_messages_of_a_higher_priority_come_first(vhost: VirtualHost) -> None:
    vhost.queue_declare("q", arguments={"x-max-priority": 5})
    for body, priority in ((b"1", 0), (b"2", 3), (b"3", 9), (b"4", 5), (b"5", 3)):
        sent(vhost, "q", body=body, priority=priority)
    sent(vhost, "q", body=b"6")
    assert bodies(vhost, "q") == [b"3", b"4", b"2", b"5", b"1", b"6"]


def test_time_to_live(vhost: VirtualHost, clock: ManualClock) -> None:
    vhost.queue_declare("q", arguments={"x-message-ttl": 5000})
    sent(vhost, "q", body=b"short", expiration="1000")
    sent(vhost, "q", body=b"long", expiration="60000")
    assert vhost.next_dead_letter is None
    clock.advance(1)
    vhost.expire()
    assert bodies(vhost, "q") == [b"long"]
    clock.advance(4)
    vhost.expire()
    assert bodies(vhost, "q") == []


def test_a_message_expires_at_the_head_alone(vhost: VirtualHost, clock: ManualClock) -> None:
    vhost.queue_declare("q")
    sent(vhost, "q", body=b"first")
    sent(vhost, "q", body=b"second", expiration="1000")
    clock.advance(2)
    vhost.expire()
    assert bodies(vhost, "q") == [b"first", b"second"]
    first = vhost.queues["q"].get(clock.monotonic())
    assert first is not None
    assert vhost.queues["q"].get(clock.monotonic()) is None


def test_an_unused_queue_expires(vhost: VirtualHost, clock: ManualClock) -> None:
    vhost.queue_declare("q", arguments={"x-expires": 1000})
    clock.advance(0.5)
    vhost.queue_declare("q", arguments={"x-expires": 1000})
    clock.advance(0.9)
    vhost.expire()
    assert "q" in vhost.queues
    clock.advance(0.1)
    vhost.expire()
    assert "q" not in vhost.queues


def test_a_dead_letter_tells_where_it_died_and_of_what(
    vhost: VirtualHost, clock: ManualClock
) -> None:
    vhost.exchange_declare("dead", "topic")
    vhost.queue_declare("graves")
    vhost.bind(QUEUE, "graves", "dead", "#", {}, None)
    vhost.queue_declare("q", arguments={"x-dead-letter-exchange": "dead"})
    sent(vhost, "q", expiration="500", application_headers={"mine": 1})
    assert vhost.next_dead_letter == 0.5
    clock.advance(0.5)
    vhost.expire()
    (letter,) = vhost.queues["graves"]
    assert (letter.exchange, letter.routing_key) == ("dead", "q")
    assert "expiration" not in letter.properties
    headers = dict(letter.headers)
    (death,) = headers.pop("x-death")
    assert headers == {
        "mine": 1,
        "x-first-death-exchange": "",
        "x-first-death-queue": "q",
        "x-first-death-reason": "expired",
    }
    assert death.pop("time") is not None
    assert death == {
        "count": 1,
        "exchange": "",
        "queue": "q",
        "reason": "expired",
        "routing-keys": ["q"],
        "original-expiration": "500",
    }


def test_a_dead_letter_has_the_key_that_the_queue_says(vhost: VirtualHost) -> None:
    vhost.queue_declare("graves")
    vhost.queue_declare(
        "q",
        arguments={
            "x-max-length": 1,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "graves",
        },
    )
    sent(vhost, "q", body=b"1")
    sent(vhost, "q", body=b"2")
    assert bodies(vhost, "graves") == [b"1"]


def test_a_dead_letter_goes_round_in_no_circle_unless_somebody_rejects_it(
    vhost: VirtualHost, clock: ManualClock
) -> None:
    back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
    vhost.queue_declare("q", arguments={"x-message-ttl": 1000, **back})
    sent(vhost, "q")
    queue = vhost.queues["q"]
    for _ in range(2):
        entry = queue.get(clock.monotonic())
        assert isinstance(entry, Entry)
        queue.reject(entry)
    (message,) = queue
    assert message.headers["x-death"][0]["count"] == 2
    clock.advance(1)
    vhost.expire()
    assert len(queue) == 0


def test_what_comes_back_is_where_it_was(vhost: VirtualHost, clock: ManualClock) -> None:
    vhost.queue_declare("q")
    for body in (b"1", b"2", b"3"):
        sent(vhost, "q", body=body)
    queue = vhost.queues["q"]
    taken = [queue.get(clock.monotonic()) for _ in range(2)]
    for entry in taken:
        assert entry is not None
        queue.requeue(entry)
    assert bodies(vhost, "q") == [b"1", b"2", b"3"]
    again = queue.get(clock.monotonic())
    assert again is not None
    assert again.redelivered


# -- what deletes itself -----------------------------------------------------------------------------------------------


def test_an_exchange_that_deletes_itself_goes_with_its_last_binding(vhost: VirtualHost) -> None:
    vhost.exchange_declare("x", "fanout", auto_delete=True)
    for queue in ("a", "b"):
        vhost.queue_declare(queue)
        vhost.bind(QUEUE, queue, "x", "", {}, None)
    vhost.unbind(QUEUE, "a", "x", "", {}, None)
    assert "x" in vhost.exchanges
    vhost.queue_delete("b", owner=None)
    assert "x" not in vhost.exchanges


class Eager:
    """A consumer that takes what it gets, up to a number."""

    exclusive = False

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.got: list[Message] = []
        self.was_cancelled = False

    def can_take(self) -> bool:
        return len(self.got) < self.most

    def take(self, entry: Entry) -> None:
        self.got.append(entry.message)

    def cancelled(self) -> None:
        self.was_cancelled = True


def test_consumers_take_turns(vhost: VirtualHost, clock: ManualClock) -> None:
    queue = vhost.queue_declare("q")
    first, second = Eager(most=2), Eager()
    for consumer in (first, second):
        vhost.add_consumer(queue, consumer)
    for number in range(6):
        sent(vhost, "q", body=b"%d" % number)
    assert [one.body for one in first.got] == [b"0", b"2"]
    assert [one.body for one in second.got] == [b"1", b"3", b"4", b"5"]


def test_a_queue_that_deletes_itself_goes_with_its_last_consumer(vhost: VirtualHost) -> None:
    queue = vhost.queue_declare("q", auto_delete=True)
    consumer = Eager()
    vhost.add_consumer(queue, consumer)
    vhost.remove_consumer(queue, consumer)
    assert "q" not in vhost.queues


def test_a_consumer_is_told_that_its_queue_is_gone(vhost: VirtualHost) -> None:
    queue = vhost.queue_declare("q")
    consumer = Eager()
    vhost.add_consumer(queue, consumer)
    assert refusal(lambda: vhost.queue_delete("q", owner=None, if_unused=True))[0] == 406
    vhost.queue_delete("q", owner=None)
    assert not consumer.was_cancelled
    vhost.tell_cancelled()
    assert consumer.was_cancelled


def test_one_consumer_may_have_a_queue_for_itself(vhost: VirtualHost) -> None:
    queue = vhost.queue_declare("q")
    alone = Eager()
    alone.exclusive = True
    vhost.add_consumer(queue, alone)
    assert refusal(lambda: vhost.add_consumer(queue, Eager())) == (
        403,
        "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use",
    )


# -- what nobody has declared ------------------------------------------------------------------------------------------


def test_what_nobody_has_declared_is_taken_if_that_is_wanted(clock: ManualClock) -> None:
    vhost = VirtualHost(
        "/",
        clock=clock.monotonic,
        wall_clock=clock.time,
        make=make_message,
        takes_undeclared=lambda: True,
    )
    assert sent(vhost, "q") == (["q"], True)
    assert sent(vhost, "k", "x") == ([], True)
    assert vhost.takes("x")
    # A declaration that comes later says what they are.
    vhost.queue_declare("q", arguments={"x-max-length": 5})
    vhost.exchange_declare("x", "topic", durable=True)
    assert bodies(vhost, "q") == [b"x"]
    assert not vhost.takes("x")
    assert refusal(lambda: vhost.exchange_declare("x", "direct", durable=True))[0] == 406
